"""Rules of ops that move numbers and compute nothing: they change where features are read."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast.sampling.layout import (
    Atom,
    Axis,
    Dims,
    Features,
    Signal,
    dim_size,
    feature_size,
    features_dim,
    is_features,
    only_axis,
    same,
)
from genfast.sampling.lower import Lowering, Operand, named, rule
from genfast.sampling.tape import Node
from genfast.sampling.values import Value

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
    return low.expand(self, _grown(low, self, low.node.shape))


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


def _grown(low: Lowering, x: Signal, shape: Sequence[int]) -> Dims:
    """The axes of x, those of size 1 expanded to a shape."""
    dims: Dims = ((),) * (len(shape) - len(x.dims)) + x.dims
    grown = []
    for dim, size in zip(dims, shape, strict=True):
        larger = dim_size(dim) == 1 and size > 1
        if larger and only_axis(dim) is not None:
            low.refuse(f"it repeats the {named(dim)}")
        grown.append(features_dim(size) if larger else dim)
    return tuple(grown)


# Choosing parts


@rule(aten.slice.Tensor)
def slice_(low: Lowering, self: Signal, dim: int, start: Any, end: Any, step: int) -> Signal:
    axis = self.axis(dim)
    first, last, step = slice(start, end, step).indices(self.shape[axis])
    return take_range(low, self, axis, first, max(first, last), step)


def take_range(low: Lowering, x: Signal, axis: int, first: int, last: int, step: int = 1) -> Signal:
    """Positions first, first + step, ... below last of an axis."""
    dim = x.dims[axis]
    if (first, last, step) == (0, dim_size(dim), 1):
        return x
    if is_features(dim):
        return choose(x, axis, np.arange(first, last, step))
    grid = only_axis(dim)
    if grid is None:
        low.refuse(f"it takes a part of an axis of {named(dim)}, which is not supported")
    if step != 1:
        low.refuse(f"it takes every {step}th of the {named(dim)}")
    return _part_of_join(low, x, axis, first, last) or window(low, x, grid, first, last - first)


def _part_of_join(low: Lowering, x: Signal, axis: int, first: int, last: int) -> Signal | None:
    """A range of positions that x was joined from, out of the parts that hold it."""
    origin = x.features.views[0].origin
    if not isinstance(origin, Value) or origin not in low.joined:
        return None
    whole, grid, parts = low.joined[origin]
    if (
        not (x.features is whole.features and x.dims == whole.dims)
        or only_axis(x.dims[axis]) != grid
    ):
        return None
    chosen: list[Operand] = []
    for start, part in parts:
        a, b = max(first - start, 0), min(last - start, part.extent(grid))
        if a < b:
            chosen.append(take_range(low, part, axis, a, b))
    return replace(join(low, chosen, axis), dtype=x.dtype) if chosen else None


def choose(x: Signal, axis: int, order: Any) -> Signal:
    """Features with these numbers along an axis of features."""
    ids = x.ids.take(order, axis)
    dims = (*x.dims[:axis], features_dim(len(order)), *x.dims[axis + 1 :])
    return x.with_ids(ids, dims)


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


def gather_axis(low: Lowering, x: Signal, axis: int, index: Tensor) -> Signal:
    """Positions of an axis by a constant index of one axis."""
    order = index.reshape(-1).to("cpu", torch.int64).numpy()
    order = np.where(order < 0, order + x.shape[axis], order)
    if is_features(x.dims[axis]):
        return choose(x, axis, order)
    if len(order) and (np.diff(order) == 1).all():
        return take_range(low, x, axis, int(order[0]), int(order[-1]) + 1)
    low.refuse(f"it chooses among the {named(x.dims[axis])}")


# The grid


def window(
    low: Lowering, x: Signal, axis: Axis, offset: int, size: int, fill: float = 0.0
) -> Signal:
    """Rows (columns) offset .. offset + size - 1, `fill` where there are none."""
    old = x.extent(axis)
    inside = (max(0, offset), min(old, offset + size))
    padded = offset < 0 or offset + size > old
    if padded and any(
        _has_edge(each, x, axis, inside) and each.fill != fill for each in x.features.views
    ):
        x = low.settle(x)
    rows = axis is Axis.ROW
    views = []
    for each in x.features.views:
        shift, least, most = (
            (each.dy, each.top, each.bottom) if rows else (each.dx, each.left, each.right)
        )
        if padded:
            least, most = max(least, shift + inside[0]), min(most, shift + inside[1])
            each = replace(each, fill=fill)
        if offset != 0:
            each = replace(each, moved=low.node.where)
        if rows:
            each = replace(each, dy=shift + offset, top=least, bottom=most)
        else:
            each = replace(each, dx=shift + offset, left=least, right=most)
        views.append(each)
    dims = tuple(
        tuple(atom._replace(size=size) if atom.axis is axis else atom for atom in dim)
        for dim in x.dims
    )
    features = replace(x.features, views=tuple(views))
    height, width = (size, x.width) if rows else (x.height, size)
    return replace(x, dims=dims, features=features, height=height, width=width)


def _has_edge(view: Any, x: Signal, axis: Axis, inside: tuple[int, int]) -> bool:
    """Whether the part of x that stays sees beyond the bounds of what it is read from."""
    rows = inside if axis is Axis.ROW else (0, x.height)
    columns = inside if axis is Axis.COLUMN else (0, x.width)
    return bool(
        view.dy + rows[0] < view.top
        or view.dy + rows[1] > view.bottom
        or view.dx + columns[0] < view.left
        or view.dx + columns[1] > view.right
    )


@rule(aten.constant_pad_nd)
def constant_pad_nd(low: Lowering, self: Signal, pad: Sequence[int], value: float) -> Signal:
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


# Joining


@rule(aten.cat)
def cat(low: Lowering, tensors: Sequence[Operand], dim: int) -> Signal:
    parts = [each for each in tensors if not isinstance(each, Tensor) or each.numel()]
    like = next(each for each in parts if isinstance(each, Signal))
    return join(low, parts, like.axis(dim))


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


def join(low: Lowering, parts: Sequence[Operand], axis: int) -> Signal:
    """Concatenate along an axis of features, rows or columns."""
    signals = [each for each in parts if isinstance(each, Signal)]
    grids = {only_axis(each.dims[axis]) for each in signals} - {None}
    if not all(is_features(each.dims[axis]) or only_axis(each.dims[axis]) for each in signals):
        low.refuse(f"it joins the {named(signals[0].dims[axis])} of several tensors")
    if not grids:
        return join_features(_aligned(low, parts, axis), axis)
    (grid,) = grids if len(grids) == 1 else (None,)
    if grid is None:
        low.refuse("it joins rows with columns")
    return _join_positions(low, parts, axis, grid)


def _aligned(low: Lowering, parts: Sequence[Operand], axis: int) -> list[Signal]:
    """The parts as signals whose other axes are the same."""
    signals = [each for each in parts if isinstance(each, Signal)]
    like = signals[0]
    for each in signals:
        others = zip(each.dims, like.dims, strict=True)
        if not all(same(a, b) for place, (a, b) in enumerate(others) if place != axis):
            low.refuse(f"it joins tensors whose axes differ: {each.dims} and {like.dims}")
    aligned = []
    for part in parts:
        if not isinstance(part, Signal):
            assert isinstance(part, Tensor | Node)
            own = features_dim(part.shape[axis])
            part = low.as_signal(part, (*like.dims[:axis], own, *like.dims[axis + 1 :]), like)
        aligned.append(part)
    return aligned


def join_features(parts: Sequence[Signal], axis: int) -> Signal:
    """Concatenate signals along an axis of features."""
    offsets = np.cumsum([0, *(len(part.features) for part in parts)])
    ids = [part.ids + offset for part, offset in zip(parts, offsets, strict=False)]
    joined = np.concatenate(ids, axis)
    first = parts[0]
    dims = (*first.dims[:axis], features_dim(joined.shape[axis]), *first.dims[axis + 1 :])
    whole = replace(first, features=Features.join([part.features for part in parts]))
    return whole.with_ids(joined, dims)


def _join_positions(low: Lowering, parts: Sequence[Operand], axis: int, grid: Axis) -> Signal:
    """Concatenate along rows or columns: each part is padded to the whole, and all are added.

    Where all parts but one are the same number everywhere, that number is the padding.
    """
    sizes = [part.shape[axis] for part in parts if not isinstance(part, int | float)]
    total, starts = sum(sizes), np.cumsum([0, *sizes]).tolist()
    signals = [part for part in parts if isinstance(part, Signal)]
    like = signals[0]
    fills = {low.uniform(part) for part in parts if not isinstance(part, Signal)}
    if len(signals) == 1 and len(fills) == 1 and None not in fills:
        number = next(i for i, part in enumerate(parts) if isinstance(part, Signal))
        fill = fills.pop()
        assert fill is not None
        return window(low, as_positions(low, like, axis, grid), grid, -starts[number], total, fill)
    like = next(each for each in signals if only_axis(each.dims[axis]) is grid)
    if len(parts) == 1:
        return as_positions(low, like, axis, grid)
    result: Signal | None = None
    pieces = []
    for part, start, size in zip(parts, starts, sizes, strict=False):
        if isinstance(part, Signal):
            piece = as_positions(low, part, axis, grid)
        else:
            room = window(low, like, grid, 0, size)
            piece = low.as_signal(part, room.dims, room)
        pieces.append((start, piece))
        padded = window(low, piece, grid, -start, total)
        result = padded if result is None else low.pointwise("add", result, padded)
    assert result is not None
    origin = result.features.views[0].origin
    assert isinstance(origin, Value)
    low.joined[origin] = (result, grid, pieces)
    return result


def as_positions(low: Lowering, x: Signal, axis: int, grid: Axis) -> Signal:
    """x, whose axis of size 1 is the one row (column) of its grid."""
    if only_axis(x.dims[axis]) is grid:
        return x
    if x.has(grid) or x.extent(grid) != 1 or x.shape[axis] != 1:
        low.refuse(f"it joins features along an axis of {grid.value}")
    return replace(x, dims=(*x.dims[:axis], (Atom(grid, 1),), *x.dims[axis + 1 :]))


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
    both = join_features(_aligned(low, [x, src], axis), axis)
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
        values = low.expand(values, _grown(low, values, shape))
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
