"""The pipeline: from a model to a program that is verified, and to executors of it."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from genfast.errors import ExactnessError, InputError, UnsupportedModelError
from genfast.sampling.distributions import Distribution
from genfast.sampling.distributions.distribution import DrawSpec
from genfast.sampling.fingerprint import Fingerprint, fingerprint
from genfast.sampling.line import LineCall, with_lines
from genfast.sampling.model_call import ModelCall
from genfast.sampling.program import Draw, Program
from genfast.sampling.protocol import Executor
from genfast.sampling.run.line import LineExecutor, by_draw, on_lines
from genfast.sampling.run.reference import ReferenceExecutor
from genfast.sampling.stages import first_line, stage
from genfast.sampling.verify.outputs import tolerance, verify

MakeExecutor = Callable[[Program], Executor]
EXECUTORS = ("auto", "native", "reference")


@dataclass(eq=False)
class Compiled:
    """A model as a program, with what is needed to run it and to read its results.

    Attributes:
        draws: which output features are the parameters of which symbols.
        output_sizes: sizes of the feature axes of the model's output.
        offset: the output at column t predicts the symbol at t + offset.
        predicted: for each draw where it has parameters, bool [H, W].
        tables: from conditioning for n events to the tables of the program.
        text: the plan in words.
        span: columns of a sound that executors draw at once.
        weights: fingerprint of the weights it was made from.
        error: the difference that verification found.
    """

    draws: list[DrawSpec]
    output_sizes: tuple[int, ...]
    offset: int
    predicted: list[Tensor]
    tables: Callable[[Mapping[str, Tensor], int], list[Tensor]]
    make: Callable[[], Executor]
    text: str
    span: int
    dtype: torch.dtype
    device: torch.device
    weights: Fingerprint
    error: float = 0.0
    _idle: list[Executor] = field(default_factory=list)

    def take(self) -> Executor:
        """An executor that nobody uses."""
        try:
            return self._idle.pop()  # without a look before: another thread may be quicker
        except IndexError:
            return self.make()

    def give_back(self, executor: Executor) -> None:
        """Keep an executor, with its packed weights, for the next call."""
        self._idle = [executor]


def compile_model(
    call: ModelCall,
    distribution: Distribution,
    examples: Mapping[str, Tensor],
    predicts: str | None,
    executor: str | MakeExecutor,
) -> Compiled:
    """Run the whole pipeline: capture, lower, plan, pack, verify; on lines where images fail.

    Raises:
        UnsupportedModelError, CausalityError, ExactnessError, NumericsError, InputError.
    """
    compiled, lines = with_lines(
        call,
        examples,
        predicts,
        lambda call, predicts: _compile(call, distribution, examples, predicts, executor),
    )
    return compiled if lines is None else _of_images(compiled, lines)


def _of_images(compiled: Compiled, lines: LineCall) -> Compiled:
    """What was compiled for the lines of images, for images."""
    line, (_, places) = lines.line, lines.line.event_shape
    assert lines.draws is not None
    what = "symbols, colours apart" if line.apart else "pixels"
    return replace(
        compiled,
        draws=lines.draws,
        output_sizes=lines.sizes,
        predicted=[each for draw in compiled.predicted for each in by_draw(draw, line)],
        make=on_lines(compiled.make, line, compiled.span),
        text=f"Each image as one line of {places} {what}:\n{compiled.text}",
        _idle=[LineExecutor(compiled.take(), line, compiled.span)],
    )


def _compile(
    call: ModelCall,
    distribution: Distribution,
    examples: Mapping[str, Tensor],
    predicts: str | None,
    executor: str | MakeExecutor,
) -> Compiled:
    from genfast.sampling.capture.model import capture
    from genfast.sampling.capture.precision import require_plain_numbers
    from genfast.sampling.lower.lowering import lower
    from genfast.sampling.plan.describe import describe
    from genfast.sampling.plan.planner import plan

    where, colours = "compile_sampler: expected", call.grid[0]
    with stage(f"{where} a model whose weights and attributes can be read"):
        x, before = call.example(examples), fingerprint(call.model)
    with stage(f"{where} a forward pass that can be recorded"):
        captured = capture(call.model, x, examples, call.call)
    with stage(f"{where} ops that compute numbers on a grid"):
        graph = lower(captured)
        require_plain_numbers(captured, call.symbol_values())
    draws = _draws(distribution, graph.output_sizes, call, x, examples)
    dtype, device = captured.dtype, captured.device
    with stage(f"{where} numbers that can be planned"):
        program = plan(graph, colours, call.encoded, draws, predicts, dtype, device)
        offset, text = _offset(graph, draws, program), describe(program)
        reached = [predicted(program, draw) for draw in program.draws]
    first, name = first_executor(program, executor)

    def make() -> Executor:
        return first_executor(program, name if isinstance(executor, str) else executor)[0]

    def tables(conditions: Mapping[str, Tensor], n: int) -> list[Tensor]:
        try:
            return captured.condition_tensors(graph.conditions, conditions, n)
        except (IndexError, RuntimeError) as error:
            # What the model does with conditioning of the right shape, such as a look-up, failed.
            got = ", ".join(f"{name}={_summary(each)}" for name, each in conditions.items())
            raise InputError(
                f"sample: expected conditioning that the model takes, got {got}: "
                f"{first_line(error)}"
            ) from error

    compiled = Compiled(
        draws,
        tuple(graph.output_sizes),
        offset,
        reached,
        tables,
        make,
        f"{text}\nExecutor: {name}",
        program.span,
        dtype,
        device,
        (),
    )
    try:
        with stage(f"{where} a program that runs"):
            given, sizes = tables(examples, x.shape[0]), compiled.output_sizes
            compiled.error, compiled.output_sizes = verify(
                first, given, call, examples, draws, sizes, offset, dtype, predicts
            )
    except ExactnessError as error:
        require_function(call, examples)
        if fingerprint(call.model) != before:
            # Of another thread that trains it, say; a model that does so itself was refused above.
            raise ExactnessError(f"{error}; the model changed while it was compiled") from error
        raise error
    # Last: a forward that writes masks into its weights, or keeps what it saw, has done so by now.
    compiled.weights = fingerprint(call.model)
    compiled.give_back(first)
    return compiled


def require_function(call: ModelCall, examples: Mapping[str, Tensor]) -> None:
    """Refuse a model that gives two outputs for one input, as one that counts its calls does.

    Raises:
        UnsupportedModelError: it does.
    """
    x = call.as_input(call.random_planes(0))
    first, second = (call.run(x.clone(), examples).double() for _ in range(2))
    # Rounding may depend on how threads share the work; nothing else may.
    allowed = tolerance(call.placed()[0]) * float(first.abs().max())
    difference = float((first - second).abs().max())
    if difference > allowed:
        raise UnsupportedModelError(
            "compile_sampler: expected an output that depends on the input alone, got two outputs "
            f"for one input that differ by {difference:.3g}"
        )


def first_executor(program: Program, executor: str | MakeExecutor) -> tuple[Executor, str]:
    """An executor of the wanted kind and its name; "auto": the native one where it takes this.

    Raises:
        UnsupportedModelError: the native executor was asked for and does not take the program.
    """
    if callable(executor):
        return executor(program), getattr(executor, "__name__", "custom")
    if executor != "reference":
        try:
            # By name: without the compiled extension it cannot be imported.
            module: Any = importlib.import_module("genfast.sampling.run.native")
            with stage("native executor: expected a program that can be packed"):
                native: Executor = module.NativeExecutor(program)
            return native, "native"
        except (ImportError, UnsupportedModelError) as error:
            if executor == "native":
                raise UnsupportedModelError(
                    f"compile_sampler: expected a program for the native executor, got: {error}"
                ) from error
    return ReferenceExecutor(program), "reference"


def predicted(program: Program, draw: Draw) -> Tensor:
    """Where a draw has parameters, bool [H, W]."""
    row = torch.arange(program.height)[:, None]
    column = torch.arange(program.width)[None, :]
    inside = torch.ones(program.height, program.width, dtype=torch.bool)
    for read in draw.reads:
        bottom, right = read.bottom, read.right
        if not read.table:
            source = program.buffers[read.source]
            bottom, right = min(bottom, source.height), min(right, source.width)
        i, j = row + read.dy, column + read.dx
        inside &= (i >= max(read.top, 0)) & (i < bottom) & (j >= max(read.left, 0)) & (j < right)
    return inside


def _draws(
    distribution: Distribution,
    sizes: Sequence[int],
    call: ModelCall,
    x: Tensor,
    examples: Mapping[str, Tensor],
) -> list[DrawSpec]:
    """What is drawn, from the sizes of feature axes in the recording.

    Raises:
        UnsupportedModelError: the model's output fits the distribution, but was not understood.
        InputError: it does not fit.
    """
    colours = call.grid[0]
    try:
        return distribution.draws(sizes, colours)
    except InputError as error:
        for _, others in call.features(call.run(x, examples), len(x)):
            with suppress(InputError):
                distribution.draws(others, colours)
                raise UnsupportedModelError(
                    f"compile_sampler: expected an output with feature axes {others}, got one "
                    f"whose rows or columns are computed apart, as if features: {tuple(sizes)}"
                ) from error
        raise


def _summary(tensor: Tensor) -> str:
    """Integers by their range, which is what look-ups fail on; other numbers by their shape."""
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.numel() == 0:
        return str(list(tensor.shape))
    return f"{int(tensor.min())} .. {int(tensor.max())}"


def _offset(graph: Any, draws: list[DrawSpec], program: Program) -> int:
    """By how many columns predictions are ahead: the plan moved the output's reads by that."""
    wanted, seen = draws[0][2][0], 0
    for source in graph.outputs:
        if seen + source.count > wanted:
            return int(source.dx) - program.draws[0].reads[0].dx
        seen += source.count
    raise AssertionError("a draw reads a feature that the output lacks")
