"""Rules of ops that move numbers and compute nothing: they change where features are read."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast.sampling.lower.layout import (
    Dims,
    Signal,
    dim_size,
    feature_size,
    features_dim,
    is_features,
)
from genfast.sampling.lower.lowering import Lowering, Operand, named, rule
from genfast.sampling.lower.rearrange import choose, gather_axis, grown_dims, join, take_range
from genfast.sampling.lower.rules.raster import part
from genfast.sampling.lower.run import Run, in_raster_order, whole

aten = torch.ops.aten


@rule(aten.view.default, aten._unsafe_view, aten._reshape_alias, aten.reshape)
def view(low: Lowering, self: Signal) -> Signal:
    return self.view(low.node.shape)


@rule(aten.squeeze)
def squeeze(low: Lowering, self: Signal, dim: int | Sequence[int] | None = None) -> Signal:
    wanted = range(len(self.dims)) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = {self.axis(each) for each in wanted}
    gone = [axis for axis in axes if self.shape[axis] == 1]
    dims = tuple(each for axis, each in enumerate(self.dims) if axis not in gone)
    return replace(self, dims=dims)


@rule(aten.unsqueeze)
def unsqueeze(low: Lowering, self: Signal, dim: int) -> Signal:
    place = dim % (len(self.dims) + 1)
    return replace(self, dims=(*self.dims[:place], (), *self.dims[place:]))


@rule(aten.permute)
def permute(low: Lowering, self: Signal, dims: Sequence[int]) -> Signal:
    return self.permute([self.axis(each) for each in dims])


@rule(aten.transpose)
def transpose(low: Lowering, self: Signal, dim0: int, dim1: int) -> Signal:
    order = list(range(len(self.dims)))
    a, b = self.axis(dim0), self.axis(dim1)
    order[a], order[b] = b, a
    return self.permute(order)


@rule(aten.t)
def t(low: Lowering, self: Signal) -> Signal:
    return self.permute(range(len(self.dims))[::-1])


@rule(aten.expand)
def expand(low: Lowering, self: Signal) -> Signal:
    return low.expand(self, grown_dims(low, self, low.node.shape))


@rule(aten.repeat)
def repeat(low: Lowering, self: Signal, repeats: Sequence[int]) -> Signal:
    dims: Dims = ((),) * (len(repeats) - len(self.dims)) + self.dims
    for times, dim in zip(repeats, dims, strict=True):
        if times != 1 and not is_features(dim):
            low.refuse(f"it repeats the {named(dim)}")
    ids = np.tile(self.ids.reshape([feature_size(dim) for dim in dims]), list(repeats))
    new = [
        dim if times == 1 else features_dim(dim_size(dim) * times)
        for times, dim in zip(repeats, dims, strict=True)
    ]
    return self.with_ids(ids, tuple(new))


@rule(aten.slice.Tensor)
def slice_(low: Lowering, self: Signal, dim: int, start: Any, end: Any, step: int) -> Signal | Run:
    axis = self.axis(dim)
    first, last, step = slice(start, end, step).indices(self.shape[axis])
    if in_raster_order(self, axis) and step == 1:
        return part(low, whole(self, axis), first, max(first, last))
    return take_range(low, self, axis, first, max(first, last), step)


@rule(aten.select.int)
def select(low: Lowering, self: Signal, dim: int, index: int) -> Signal:
    axis = self.axis(dim)
    size = self.shape[axis]
    if not is_features(self.dims[axis]):
        low.refuse(f"it selects one of the {named(self.dims[axis])}")
    one = self if size == 1 else choose(self, axis, np.array([index % size]))
    return replace(one, dims=(*one.dims[:axis], *one.dims[axis + 1 :]))


@rule(aten.unbind)
def unbind(low: Lowering, self: Signal, dim: int) -> tuple[Signal, ...]:
    return tuple(select(low, self, dim, i) for i in range(self.shape[self.axis(dim)]))


@rule(aten.split.Tensor, aten.unsafe_split)
def split(low: Lowering, self: Signal, split_size: int, dim: int) -> tuple[Signal, ...]:
    size = self.shape[self.axis(dim)]
    sizes = [min(split_size, size - first) for first in range(0, size, split_size)]
    return split_with_sizes(low, self, sizes, dim)


@rule(aten.split_with_sizes, aten.unsafe_split_with_sizes)
def split_with_sizes(
    low: Lowering, self: Signal, split_sizes: Sequence[int], dim: int
) -> tuple[Signal, ...]:
    ends = np.cumsum(split_sizes).tolist()
    axis = self.axis(dim)
    pairs = zip(ends, split_sizes, strict=True)
    return tuple(take_range(low, self, axis, end - size, end) for end, size in pairs)


@rule(aten.roll)
def roll(low: Lowering, self: Signal, shifts: Sequence[int], dims: Sequence[int]) -> Signal:
    if not dims:
        low.refuse("it rolls over the end of an axis into the next")
    for shift, axis in zip(shifts, map(self.axis, dims), strict=True):
        size = self.shape[axis]
        cut = (size - shift) % size
        if cut:
            ends = [take_range(low, self, axis, a, b) for a, b in ((cut, size), (0, cut))]
            self = join(low, ends, axis)
    return self


@rule(aten.flip)
def flip(low: Lowering, self: Signal, dims: Sequence[int]) -> Signal:
    for axis in map(self.axis, dims):
        if not is_features(self.dims[axis]):
            low.refuse(f"it reverses the {named(self.dims[axis])}")
        self = choose(self, axis, np.arange(self.shape[axis])[::-1])
    return self


@rule(aten.channel_shuffle, aten.native_channel_shuffle)
def channel_shuffle(low: Lowering, self: Signal, groups: int) -> Signal:
    if not is_features(self.dims[1]):
        low.refuse(f"it shuffles the {named(self.dims[1])}")
    order = np.arange(self.shape[1]).reshape(groups, -1).T
    return choose(self, 1, order.reshape(-1))


@rule(aten.index_select)
def index_select(low: Lowering, self: Operand, dim: int, index: Operand) -> Signal:
    if not isinstance(self, Signal) or not isinstance(index, Tensor):
        low.refuse("it chooses by an index that depends on the input or on conditions")
    return gather_axis(low, self, self.axis(dim), index)
