"""A Program run in plain PyTorch, on any device and in any dtype: the oracle of other executors.

Positions within a span are computed together, images of a batch always. On CUDA the work of each
kind of pixel is captured once as a CUDA graph and replayed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from genfast.errors import InputError
from genfast.sampling.program import Program, Tap
from genfast.sampling.run.reference_steps import (
    Addresses,
    Grid,
    Integers,
    Kernel,
    buffer_grid,
    by_phase,
    see,
    table_grid,
)

# Pixels of a row whose addresses are computed together.
_AHEAD = 256

# Captures a function of no arguments and returns another that repeats its work on the same memory.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class ReferenceExecutor:
    """Runs a Program; weights are packed once, for any number of runs.

    Args:
        program: what to run.
        capture: how work on fixed memory is repeated: a CUDA graph on CUDA, else not at all.
            Others are for tests.
    """

    def __init__(self, program: Program, capture: Capture | None = None) -> None:
        self.program = program
        dtype, device = program.dtype, program.device
        kernels = [
            Kernel(part, dtype, device, phase)
            for each in program.instructions
            for part, phase in by_phase(each)
        ]
        self._span = [
            kernel if kernel.when.span else kernel.before_scan()
            for kernel in kernels
            if kernel.when.span or kernel.when.before > 0
        ]
        pixel = [kernel for kernel in kernels if not kernel.when.span]
        self._phases = [
            [kernel for kernel in pixel if kernel.when.after == after]
            for after in range(len(program.draws) + 1)
        ]
        if capture is None and device.type == "cuda":
            capture = _cuda_graph
        self._capture = capture
        self._kept: dict[tuple[object, ...], _Memory] = {}

    def begin(self, n: int, conditions: Sequence[Tensor] = ()) -> "ReferenceRun":
        """Start n images; at most one run at a time.

        Args:
            n: images, at least 1.
            conditions: [n or 1, rows, columns, features] for each condition table, by number.
        """
        tables = [self._table(number, n, conditions) for number in range(len(self.program.tables))]
        if self._capture is None:
            return ReferenceRun(self, self._memory(n, tables))
        key = (n, *(tuple(table.shape) for table in tables))
        memory = self._kept.get(key)
        if memory is None:
            # Captured work stays on its memory: only the latest kind of run is kept.
            self._kept = {key: (memory := self._memory(n, tables))}
        else:
            for buffer in memory.buffers:
                buffer.zero_()
            for kept, table in zip(memory.tables, self._padded(n, tables), strict=True):
                kept.copy_(table)
        return ReferenceRun(self, memory)

    def _table(self, number: int, n: int, conditions: Sequence[Tensor]) -> Tensor:
        table = self.program.tables[number]
        if table.condition is None:
            assert table.data is not None
            return table.data
        if table.condition >= len(conditions):
            raise InputError(
                f"reference executor: expected {table.condition + 1} conditions or more, "
                f"got {len(conditions)}"
            )
        data = conditions[table.condition]
        if data.dim() != 4 or data.shape[0] not in (1, n) or data.shape[3] != table.features:
            raise InputError(
                f"reference executor: expected condition {table.condition} "
                f"[{n} or 1, rows, columns, {table.features}], got {list(data.shape)}"
            )
        return data

    def _padded(self, n: int, tables: Sequence[Tensor]) -> list[Tensor]:
        """Tables as storages [n, slots + 1, features] with their zero slot."""
        padded = []
        for table in tables:
            table = table.to(self.program.device, self.program.dtype)
            flat = F.pad(table.flatten(1, 2), (0, 0, 0, 1))
            padded.append(flat if self._capture else flat.expand(n, -1, -1))
        return padded

    def _memory(self, n: int, tables: Sequence[Tensor]) -> "_Memory":
        program = self.program
        buffer_grids = [buffer_grid(buffer) for buffer in program.buffers]
        table_grids = [table_grid(*table.shape[1:3]) for table in tables]
        buffers = [
            torch.zeros(
                n, grid.slots + 1, buffer.features, dtype=program.dtype, device=program.device
            )
            for buffer, grid in zip(program.buffers, buffer_grids, strict=True)
        ]
        padded = [
            each.expand(n, -1, -1).contiguous() if self._capture else each
            for each in self._padded(n, tables)
        ]

        def stage(kernels: Sequence[Kernel]) -> _Stage:
            return _Stage(kernels, buffer_grids, table_grids)

        return _Memory(
            n,
            buffers,
            padded,
            stage(self._span),
            [stage(kernels) for kernels in self._phases],
            [
                Addresses(
                    [(Tap(read, torch.empty(0)), 1, 1) for read in draw.reads],
                    [(table_grids if r.table else buffer_grids)[r.source] for r in draw.reads],
                )
                for draw in program.draws
            ],
            buffer_grids[0],
        )

    def execute(self, memory: "_Memory", step: "_Step", slots: Tensor) -> None:
        """Run a step on these addresses, by replaying it where it can be captured."""
        if self._capture is None:
            step.run(memory, slots)
        elif step.replay is None and step.addresses is None:
            # The first time is the warm-up that a capture needs.
            step.addresses = slots.clone()
            step.run(memory, step.addresses)
        else:
            assert step.addresses is not None
            step.addresses.copy_(slots)
            if step.replay is None:
                addresses = step.addresses
                step.replay = self._capture(lambda: step.run(memory, addresses))
            step.replay()


class ReferenceRun:
    """n images on their way; see `ReferenceExecutor.begin`.

    Attributes:
        done: nothing is left to draw.
    """

    def __init__(self, executor: ReferenceExecutor, memory: "_Memory") -> None:
        self._executor, self._memory, self._program = executor, memory, executor.program
        self._draw = self._row = self._column = 0
        self._ready = self.done = False
        self._tables: list[_Table] = []
        self._draw_slots: list[Tensor] = []
        self._drawable: list[list[bool]] = []

    @property
    def position(self) -> tuple[int, int, int]:
        """The next draw's number, row and column."""
        return self._draw, self._row, self._column

    @property
    def has_parameters(self) -> bool:
        """Whether the model predicts the next draw, or its symbols must be given."""
        self._prepare()
        return self._drawable[self._draw][self._column % _AHEAD]

    def parameters(self) -> Tensor:
        """Parameters [n, P] of the next draw; its reads' fill where there are none."""
        self._prepare()
        slots = self._draw_slots[self._draw][self._column % _AHEAD, None]
        memory = self._memory
        reads = self._program.draws[self._draw].reads
        parts = [
            see(memory.buffers, memory.tables, slots[:, number], read)[:, 0]
            for number, read in enumerate(reads)
        ]
        return torch.cat(parts, dim=1)

    def supply(self, encoded: Tensor) -> None:
        """Give the next draw's symbols as the model sees them, [n, count * encoded]; move on."""
        self._prepare()
        draw, program, memory = self._program.draws[self._draw], self._program, self._memory
        first, count = draw.first * program.encoded, draw.count * program.encoded
        if tuple(encoded.shape) != (memory.n, count):
            raise InputError(
                f"supply: expected encoded [{memory.n}, {count}], got {list(encoded.shape)}"
            )
        grid = memory.input_grid
        slot = self._row % grid.rows * grid.columns + self._column % grid.columns
        memory.buffers[0][:, slot, first : first + count] = encoded.to(program.dtype)
        self._ready = False
        self._draw += 1
        if self._draw == len(program.draws):
            self._finish_pixel()

    def forced(self, x: Tensor) -> list[Tensor]:
        """Parameters [n, P, H, W] of every draw when the input is x [n, features, H, W]."""
        if self.position != (0, 0, 0) or self._ready or self.done:
            raise InputError("forced: expected a run at its beginning, got one under way")
        program = self._program
        expected = (self._memory.n, program.colours * program.encoded, program.height)
        if tuple(x.shape) != (*expected, program.width):
            raise InputError(
                f"forced: expected x {[*expected, program.width]}, got {list(x.shape)}"
            )
        found: list[list[Tensor]] = [[] for _ in program.draws]
        while not self.done:
            number, row, column = self.position
            draw = program.draws[number]
            first, count = draw.first * program.encoded, draw.count * program.encoded
            found[number].append(self.parameters())
            self.supply(x[:, first : first + count, row, column])
        size = (program.height, program.width)
        return [torch.unflatten(torch.stack(each, dim=2), 2, size) for each in found]

    def _prepare(self) -> None:
        """Run the instructions up to the next draw."""
        if self.done:
            raise InputError("run: expected a draw that is left, got a run that is done")
        if self._ready:
            return
        program = self._program
        if self._draw == 0:
            if self._column % _AHEAD == 0:
                self._look_ahead()
            if self._column % program.span == 0:
                self._run_span()
        self._run_phase(self._draw)
        self._ready = True

    def _finish_pixel(self) -> None:
        program = self._program
        self._run_phase(len(program.draws))
        self._draw, self._column = 0, self._column + 1
        if self._column == program.width:
            self._row, self._column = self._row + 1, 0
        self.done = self._row == program.height

    def _look_ahead(self) -> None:
        """Compute the addresses of the row's next pixels."""
        memory, device = self._memory, self._program.device
        end = min(self._column + _AHEAD, self._program.width)
        columns = np.arange(self._column, end)
        self._tables = [stage.pixels(self._row, columns, device) for stage in memory.phases]
        self._draw_slots, self._drawable = [], []
        rows = np.full_like(columns, self._row)
        for addresses in memory.draws:
            slots = addresses.slots(rows, columns)
            self._drawable.append((slots != addresses.zero).all(axis=1).tolist())
            self._draw_slots.append(torch.from_numpy(slots).to(device))

    def _run_phase(self, number: int) -> None:
        table = self._tables[number]
        step = table.steps[self._column % _AHEAD]
        if step is not None:
            self._executor.execute(self._memory, step, table.slots[self._column % _AHEAD])

    def _run_span(self) -> None:
        program, stage = self._program, self._memory.span
        start = self._column if self._column > 0 else -stage.before
        columns = np.arange(start, min(self._column + program.span, program.width))
        step, slots = stage.span(self._row, columns, program.device)
        if step is not None:
            self._executor.execute(self._memory, step, slots)


@dataclass
class _Memory:
    """What one run works on: storages [n, slots + 1, features], and the stages that fill them."""

    n: int
    buffers: list[Tensor]
    tables: list[Tensor]
    span: "_Stage"
    phases: "list[_Stage]"
    draws: list[Addresses]
    input_grid: Grid


@dataclass(frozen=True)
class _Part:
    """An instruction in a step: its addresses are `size` rows of reads at `reads`, then writes."""

    kernel: Kernel
    size: int
    reads: int
    writes: int


@dataclass(eq=False)
class _Step:
    """Instructions that run together; which ones and for how many positions is fixed."""

    parts: list[_Part]
    addresses: Tensor | None = field(default=None)
    replay: Callable[[], None] | None = field(default=None)

    def run(self, memory: _Memory, slots: Tensor) -> None:
        """Run on a flat list of addresses."""
        for part in self.parts:
            taps = len(part.kernel.taps)
            reads = slots[part.reads : part.reads + part.size * taps].view(part.size, taps)
            out = slots[part.writes : part.writes + part.size]
            part.kernel.run(memory.buffers, memory.tables, reads, out)


@dataclass
class _Table:
    """Addresses [pixels, all instructions' reads and writes], and the step of each pixel."""

    slots: Tensor
    steps: list[_Step | None]


class _Stage:
    """Instructions that run one after another at the same moment of the scan."""

    def __init__(
        self, kernels: Sequence[Kernel], buffers: Sequence[Grid], tables: Sequence[Grid]
    ) -> None:
        self.kernels = list(kernels)
        self._addresses = [
            Addresses(
                kernel.taps,
                [(tables if t.read.table else buffers)[t.read.source] for t, _, _ in kernel.taps],
            )
            for kernel in kernels
        ]
        self._out = [buffers[kernel.out] for kernel in kernels]
        self.before = max((kernel.when.before for kernel in kernels), default=0)
        self._steps: dict[tuple[bytes, bytes], _Step | None] = {}
        self._rows: dict[int, list[int]] = {}

    def pixels(self, row: int, columns: Integers, device: torch.device) -> _Table:
        """Addresses and steps of single pixels."""
        places, active, used = [], [], []
        for number, i, j, computed in self._computed(row, columns):
            places += self._places(number, i, j)
            active.append(computed)
            used.append(number)
        if not used:
            return _Table(torch.empty(len(columns), 0, dtype=torch.int64), [None] * len(columns))
        slots = torch.from_numpy(np.concatenate(places, axis=1)).to(device)
        steps = [self._pixel_step(used, each) for each in np.stack(active, axis=1)]
        return _Table(slots, steps)

    def span(
        self, row: int, columns: Integers, device: torch.device
    ) -> tuple[_Step | None, Tensor]:
        """Step and addresses of a span's columns together."""
        places, used, sizes = [], [], []
        for number, i, j, computed in self._computed(row, columns):
            places += self._places(number, i, j[computed])
            used.append(number)
            sizes.append(int(computed.sum()))
        if not used:
            return None, torch.empty(0)
        slots = torch.from_numpy(np.concatenate([place.ravel() for place in places]))
        key = (np.asarray(used).tobytes(), np.asarray(sizes).tobytes())
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = _Step(self._parts(used, sizes, sizes))
        return step, slots.to(device)

    def _computed(
        self, row: int, columns: Integers
    ) -> Iterator[tuple[int, int, Integers, npt.NDArray[np.bool_]]]:
        """Instructions that compute something: number, row, columns, and which of these."""
        for number in self._in_row(row):
            kernel = self.kernels[number]
            i = kernel.row(row)
            j, computed = kernel.columns(columns)
            if i is not None and computed.any():
                yield number, i, j, computed

    def _in_row(self, row: int) -> list[int]:
        """Instructions that compute some position of a row; most pieces of flat values do not."""
        if row not in self._rows:
            kernels = enumerate(self.kernels)
            self._rows[row] = [number for number, each in kernels if each.row(row) is not None]
        return self._rows[row]

    def _places(self, number: int, i: int, j: Integers) -> list[Integers]:
        """Slots read [S, R] and written [S, 1] by an instruction."""
        grid = self._out[number]
        out = i % grid.rows * grid.columns + j % grid.columns
        return [self._addresses[number].slots(np.full_like(j, i), j), out[:, None]]

    def _pixel_step(self, used: Sequence[int], active: npt.NDArray[np.bool_]) -> _Step | None:
        key = (np.asarray(used).tobytes(), active.tobytes())
        if key not in self._steps:
            parts = self._parts(used, active.astype(int).tolist(), [1] * len(used))
            self._steps[key] = _Step(parts) if parts else None
        return self._steps[key]

    def _parts(self, used: Sequence[int], sizes: Sequence[int], kept: Sequence[int]) -> list[_Part]:
        """Parts of a step with these sizes, in a list that keeps `kept` positions for each."""
        parts, start = [], 0
        for number, size, room in zip(used, sizes, kept, strict=True):
            kernel = self.kernels[number]
            writes = start + room * len(kernel.taps)
            if size:
                parts.append(_Part(kernel, size, start, writes))
            start = writes + room
        return parts


def _cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
