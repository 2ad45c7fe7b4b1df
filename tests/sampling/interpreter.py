"""A Program run literally and slowly, where a number read at the wrong time is NaN.

Independent of the executors: the loops of `genfast.sampling.program`'s docstring, in NumPy float64.
Each slot of a buffer remembers which position was written to it last. A read that does not find
its position there, for a ring is too small or an instruction runs too early, gives NaN.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast.sampling.pointwise import POINTWISE
from genfast.sampling.program import (
    Attend,
    Gemm,
    Instruction,
    Lookup,
    Pointwise,
    Program,
    Read,
    Reduce,
    When,
)

Array = np.ndarray[Any, np.dtype[Any]]


class Interpreter:
    """One run of a Program over a batch; symbols are supplied from outside."""

    def __init__(self, program: Program, n: int, conditions: list[Tensor] | None = None) -> None:
        self.program, self.n = program, n
        self.data = [np.full((n, b.rows, b.columns, b.features), np.nan) for b in program.buffers]
        self.tags = [np.full((b.rows, b.columns, b.features), -1) for b in program.buffers]
        self.tables = [
            (t.data if t.data is not None else (conditions or [])[t.condition or 0])
            .double()
            .numpy()
            for t in program.tables
        ]

    def forced(self, x: Tensor) -> list[Array]:
        """Run over the symbols x [n, colours * encoded, H, W]; return [n, P, H, W] of each draw.

        NaN where a draw has no parameters.
        """
        program = self.program
        shape = (program.height, program.width)
        found = [
            np.full((self.n, sum(read.count for read in draw.reads), *shape), np.nan)
            for draw in program.draws
        ]
        symbols = x.double().numpy()
        for row in range(program.height):
            for start in range(0, program.width, program.span):
                stop = min(start + program.span, program.width)
                self._spans(row, start, stop)
                for column in range(start, stop):
                    for number, draw in enumerate(program.draws):
                        self._pixel(row, column, number)
                        parts = [self.read(read, row, column) for read in draw.reads]
                        if not any(part is None for part in parts):
                            found[number][:, :, row, column] = np.concatenate(parts, axis=1)
                        e = program.encoded
                        chosen = slice(draw.first * e, (draw.first + draw.count) * e)
                        self._write(0, chosen.start, symbols[:, chosen, row, column], row, column)
                    self._pixel(row, column, len(program.draws))
        return found

    def _spans(self, row: int, start: int, stop: int) -> None:
        for instruction in self.program.instructions:
            if start == 0:
                for column in range(-instruction.when.before, 0):
                    self._run_at(instruction, row, column)
            if instruction.when.span:
                for column in range(start, stop):
                    self._run_at(instruction, row, column)

    def _pixel(self, row: int, column: int, after: int) -> None:
        for instruction in self.program.instructions:
            if not instruction.when.span and instruction.when.after == after:
                self._run_at(instruction, row, column)

    def _run_at(self, instruction: Instruction, row: int, column: int) -> None:
        when: When = instruction.when
        i, skew = divmod(row - when.row_offset, when.row_scale)
        j, lean = divmod(column - when.column_offset, when.column_scale)
        if skew == 0 and lean == 0 and 0 <= i < when.height and 0 <= j < when.width:
            first, values = self._compute(instruction, i, j)
            self._write(instruction.out, first, values, i, j)

    def _compute(self, instruction: Instruction, i: int, j: int) -> tuple[int, Array]:
        if isinstance(instruction, Gemm):
            total = np.zeros((self.n, instruction.count))
            if instruction.bias is not None:
                total = total + instruction.bias.double().numpy()
            if instruction.initial:
                seen = [self._at(read, i, j) for read in instruction.initial]
                total = total + np.concatenate(seen, axis=1)
            up, down = instruction.up, instruction.down
            for tap in instruction.taps:
                if (i % up, j % up) == tap.phase:
                    seen = self.read(tap.read, i // up * down, j // up * down)
                    if seen is not None:
                        total = total + seen @ tap.weight.double().numpy()
            return instruction.first, total
        if isinstance(instruction, Pointwise):
            numbers = [torch.tensor(self._at(read, i, j)) for read in instruction.reads]
            numbers += [torch.tensor(c, dtype=torch.float64) for c in instruction.constants]
            for step in instruction.steps:
                numbers.append(POINTWISE[step.op](*(numbers[k] for k in step.args)))
            last = numbers[-1].expand(self.n, instruction.count)
            return instruction.first, last.numpy()
        if isinstance(instruction, Reduce):
            joined = np.concatenate([self._at(r, i, j) for r in instruction.reads], axis=1)
            cube = joined.reshape(self.n, instruction.outer, instruction.size, instruction.inner)
            reduced = cube.sum(axis=2) if instruction.op == "sum" else cube.max(axis=2)
            return instruction.first, reduced.reshape(self.n, -1)
        if isinstance(instruction, Attend):
            return instruction.first, self._attend(instruction, i, j)
        assert isinstance(instruction, Lookup)
        index = self._at(instruction.read, i, j)[:, 0].astype(np.int64)
        return instruction.first, instruction.weight.double().numpy()[index]

    def _attend(self, attend: Attend, i: int, j: int) -> Array:
        def joined(reads: tuple[Read, ...], i: int, j: int) -> Array:
            seen = np.concatenate([self._at(read, i, j) for read in reads], axis=1)
            return seen.reshape(self.n, attend.heads, -1)

        positions = attend.height * attend.width
        queries = joined(attend.queries, i, j)
        bias = self._at(attend.bias, i, j).reshape(self.n, -1, positions)
        bias = np.broadcast_to(bias, (self.n, attend.heads, positions))
        scores = np.full(bias.shape, -np.inf)
        width = sum(read.count for read in attend.values) // attend.heads
        values = np.zeros((*bias.shape, width))
        for q in range(positions):
            sees = bias[:, :, q] != -np.inf
            if sees.any():
                place = divmod(q, attend.width)
                products = (queries * joined(attend.keys, *place)).sum(axis=2)
                scores[:, :, q][sees] = (attend.scale * products + bias[:, :, q])[sees]
                values[:, :, q][sees] = joined(attend.values, *place)[sees]
        result = np.zeros((self.n, attend.heads, width))
        for n, head in np.ndindex(self.n, attend.heads):
            seen = bias[n, head] != -np.inf
            if seen.any():
                score = scores[n, head, seen]
                weight = np.exp(score - score.max())
                result[n, head] = weight / weight.sum() @ values[n, head, seen]
        return result.reshape(self.n, -1)

    def _at(self, read: Read, i: int, j: int) -> Array:
        seen = self.read(read, i, j)
        return np.full((self.n, read.count), read.fill) if seen is None else seen

    def read(self, read: Read, i: int, j: int) -> Array | None:
        """Return what a read sees from (i, j); None outside its bounds."""
        row, column = i + read.dy, j + read.dx
        if not (read.top <= row < read.bottom and read.left <= column < read.right):
            return None
        features = read.start + read.step * np.arange(read.count)
        if read.table:
            table = self.tables[read.source]
            where = (row if table.shape[1] > 1 else 0, column if table.shape[2] > 1 else 0)
            seen: Array = table[:, where[0], where[1]][:, features]
            return np.broadcast_to(seen, (self.n, read.count))
        buffer = self.program.buffers[read.source]
        assert 0 <= row < buffer.height, (buffer, read, i, j)
        assert 0 <= column < buffer.width, (buffer, read, i, j)
        slot = (row % buffer.rows, column % buffer.columns)
        right = self.tags[read.source][slot][features] == row * buffer.width + column
        found: Array = self.data[read.source][:, slot[0], slot[1]][:, features]
        return np.where(right, found, np.nan)

    def _write(self, buffer: int, first: int, values: Array, row: int, column: int) -> None:
        spec = self.program.buffers[buffer]
        slot = (row % spec.rows, column % spec.columns)
        chosen = slice(first, first + values.shape[1])
        self.data[buffer][:, slot[0], slot[1], chosen] = values
        self.tags[buffer][slot[0], slot[1], chosen] = row * spec.width + column
