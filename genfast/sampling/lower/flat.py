"""Dense layers over whole images: all positions as the features of a single one, and back.

Nothing is assumed of what such features mean: whether a dense layer is causal is read from its
weights, as for convolutions.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from genfast.sampling.lower.layout import (
    Atom,
    Axis,
    Dim,
    Signal,
    describe,
    dim_of,
    features_dim,
    is_features,
    only_axis,
)
from genfast.sampling.probe.dependence import analyse, features_of
from genfast.sampling.values import Flatten, Graph, Sources, Unflatten, Value

if TYPE_CHECKING:
    from genfast.sampling.lower.lowering import Lowering

Sizes = tuple[int, ...]
_POSITIONS = (Axis.ROW, Axis.COLUMN)


def places_of_grid(axes: int, rank: int) -> list[int]:
    """List where among some axes the grid's `rank` may begin: last, first, or in between."""
    return list(dict.fromkeys((axes - rank, *range(axes - rank))))


def output_ways(sizes: Sequence[int], spatial: Sequence[int]) -> list[tuple[Sizes, Sizes]]:
    """List how an output's axes [N, *sizes] may be [N, *before, *spatial, *after].

    Positions are axes of their own; else one axis holds them all, with features outside or inside,
    as [N, K * H * W] and [N, H * W, K] do. The most usual way comes first.
    """
    sizes, spatial = tuple(sizes), tuple(spatial)
    rank, positions = len(spatial), prod(spatial)
    exact: list[tuple[Sizes, Sizes]] = [
        (sizes[:first], sizes[first + rank :])
        for first in places_of_grid(len(sizes), rank)
        if sizes[first : first + rank] == spatial
    ]
    if exact:
        return exact
    ways: list[tuple[Sizes, Sizes]] = []
    for axis, size in enumerate(sizes):
        each, rest = divmod(size, positions)
        if rest == 0 and each > 0:
            outer = [each, *(k for k in range(1, each) if each % k == 0)]
            ways += [((*sizes[:axis], k), (each // k, *sizes[axis + 1 :])) for k in outer]
    return ways


def is_flat(low: "Lowering", x: Signal) -> bool:
    """Whether the positions of the model's input are features of x, on a single position."""
    placed = any(x.has(axis) for axis in _POSITIONS)
    return (x.height, x.width) == (1, 1) != low.grid and not placed


def flatten(low: "Lowering", x: Signal) -> Signal:
    """Make all positions of x features, in the order of its axes."""
    if (x.height, x.width) == (1, 1):
        return x
    for axis in _POSITIONS:
        if x.extent(axis) > 1 and not x.has(axis):
            low.require_order(x.dims)
            low.refuse(f"it flattens {describe(x.dims)}, which has no axis of {axis.value}")
    count = len(x.features)
    if x.features not in low.flattened:
        body = Flatten(x.features.sources(), x.height, x.width)
        total = count * x.height * x.width
        low.flattened[x.features] = low.emit(body, total, x, size=(1, 1), scale=low.grid)
        low.values[-1].where = x.features.views[0].origin.where
    atoms = [atom for dim in x.dims for atom in dim if atom.axis is not Axis.BATCH]
    places = np.indices([atom.size for atom in atoms]).reshape(len(atoms), -1)
    at = {axis: np.zeros(places.shape[1], np.int64) for axis in Axis}
    for atom, place in zip(atoms, places, strict=True):
        at[atom.axis] = at[atom.axis] * atom.size + place
    order = (at[Axis.ROW] * x.width + at[Axis.COLUMN]) * count + at[Axis.FEATURE]
    dims = tuple(
        dim_of([Atom(Axis.FEATURE, a.size) if a.axis in _POSITIONS else a for a in dim])
        for dim in x.dims
    )
    rows, columns = low.grid
    features = low.flattened[x.features].take(order)
    return replace(
        x, dims=dims, features=features, height=1, width=1, row_scale=rows, column_scale=columns
    )


def unflatten(low: "Lowering", x: Signal, before: Sizes, after: Sizes) -> Signal:
    """Deal the features of a flat x, seen as [*before, positions, *after], out to the grid."""
    height, width = low.grid
    order = np.arange(len(x.features)).reshape(prod(before), height, width, prod(after))
    x = replace(x, features=x.features.take(order.transpose(1, 2, 0, 3).reshape(-1)))
    if any(view.fill != 0 or not isinstance(view.origin, Value) for view in x.features.views):
        x = low.settle(x)
    count = prod(before) * prod(after)
    body = Unflatten(x.features.sources())
    features = low.emit(body, count, x, size=(height, width), scale=(1, 1))
    positions: list[Dim] = [(Atom(Axis.ROW, height),), (Atom(Axis.COLUMN, width),)]
    dims = (
        x.dims[0],
        *map(features_dim, before),
        *positions[2 - len(_spatial(low)) :],
        *map(features_dim, after),
    )
    return Signal(dims, features, height, width, 1, 1, x.dtype)


def image_of(low: "Lowering", x: Signal) -> Signal:
    """A flat x [images, features, positions] on the grid of the input, if it has its sizes."""
    spatial = _spatial(low)
    if is_flat(low, x) and x.shape[2:] == spatial and all(map(is_features, x.dims[1:])):
        return unflatten(low, x, x.shape[1:2], ())
    return x


def aligned(low: "Lowering", x: Signal, like: Signal) -> Signal | None:
    """A flat x on the grid, if its axes stand where rows and columns are axes of `like`."""
    if not is_flat(low, x):
        return x
    spatial = _spatial(low)
    axes = [only_axis(dim) for dim in like.dims]
    wanted = list(_POSITIONS[2 - len(spatial) :])
    first = next((k for k in range(len(axes)) if axes[k : k + len(wanted)] == wanted), 0)
    last = first + len(spatial)
    fits = len(x.dims) == len(axes) and (like.height, like.width) == low.grid
    if first == 0 or not fits or x.shape[first:last] != spatial:
        return None
    if not all(map(is_features, x.dims[1:])):
        return None
    return unflatten(low, x, x.shape[1:first], x.shape[last:])


def flat_output(low: "Lowering", x: Signal) -> Signal:
    """A flat output on the grid, arranged in the first way in which it looks ahead the least."""
    spatial = _spatial(low)
    images, *rest = x.dims
    known = [atom.axis for atom in images] == [Axis.BATCH] and all(map(is_features, rest))
    ways = output_ways(x.shape[1:], spatial) if known else []
    if not ways:
        wanted = ", ".join(map(str, spatial))
        low.refuse(f"expected an output [N, ..., {wanted}], got {describe(x.dims)}")
    if len(ways) > 1:
        times = _pixels_known(low, x.features.sources())
        ways = [min(ways, key=lambda way: _steps_ahead(times, *way))]
    return unflatten(low, x, *ways[0])


def _steps_ahead(times: np.ndarray, before: Sizes, after: Sizes) -> tuple[int, int]:
    """How many features need more than their own pixel, and how many need that itself."""
    by_pixel = times.reshape(prod(before), -1, prod(after))
    pixel = np.arange(by_pixel.shape[1])[:, None]
    return int((by_pixel > pixel + 1).sum()), int((by_pixel > pixel).sum())


def _pixels_known(low: "Lowering", sources: Sources) -> np.ndarray:
    """How many pixels must be known, in raster order, for each feature."""
    start = low.values[0]
    pixel = np.arange(start.height * start.width).reshape(start.height, start.width) + 1
    time = np.broadcast_to(pixel, (start.features, start.height, start.width))
    found = analyse(Graph(start, low.values, (), (), 1, 1), time)
    times = []
    for source in sources:
        if isinstance(source.origin, Value):
            classes = found[source.origin]
            each = np.array([ready[0, 0] for ready in classes.ready])
            times.append(each[classes.of[features_of(source)]])
        else:
            times.append(np.zeros(source.count, np.int64))
    return np.concatenate(times)


def _spatial(low: "Lowering") -> Sizes:
    """The sizes of the input's axes of positions."""
    return tuple(low.captured.input.shape[2:] or low.captured.input.shape[1:])
