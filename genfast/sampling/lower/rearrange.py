"""What rules of movement share: parts, windows and joins of signals along an axis."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast.sampling.capture.recording import Node
from genfast.sampling.lower.flat import flatten
from genfast.sampling.lower.layout import (
    Atom,
    Axis,
    Dim,
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
from genfast.sampling.lower.lowering import Lowering, Operand, named
from genfast.sampling.values import Value


def grown_dims(low: Lowering, x: Signal, shape: Sequence[int]) -> Dims:
    """The axes of x, those of size 1 expanded to a shape."""
    dims: Dims = ((),) * (len(shape) - len(x.dims)) + x.dims
    grown = []
    for dim, size in zip(dims, shape, strict=True):
        larger = dim_size(dim) == 1 and size > 1
        if larger and only_axis(dim) is not None:
            low.refuse(f"it repeats the {named(dim)}")
        grown.append(features_dim(size) if larger else dim)
    return tuple(grown)


def take_range(low: Lowering, x: Signal, axis: int, first: int, last: int, step: int = 1) -> Signal:
    """Positions first, first + step, ... below last of an axis."""
    dim = x.dims[axis]
    if (first, last, step) == (0, dim_size(dim), 1):
        return x
    if is_features(dim):
        return choose(x, axis, np.arange(first, last, step))
    grid = only_axis(dim)
    if grid is None:
        low.require_order((dim,))
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


def gather_axis(low: Lowering, x: Signal, axis: int, index: Tensor) -> Signal:
    """Positions of an axis by a constant index of one axis."""
    order = index.reshape(-1).to("cpu", torch.int64).numpy()
    order = np.where(order < 0, order + x.shape[axis], order)
    if is_features(x.dims[axis]):
        return choose(x, axis, order)
    if len(order) and (np.diff(order) == 1).all():
        return take_range(low, x, axis, int(order[0]), int(order[-1]) + 1)
    low.refuse(f"it chooses among the {named(x.dims[axis])}")


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


def join(low: Lowering, parts: Sequence[Operand], axis: int) -> Signal:
    """Concatenate along an axis of features, rows or columns."""
    parts = low.level(parts)
    signals = [each for each in parts if isinstance(each, Signal)]
    if any(_joins_positions(each.dims[axis]) for each in signals) or _adds_context(
        low, parts, axis
    ):
        parts = [flatten(low, each) if isinstance(each, Signal) else each for each in parts]
        signals = [each for each in parts if isinstance(each, Signal)]
    # Of one row or column and one feature, a view cannot tell which axis of size 1 is which.
    features = any(feature_size(each.dims[axis]) > 1 for each in signals)
    if features and all(is_features(each.dims[axis]) for each in signals):
        return join_features(aligned(low, parts, axis), axis)
    grids = {only_axis(each.dims[axis]) for each in signals} - {None}
    if not all(is_features(each.dims[axis]) or only_axis(each.dims[axis]) for each in signals):
        low.refuse(f"it joins the {named(signals[0].dims[axis])} of several tensors")
    if not grids:
        return join_features(aligned(low, parts, axis), axis)
    (grid,) = grids if len(grids) == 1 else (None,)
    if grid is None:
        low.refuse("it joins rows with columns")
    return _join_positions(low, parts, axis, grid)


def _joins_positions(dim: Dim) -> bool:
    """Whether an axis runs over rows, columns or features at once, but not over images."""
    return not is_features(dim) and len(dim) > 1 and dim[0].axis is not Axis.BATCH


def _adds_context(low: Lowering, parts: Sequence[Operand], axis: int) -> bool:
    """Whether what depends on conditions makes a last axis of positions longer than the input's.

    Such an axis goes on to a dense layer. One before it is a sequence behind a token, say, and so
    is the last one where several features, or indices, stand behind those of a token.
    """
    several = any(len(part.features) > 1 for part in parts if isinstance(part, Signal))
    if isinstance(parts[0], Node) and (several or not low.node.dtype.is_floating_point):
        return False
    sizes = [part.shape[axis] for part in parts if not isinstance(part, int | float)]
    grid = low.captured.input.shape[-1]
    return (
        sum(sizes) > grid
        and any(isinstance(part, Node) for part in parts)
        and all(
            only_axis(part.dims[axis]) is Axis.COLUMN and axis == len(part.dims) - 1
            for part in parts
            if isinstance(part, Signal)
        )
    )


def aligned(low: Lowering, parts: Sequence[Operand], axis: int) -> list[Signal]:
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
    first = max(parts, key=lambda part: feature_size(part.dims[axis]))
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
