"""Rules of padding, of concatenation, and of writes into a part of a tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast.sampling.capture.recording import Node
from genfast.sampling.lower.flat import image_of
from genfast.sampling.lower.layout import Signal, features_dim, is_features, only_axis
from genfast.sampling.lower.lowering import Lowering, Operand, named, rule
from genfast.sampling.lower.rearrange import (
    aligned,
    choose,
    grown_dims,
    join,
    join_features,
    take_range,
    window,
)
from genfast.sampling.lower.rules.movement import unsqueeze
from genfast.sampling.lower.rules.raster import join_run, padded
from genfast.sampling.lower.run import Run, in_raster_order, whole

aten = torch.ops.aten


@rule(aten.constant_pad_nd)
def constant_pad_nd(low: Lowering, self: Signal, pad: Sequence[int], value: float) -> Signal | Run:
    for axis in (len(self.dims) - 1 - k // 2 for k, n in enumerate(pad) if n):
        if in_raster_order(self, axis):
            return padded(low, whole(self, axis), pad, value)
    self = image_of(low, self)
    for number in range(len(pad) // 2):
        before, after = pad[2 * number : 2 * number + 2]
        axis = len(self.dims) - 1 - number
        dim, size = self.dims[axis], self.shape[axis]
        if before == after == 0:
            continue
        grid = only_axis(dim)
        if grid is not None:
            self = window(low, self, grid, -before, size + before + after, float(value))
        elif is_features(dim):
            inner = choose(self, axis, np.arange(max(0, -before), size - max(0, -after)))
            parts = [
                _filler(low, inner, axis, before, value),
                inner,
                _filler(low, inner, axis, after, value),
            ]
            self = join_features([part for part in parts if part is not None], axis)
        else:
            low.refuse(f"it pads the {named(dim)}")
    return self


def _filler(low: Lowering, x: Signal, axis: int, count: int, value: float) -> Signal | None:
    if count <= 0:
        return None
    dims = (*x.dims[:axis], features_dim(count), *x.dims[axis + 1 :])
    return low.number(float(value), x, dims)


@rule(aten.cat)
def cat(low: Lowering, tensors: Sequence[Operand], dim: int) -> Signal | Run:
    parts = [each for each in tensors if not isinstance(each, Tensor) or each.numel()]
    like = next(each for each in parts if isinstance(each, Signal))
    axis = like.axis(dim)
    # Pixels that are features of the last axis go on to a dense layer over all of them.
    if in_raster_order(like, axis) and axis < len(like.dims) - 1:
        runs = [whole(each, axis) if isinstance(each, Signal) else each for each in parts]
        return join_run(low, runs, axis)
    return join(low, parts, axis)


@rule(aten.stack)
def stack(low: Lowering, tensors: Sequence[Operand], dim: int) -> Signal:
    like = next(each for each in tensors if isinstance(each, Signal))
    place = dim % (len(like.dims) + 1)
    parts: list[Operand] = []
    for each in tensors:
        if isinstance(each, Signal):
            parts.append(unsqueeze(low, each, place))
        elif isinstance(each, Tensor):
            parts.append(each.unsqueeze(place))
        else:
            assert isinstance(each, Node)
            parts.append(low.derived(aten.unsqueeze.default, each, place))
    return join(low, parts, place)


@rule(aten.slice_scatter)
def slice_scatter(
    low: Lowering, self: Operand, src: Operand, dim: int, start: Any, end: Any, step: int
) -> Signal:
    like = next(each for each in (self, src) if isinstance(each, Signal))
    axis = like.axis(dim)
    assert isinstance(self, Signal | Tensor | Node)
    size = self.shape[axis]
    first, last, step = slice(start, end, step).indices(size)
    if step == 1:
        ends = [_part(low, self, axis, a, b) for a, b in ((0, first), (last, size)) if a < b]
        return join(low, [*ends[: first > 0], src, *ends[first > 0 :]], axis)
    return _write_features(low, self, src, axis, np.arange(first, last, step))


def _write_features(low: Lowering, x: Operand, src: Operand, axis: int, places: Any) -> Signal:
    """Write src over the features of x with these numbers along an axis."""
    like = next(each for each in (x, src) if isinstance(each, Signal))
    if not is_features(like.dims[axis]):
        low.refuse(f"it writes to some of the {named(like.dims[axis])}")
    both = join_features(aligned(low, [x, src], axis), axis)
    assert not isinstance(x, float | int | bool)
    order = np.arange(x.shape[axis])
    order[places] = len(order) + np.arange(len(places))
    return choose(both, axis, order)


@rule(aten.index_put)
def index_put(
    low: Lowering,
    self: Operand,
    indices: Sequence[Operand | None],
    values: Operand,
    accumulate: bool,
) -> Signal:
    given = [(axis, each) for axis, each in enumerate(indices) if each is not None]
    assert isinstance(self, Signal | Tensor | Node)
    axis, chosen = given[0]
    if accumulate or len(given) != 1 or not isinstance(chosen, Tensor):
        low.refuse("expected a write at a constant index of one axis")
    if chosen.dim() != 1:
        low.refuse(f"expected an index of one axis, got index.shape={tuple(chosen.shape)}")
    places = (chosen.nonzero() if chosen.dtype == torch.bool else chosen).reshape(-1).cpu().numpy()
    shape = [*self.shape[:axis], len(places), *self.shape[axis + 1 :]]
    if isinstance(values, Signal):
        values = low.expand(values, grown_dims(low, values, shape))
    elif isinstance(values, Tensor):
        values = values.expand(shape)
    elif isinstance(values, Node):
        values = low.derived(aten.expand.default, values, shape)
    return _write_features(low, self, values, axis, places % self.shape[axis])


def _part(low: Lowering, x: Signal | Tensor | Node, axis: int, first: int, last: int) -> Operand:
    if isinstance(x, Signal):
        return take_range(low, x, axis, first, last)
    if isinstance(x, Tensor):
        return x.narrow(axis, first, last - first)
    return low.derived(aten.slice.Tensor, x, axis, first, last)


@rule(aten.select_scatter)
def select_scatter(low: Lowering, self: Operand, src: Operand, dim: int, index: int) -> Signal:
    assert isinstance(self, Signal | Tensor | Node)
    place = dim % len(self.shape)
    if isinstance(src, Signal):
        src = unsqueeze(low, src, place)
    elif isinstance(src, Tensor):
        src = src.unsqueeze(place)
    elif isinstance(src, Node):
        src = low.derived(aten.unsqueeze.default, src, place)
    first = index % self.shape[place]
    return slice_scatter(low, self, src, place, first, first + 1, 1)
