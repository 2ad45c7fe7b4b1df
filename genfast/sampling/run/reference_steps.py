"""The instructions of a Program in plain PyTorch, at several positions at once.

Addresses are data: every read is an index into a storage [n, slots + 1, features], whose last slot
holds zeros and stands for "outside". So the same operations on the same tensors serve every pixel,
which is what a CUDA graph needs to be replayed.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from genfast.sampling.pointwise import POINTWISE
from genfast.sampling.program import (
    Attend,
    Buffer,
    Gemm,
    Instruction,
    Lookup,
    Pointwise,
    Read,
    Reduce,
    Tap,
    When,
)

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Where positions of a buffer or table are stored: slot (i % rows) * columns + j % columns."""

    height: int
    width: int
    rows: int
    columns: int

    @property
    def slots(self) -> int:
        """Slots in use; the one after them is the zero slot."""
        return self.rows * self.columns


def buffer_grid(buffer: Buffer) -> Grid:
    """The grid of a buffer."""
    return Grid(buffer.height, buffer.width, buffer.rows, buffer.columns)


def table_grid(rows: int, columns: int) -> Grid:
    """The grid of a table's data; an axis of size 1 is the same everywhere."""
    everywhere = 1 << 60
    height, width = (everywhere if size == 1 else size for size in (rows, columns))
    return Grid(height, width, rows, columns)


class Addresses:
    """Turns positions of readers into slots, for R taps at once."""

    def __init__(self, taps: Sequence[tuple[Tap, int, int]], grids: Sequence[Grid]) -> None:
        """Take (tap, up, down) and the grid of what each reads."""

        def column(numbers: Sequence[int]) -> Integers:
            return np.asarray(numbers, dtype=np.int64)

        reads = [tap.read for tap, _, _ in taps]
        self.up = column([up for _, up, _ in taps])
        self.down = column([down for _, _, down in taps])
        self.phase = [column([tap.phase[axis] for tap, _, _ in taps]) for axis in (0, 1)]
        self.shift = [column([read.dy for read in reads]), column([read.dx for read in reads])]
        self.low = [
            column([max(read.top, 0) for read in reads]),
            column([max(read.left, 0) for read in reads]),
        ]
        pairs = list(zip(reads, grids, strict=True))
        self.high = [
            column([min(read.bottom, grid.height) for read, grid in pairs]),
            column([min(read.right, grid.width) for read, grid in pairs]),
        ]
        self.size = [
            column([grid.rows for grid in grids]),
            column([grid.columns for grid in grids]),
        ]
        self.zero = column([grid.slots for grid in grids])

    def slots(self, i: Integers, j: Integers) -> Integers:
        """Slots [S, R] that readers at positions (i, j) [S] read."""
        inside = np.True_
        places = []
        for axis, position in enumerate((i[:, None], j[:, None])):
            source = position // self.up * self.down + self.shift[axis]
            inside = inside & (position % self.up == self.phase[axis])
            inside = inside & (source >= self.low[axis]) & (source < self.high[axis])
            places.append(source % self.size[axis])
        return np.where(inside, places[0] * self.size[1] + places[1], self.zero)


def grid_row(when: When, row: int) -> int | None:
    """The row of an instruction's grid that is computed in a row of the scan, if one is."""
    i, rest = divmod(row - when.row_offset, when.row_scale)
    return i if rest == 0 and 0 <= i < when.height else None


def grid_columns(when: When, columns: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Columns of an instruction's grid at columns of the scan, and which are computed there.

    Those before the scan count from -1 down.
    """
    j, rest = np.divmod(columns - when.column_offset, when.column_scale)
    return j, (rest == 0) & (j >= 0) & (j < when.width) & (columns >= -when.before)


def by_phase(instruction: Instruction) -> "list[tuple[Instruction, tuple[int, int]]]":
    """An instruction in parts for positions (i, j) with (i % up, j % up) == phase.

    Only a Gemm has several: each position uses the taps of its own phase alone.
    """
    if not isinstance(instruction, Gemm) or instruction.up == 1:
        return [(instruction, (0, 0))]
    taps: dict[tuple[int, int], list[Tap]] = {}
    for tap in instruction.taps:
        taps.setdefault(tap.phase, []).append(tap)
    rows, columns = (
        range(min(instruction.up, size))
        for size in (instruction.when.height, instruction.when.width)
    )
    return [
        (replace(instruction, taps=tuple(taps.get((i, j), ()))), (i, j))
        for i in rows
        for j in columns
    ]


def gather(storage: Tensor, slots: Tensor, read: Read) -> Tensor:
    """Numbers [n, S, R, count] of slots [S, R], outside zero."""
    if read.step > 0:
        end = read.start + read.step * (read.count - 1) + 1
        chosen = storage[:, :, read.start : end : read.step].index_select(1, slots.flatten())
    else:
        features = read.start + read.step * torch.arange(read.count, device=storage.device)
        chosen = storage.index_select(1, slots.flatten()).index_select(2, features)
    return torch.unflatten(chosen, 1, slots.shape)


class Kernel:
    """One instruction, or a phase of it. `taps`: what it reads; results go to `out`."""

    def __init__(
        self,
        instruction: Instruction,
        dtype: torch.dtype,
        device: torch.device,
        phase: tuple[int, int] = (0, 0),
    ) -> None:
        self.phase, self.up = phase, instruction.up if isinstance(instruction, Gemm) else 1
        self.instruction, self.dtype, self.device = instruction, dtype, device
        self.when, self.out, self.first = instruction.when, instruction.out, instruction.first
        reads: tuple[Read, ...]
        self.taps: list[tuple[Tap, int, int]]
        if isinstance(instruction, Gemm):
            self._take_gemm(instruction)
            return
        if isinstance(instruction, Pointwise):
            reads, self.compute = instruction.reads, self._pointwise
            self.count = instruction.count
            self._constants = [
                torch.tensor(each, dtype=dtype, device=device) for each in instruction.constants
            ]
        elif isinstance(instruction, Reduce):
            reads, self.compute = instruction.reads, self._reduce
            self.count = instruction.outer * instruction.inner
        elif isinstance(instruction, Attend):
            self._take_attend(instruction)
            return
        else:
            reads, self.compute = (instruction.read,), self._lookup
            self._weight = instruction.weight.to(device, dtype)
            self.count = self._weight.shape[1]
        self.taps = [_plain(read) for read in reads]

    def before_scan(self) -> "Kernel":
        """Of a kernel that runs at pixels: what it computes before the scan, with a span."""
        part, when = copy(self), self.when
        width = max(0, -(when.column_offset // when.column_scale))
        part.when = replace(when, width=min(width, when.width), span=True, after=0)
        return part

    def row(self, row: int) -> int | None:
        """The row of its grid that it computes in a row of the scan, if there is one."""
        i = grid_row(self.when, row)
        return None if i is None or i % self.up != self.phase[0] else i

    def columns(self, columns: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """Columns of its grid at columns of the scan, and which it computes."""
        j, computed = grid_columns(self.when, columns)
        return j, computed & (j % self.up == self.phase[1])

    compute: Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]

    def run(
        self, buffers: Sequence[Tensor], tables: Sequence[Tensor], slots: Tensor, out: Tensor
    ) -> None:
        """Compute at S positions: read from slots [S, R], write to slots out [S]."""
        result = self.compute(buffers, tables, slots)
        target = buffers[self.out].narrow(2, self.first, self.count)
        target.index_copy_(1, out, result.expand(-1, len(slots), self.count))

    def _take_gemm(self, gemm: Gemm) -> None:
        # Taps that read the same features of one source are gathered and multiplied together.
        groups: dict[tuple[int, bool, int, int, int], list[Tap]] = {}
        for tap in gemm.taps:
            read = tap.read
            key = (read.source, read.table, read.start, read.step, read.count)
            groups.setdefault(key, []).append(tap)
        self._groups: list[tuple[int, Tensor]] = []
        self.taps = []
        for taps in groups.values():
            weight = torch.cat([tap.weight for tap in taps]).to(self.device, self.dtype)
            self._groups.append((len(taps), weight))
            self.taps += [(tap, gemm.up, gemm.down) for tap in taps]
        self.taps += [_plain(read) for read in gemm.initial]
        self._bias = None if gemm.bias is None else gemm.bias.to(self.device, self.dtype)
        self.count, self.compute = gemm.count, self._gemm

    def _gemm(self, buffers: Sequence[Tensor], tables: Sequence[Tensor], slots: Tensor) -> Tensor:
        n, size = buffers[0].shape[0], len(slots)
        total = self._bias
        used = sum(count for count, _ in self._groups)
        if used < len(self.taps):
            reads = self._reads(buffers, tables, slots, range(used, len(self.taps)))
            initial = torch.cat(reads, dim=2).flatten(0, 1)
            total = initial if total is None else initial + total
        first = 0
        for count, weight in self._groups:
            read = self.taps[first][0].read
            storage = (tables if read.table else buffers)[read.source]
            seen = gather(storage, slots[:, first : first + count], read)
            seen = seen.reshape(n * size, -1)
            total = seen @ weight if total is None else torch.addmm(total, seen, weight)
            first += count
        if total is None:
            total = torch.zeros(1, self.count, dtype=self.dtype, device=self.device)
        if total.shape[0] != n * size or total.dim() == 1:
            total = total.expand(n * size, self.count)
        return torch.unflatten(total, 0, (n, size))

    def _pointwise(
        self, buffers: Sequence[Tensor], tables: Sequence[Tensor], slots: Tensor
    ) -> Tensor:
        assert isinstance(self.instruction, Pointwise)
        results = self._reads(buffers, tables, slots, range(len(self.taps)))
        results += self._constants
        for step in self.instruction.steps:
            results.append(POINTWISE[step.op](*(results[arg] for arg in step.args)))
        result = results[-1] if self.instruction.steps else results[0]
        n, size = buffers[0].shape[0], len(slots)
        return result.expand(n, size, self.count)

    def _reduce(self, buffers: Sequence[Tensor], tables: Sequence[Tensor], slots: Tensor) -> Tensor:
        body = self.instruction
        assert isinstance(body, Reduce)
        joined = torch.cat(self._reads(buffers, tables, slots, range(len(self.taps))), dim=2)
        split = torch.unflatten(joined, 2, (body.outer, body.size, body.inner))
        reduced = split.sum(dim=3) if body.op == "sum" else split.amax(dim=3)
        return reduced.flatten(2)

    def _lookup(self, buffers: Sequence[Tensor], tables: Sequence[Tensor], slots: Tensor) -> Tensor:
        assert isinstance(self.instruction, Lookup)
        (index,) = self._reads(buffers, tables, slots, range(1))
        return F.embedding(index[:, :, 0].long(), self._weight)

    def _take_attend(self, attend: Attend) -> None:
        # With down = 0 a tap's position is absolute: the same for every reader.
        self.taps = [_plain(read) for read in (*attend.queries, attend.bias)]
        places = [divmod(q, attend.width) for q in range(attend.height * attend.width)]
        for read in (*attend.keys, *attend.values):
            for i, j in places:
                moved = replace(read, dy=read.dy + i, dx=read.dx + j)
                self.taps.append((Tap(moved, torch.empty(0)), 1, 0))
        self.count, self.compute = sum(read.count for read in attend.values), self._attend

    def _attend(self, buffers: Sequence[Tensor], tables: Sequence[Tensor], slots: Tensor) -> Tensor:
        body = self.instruction
        assert isinstance(body, Attend)
        n, size, heads, seen = len(buffers[0]), len(slots), body.heads, body.height * body.width
        own = self._reads(buffers, tables, slots, range(len(body.queries) + 1))
        queries = torch.cat(own[:-1], dim=2).reshape(n, size, heads, -1)
        bias = own[-1].reshape(n, size, -1, seen).expand(n, size, heads, seen)
        unseen = bias == -torch.inf
        first = len(own)
        keyed = [slots[0, first + r * seen :][:seen] for r in range(len(body.keys))]
        first += len(body.keys) * seen
        valued = [slots[0, first + r * seen :][:seen] for r in range(len(body.values))]

        def joined(reads: Sequence[Read], places: Sequence[Tensor]) -> Tensor:
            parts = [
                see(buffers, tables, place, read) for read, place in zip(reads, places, strict=True)
            ]
            return torch.cat(parts, dim=2).reshape(n, seen, heads, -1).transpose(1, 2)

        keys, values = joined(body.keys, keyed), joined(body.values, valued)
        results = []
        for s in range(size):
            # Numbers that are not seen may be anything, NaN too.
            hidden = unseen[:, s, :, :, None]
            products = keys.masked_fill(hidden, 0) @ queries[:, s, :, :, None]
            scores = (products[..., 0] * body.scale + bias[:, s]).unsqueeze(2)
            weights = torch.softmax(scores, dim=3).masked_fill(hidden.mT, 0)
            results.append((weights @ values.masked_fill(hidden, 0)).reshape(n, -1))
        return torch.stack(results, dim=1)

    def _reads(
        self,
        buffers: Sequence[Tensor],
        tables: Sequence[Tensor],
        slots: Tensor,
        numbers: Sequence[int],
    ) -> list[Tensor]:
        """What the reads see: [n, S, count] each."""
        return [
            see(buffers, tables, slots[:, number], self.taps[number][0].read) for number in numbers
        ]


def see(buffers: Sequence[Tensor], tables: Sequence[Tensor], slots: Tensor, read: Read) -> Tensor:
    """What a read sees at slots [S]: [n, S, count], `fill` outside."""
    storage = (tables if read.table else buffers)[read.source]
    seen = gather(storage, slots, read)
    if read.fill != 0:
        outside = slots == storage.shape[1] - 1
        seen = seen.masked_fill(outside[None, :, None], read.fill)
    return seen


def _plain(read: Read) -> tuple[Tap, int, int]:
    """A read at the reader's own position, as a tap."""
    return Tap(read, torch.empty(0)), 1, 1
