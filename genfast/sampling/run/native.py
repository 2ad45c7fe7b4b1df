"""Runs a `Program` on the CPU in compiled code: no Python between two pixels.

Weights are packed once. A run keeps its caches in one piece of memory, computes every number by one
chain of operations in the program's order, and lets go of the interpreter's lock, so its results
are the same bits for every number of threads, batch size and SIMD level.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genfast._extension import loaded
from genfast.errors import InputError, UnsupportedModelError
from genfast.sampling.distributions import Distribution
from genfast.sampling.program import (
    Attend,
    Gemm,
    Instruction,
    Pointwise,
    Program,
    Read,
    Reduce,
    When,
)
from genfast.sampling.run.native_draw import draw_rule

_SUFFIX = {torch.float32: "Float", torch.float64: "Double"}


class NativeExecutor:
    """Packs a program; `begin` starts runs of it. Reusable, also by several threads at once.

    Attributes:
        program: what it runs.
        bytes: memory of the packed weights.

    Raises:
        UnsupportedModelError: the program is not float32 or float64 on the CPU, or there is no
            compiled extension.
    """

    def __init__(self, program: Program) -> None:
        if not loaded():
            raise UnsupportedModelError(
                "compile_sampler: expected the compiled extension for the native executor, got none"
            )
        if program.device.type != "cpu" or program.dtype not in _SUFFIX:
            raise UnsupportedModelError(
                "compile_sampler: expected float32 or float64 on the CPU for the native executor, "
                f"got dtype={program.dtype}, device={program.device}"
            )
        self.program = program
        self._plan = _pack(program)
        self.bytes: int = self._plan.bytes

    def begin(self, n: int, conditions: Sequence[Tensor] = ()) -> "NativeRun":
        """Start on n images; conditions: [n or 1, rows, columns, features] by their number."""
        dtype = self.program.dtype
        dense = [condition.detach().to("cpu", dtype).contiguous() for condition in conditions]
        for table in self.program.tables:
            if table.condition is not None and table.condition >= len(dense):
                given = len(dense)
                raise InputError(f"sample: expected {table.condition + 1} conditions, got {given}")
        return NativeRun(self.program, self._plan.begin(n, torch.get_num_threads(), dense), n)


class NativeRun:
    """One pass over a batch of images, from the first pixel to the last; not reentrant."""

    def __init__(self, program: Program, run: Any, n: int) -> None:
        self._program, self._run, self._n = program, run, n

    @property
    def bytes(self) -> int:
        """Memory of the caches."""
        return int(self._run.bytes)

    @property
    def position(self) -> tuple[int, int, int]:
        """The next draw: its number, row and column; the row is `height` at the end."""
        draw, row, column, _ = self._run.position
        return draw, row, column

    @property
    def has_parameters(self) -> bool:
        """Whether the model predicts the next draw, or its symbols must be given."""
        return bool(self._run.has_parameters)

    @property
    def done(self) -> bool:
        """Whether nothing is left to draw."""
        return bool(self._run.position[3])

    def parameters(self) -> Tensor:
        """Compute up to the next draw; return its parameters [n, P], their fill where outside."""
        parameters: Tensor = self._run.parameters(torch.get_num_threads())
        return parameters

    def supply(self, encoded: Tensor) -> None:
        """Write the symbols of this draw as the model sees them, [n, count * encoded]."""
        self._run.supply(encoded.detach().to("cpu", self._program.dtype).contiguous())

    def forced(self, x: Tensor) -> list[Tensor]:
        """Return the parameters [n, P, H, W] of every draw, given x [n, colours * encoded, H, W].

        The run must be at its beginning, and ends with it.
        """
        dense = x.detach().to("cpu", self._program.dtype).contiguous()
        parameters: list[Tensor] = self._run.forced(dense, torch.get_num_threads())
        return parameters

    def draws(self, distribution: Distribution) -> bool:
        """Whether `sample` draws from this distribution."""
        return draw_rule(distribution) is not None

    def sample(
        self,
        distribution: Distribution,
        noise: Tensor,
        symbols: Tensor,
        *,
        log_probs: Tensor | None = None,
        known_mask: Tensor | None = None,
        temperature: float = 1.0,
        rows: int = 1,
    ) -> None:
        """Draw the symbols of the next rows, as the distribution's `draw` does.

        A draw of more symbols than the distribution takes together is several, one after the other.

        Args:
            distribution: one that `draws`.
            noise: float32 [n, U, H, W], uniform in [0, 1); U numbers a pixel, draw by draw.
            symbols: [n, C, H, W], int32 or, for numbers, of the program's dtype; written, but read
                where known.
            log_probs: float64 [n]; the log-probabilities of drawn symbols are added, as they are
                at temperature 1.
            known_mask: bool [n, C, H, W], where symbols are given.
            temperature: see the distribution's `draw`.
            rows: how many rows; of a sound, how many spans.

        Raises:
            NumericsError: parameters that are no distribution; the message names the pixel.
        """
        rule = draw_rule(distribution)
        if rule is None:
            raise InputError(
                f"sample: expected a distribution that the engine draws from, got {distribution!r}"
            )
        table = getattr(distribution, "table", None)
        if table is not None:
            table = table.to("cpu", self._program.dtype).contiguous()
        self._run.sample(
            rule, noise, table, temperature, distribution.start, known_mask, symbols, log_probs,
            rows, torch.get_num_threads(),
        )  # fmt: skip


def _read(read: Read) -> tuple[object, ...]:
    return (
        read.source, read.start, read.step, read.count, read.dy, read.dx,
        read.top, read.bottom, read.left, read.right, read.fill, read.table,
    )  # fmt: skip


def _reads(reads: Sequence[Read]) -> list[tuple[object, ...]]:
    return [_read(read) for read in reads]


def _when(when: When) -> tuple[object, ...]:
    return (
        when.height, when.width, when.span, when.after,
        when.row_scale, when.row_offset, when.column_scale, when.column_offset, when.before,
    )  # fmt: skip


def _pack(program: Program) -> Any:
    import genfast._C as extension

    make = getattr(extension, f"SamplingBuilder{_SUFFIX[program.dtype]}")
    builder = make(program.colours, program.encoded, program.height, program.width, program.span)
    for buffer in program.buffers:
        builder.buffer(buffer.features, buffer.height, buffer.width, buffer.rows, buffer.columns)
    for table in program.tables:
        if table.data is not None:
            rows, columns = table.data.shape[1:3]
            builder.table(table.features, rows, columns, table.data, -1)
        else:
            builder.table(table.features, 1, 1, None, table.condition)
    for step in program.instructions:
        _add(builder, step)
    for draw in program.draws:
        builder.draw(draw.first, draw.count, _reads(draw.reads))
    return builder.finish()


def _add(builder: Any, step: Instruction) -> None:
    when = _when(step.when)
    if isinstance(step, Gemm):
        taps = [(_read(tap.read), tap.weight, *tap.phase) for tap in step.taps]
        initial = _reads(step.initial)
        builder.gemm(
            step.out, step.first, step.count, when, taps, step.bias, initial, step.up, step.down
        )
    elif isinstance(step, Pointwise):
        steps = [(operation.op, list(operation.args)) for operation in step.steps]
        reads, constants = _reads(step.reads), list(step.constants)
        builder.pointwise(step.out, step.first, step.count, when, reads, constants, steps)
    elif isinstance(step, Reduce):
        reads = _reads(step.reads)
        builder.reduce(
            step.out, step.first, when, reads, step.op, step.outer, step.size, step.inner
        )
    elif isinstance(step, Attend):
        queries, keys, values = (_reads(each) for each in (step.queries, step.keys, step.values))
        builder.attend(
            step.out, step.first, when, queries, keys, values, _read(step.bias),
            step.heads, step.height, step.width, step.scale,
        )  # fmt: skip
    else:
        builder.lookup(step.out, step.first, when, _read(step.read), step.weight)
