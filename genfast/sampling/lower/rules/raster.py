"""Rules of pixels taken as one sequence in raster order, and moved along it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genfast.sampling.capture.recording import Node
from genfast.sampling.lower.layout import Axis, Signal
from genfast.sampling.lower.lowering import Lowering, Operand, rule
from genfast.sampling.lower.rearrange import window
from genfast.sampling.lower.run import Run

aten = torch.ops.aten


def part(low: Lowering, x: Run, first: int, last: int) -> Signal | Run:
    """Positions first .. last - 1 of a run."""
    return settled(low, _cut(low, x, first, last))


def _cut(low: Lowering, x: Run, first: int, last: int) -> Run:
    added = []
    for start, operand in x.added:
        assert isinstance(operand, Tensor | Node)
        a, b = max(first - start, 0), min(last - start, operand.shape[x.axis])
        if a < b:
            added.append((start + a - first, _narrowed(low, operand, x.axis, a, b)))
    ends = (x.first + first, x.first + last)
    start = max(x.kept[0], ends[0])
    kept = (start, max(start, min(x.kept[1], ends[1])))
    return Run(x.whole, x.axis, *ends, kept, tuple(added))


def _narrowed(low: Lowering, x: Tensor | Node, axis: int, first: int, last: int) -> Tensor | Node:
    if isinstance(x, Node):
        return low.derived(aten.slice.Tensor, x, axis, first, last)
    return x.narrow(axis, first, last - first)


def settled(low: Lowering, x: Run) -> Signal | Run:
    """The run, as a signal if it is as long as the image."""
    whole, count = x.whole, x.whole.height * x.whole.width
    if x.last - x.first != count:
        return x
    if x.kept[0] > max(x.first, 0) or x.kept[1] < min(x.last, count):
        # Something else stands where pixels were cut off.
        marks = torch.zeros(count, dtype=low.dtype, device=low.device)
        marks[x.kept[0] : x.kept[1]] = 1
        marks = marks.view(count, *[1] * (len(whole.dims) - 1 - x.axis))
        whole = low.pointwise("mul", whole, marks)
    nothing = x.kept[0] == x.kept[1]
    result = low.number(0.0, whole, whole.dims) if nothing else _shifted(low, whole, x.first)
    for start, operand in x.added:
        result = low.pointwise("add", result, _padded(low, x, start, operand))
    return result


def _shifted(low: Lowering, x: Signal, by: int) -> Signal:
    """Each pixel sees the one `by` later in raster order, zero beside the image."""
    rows, columns = divmod(by, x.width)
    nearer = window(low, window(low, x, Axis.ROW, rows, x.height), Axis.COLUMN, columns, x.width)
    if columns == 0:
        return nearer
    # Those at the other end of the row, which come from the next one.
    wrapped = window(low, x, Axis.ROW, rows + 1, x.height)
    wrapped = window(low, wrapped, Axis.COLUMN, columns - x.width, x.width)
    return low.pointwise("add", nearer, wrapped)


def _padded(low: Lowering, x: Run, start: int, operand: Operand) -> Operand:
    """An operand of the run with zeros at all other positions."""
    assert isinstance(operand, Tensor | Node)
    behind = len(operand.shape) - 1 - x.axis
    end = x.last - x.first - start - operand.shape[x.axis]
    pad = [0, 0] * behind + [start, end]
    if isinstance(operand, Node):
        return low.derived(aten.constant_pad_nd.default, operand, pad)
    return torch.nn.functional.pad(operand, pad)


def join_run(low: Lowering, parts: Sequence[Any], axis: int) -> Signal | Run:
    """Concatenate pixels in raster order with what does not depend on the input."""
    runs = [each for each in parts if isinstance(each, Run)]
    others = [each for each in parts if not isinstance(each, Run)]
    if len(runs) != 1 or not all(isinstance(each, Tensor | Node) for each in others):
        low.refuse("it joins pixels in raster order with others that depend on the input")
    (run,) = runs
    if run.axis != axis:
        low.refuse("it joins pixels in raster order along another axis")
    place, added = 0, []
    for each in parts:
        if each is run:
            before = place
            added += [(place + start, operand) for start, operand in run.added]
        else:
            added.append((place, each))
        place += each.shape[axis]
    moved = replace(run, first=run.first - before, last=run.first - before + place)
    return settled(low, replace(moved, added=tuple(added)))


@rule(aten.constant_pad_nd, of=Run)
def padded(low: Lowering, self: Run, pad: Sequence[int], value: float) -> Signal | Run:
    """Pixels in raster order with a number before or behind; fewer of them where pad < 0."""
    rank, size = len(self.dims), self.shape[self.axis]
    at = 2 * (rank - 1 - self.axis)
    if any(pad[:at]) or any(pad[at + 2 :]):
        low.refuse("it pads pixels in raster order and other axes at once")
    cut = _cut(low, self, max(-pad[at], 0), size - max(-pad[at + 1], 0))
    before, after = max(pad[at], 0), max(pad[at + 1], 0)
    added = [(before + start, operand) for start, operand in cut.added]
    for start, count in ((0, before), (before + cut.shape[cut.axis], after)):
        if count > 0 and value != 0:
            sizes = [count if each == self.axis else 1 for each in range(rank)]
            filler = torch.full(sizes, float(value), dtype=low.dtype, device=low.device)
            added.append((start, filler))
    ends = (cut.first - before, cut.last + after)
    return settled(low, Run(cut.whole, cut.axis, *ends, cut.kept, tuple(added)))


@rule(aten.slice.Tensor, of=Run)
def slice_(low: Lowering, self: Run, dim: int, start: Any, end: Any, step: int) -> Signal | Run:
    axis = dim % len(self.shape)
    first, last, step = slice(start, end, step).indices(self.shape[axis])
    if axis != self.axis or step != 1:
        low.refuse("it takes a part of pixels in raster order along another axis")
    return part(low, self, first, max(first, last))


@rule(aten.cat, of=Run)
def cat(low: Lowering, tensors: Sequence[Any], dim: int) -> Signal | Run:
    run = next(each for each in tensors if isinstance(each, Run))
    return join_run(low, tensors, dim % len(run.shape))


@rule(aten.clone, aten.alias, aten.detach, of=Run)
def unchanged(low: Lowering, self: Run) -> Run:
    return self


@rule(aten.slice_scatter, of=Run)
def slice_scatter(
    low: Lowering, self: Any, src: Any, dim: int, start: Any, end: Any, step: int
) -> Signal | Run:
    axis = dim % len(self.shape)
    first, last, step = slice(start, end, step).indices(self.shape[axis])
    if not isinstance(self, Tensor | Node) or step != 1:
        low.refuse("it writes over some of the pixels in raster order")
    ends = ((0, first), (last, self.shape[axis]))
    before, after = ([_narrowed(low, self, axis, a, b)] if a < b else [] for a, b in ends)
    return join_run(low, [*before, src, *after], axis)
