"""What every number of a captured model depends on, and when along the scan it can be computed.

Time counts symbols in scan order: a number is ready at time t if it needs none but the first t.
The features of a value fall into classes that are ready alike; per class there is a map
[height, width] of ready times, and the edges by which it depends on classes of other values.
Dependence is read from the weights: a tap whose weights are exactly zero is no dependence.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genfast.sampling.values import (
    Conv,
    Graph,
    Input,
    Lookup,
    Pointwise,
    Reduce,
    Source,
    Sources,
    Value,
)

Map = npt.NDArray[np.int64]  # [height, width]
AnyMap = npt.NDArray[Any]
NEVER = np.int64(1) << 60


@dataclass(frozen=True, eq=False)
class Edge:
    """A class of a value reads class `klass` of `origin`.

    Reader's position (i, j) with (i % up, j % up) == phase reads (i // up * down + dy,
    j // up * down + dx) where that lies in rows top .. bottom - 1, columns left .. right - 1.
    `moved` names the operation that shifted what is read, if one did.
    """

    origin: Value
    klass: int
    dy: int = 0
    dx: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    up: int = 1
    down: int = 1
    phase: tuple[int, int] = (0, 0)
    moved: str = ""

    def rows(self, height: int) -> npt.NDArray[np.int64]:
        """Return for each reader's row the row it reads, -1 for none."""
        return _axis(height, self.up, self.down, self.phase[0], self.dy, self.top, self.bottom)

    def columns(self, width: int) -> npt.NDArray[np.int64]:
        """Return for each reader's column the column it reads, -1 for none."""
        return _axis(width, self.up, self.down, self.phase[1], self.dx, self.left, self.right)


def _axis(
    size: int, up: int, down: int, phase: int, shift: int, first: int, last: int
) -> npt.NDArray[np.int64]:
    position = np.arange(size)
    read = position // up * down + shift
    return np.where((position % up == phase) & (read >= first) & (read < last), read, -1)


@dataclass(eq=False)
class Classes:
    """The classes of a value: `of` [features] numbers them; `edges` and `ready` have one each."""

    of: npt.NDArray[np.int64]
    edges: list[list[Edge]]
    ready: list[Map]


Dependence = dict[Value, Classes]


def analyse(graph: Graph, time: npt.NDArray[np.int64], join: bool = True) -> Dependence:
    """Find the classes of every value.

    Args:
        graph: the captured model.
        time: [features of the input, height, width]: the number of symbols known once this one is.
        join: make one class of those that are ready alike everywhere.
    """
    found: Dependence = {}
    for value in graph.values:
        if isinstance(value.body, Input):
            features = np.arange(value.features)
            found[value] = _merge(features, [[] for _ in features], list(time))
            continue
        patterns: dict[tuple[int, ...], int] = {}
        of = np.empty(value.features, dtype=np.int64)
        edges: list[list[Edge]] = []
        columns, pool = _live(value, found)
        for feature, pattern in enumerate(map(tuple, columns)):
            if pattern not in patterns:
                patterns[pattern] = len(edges)
                edges.append([pool[index] for index in np.flatnonzero(pattern)])
            of[feature] = patterns[pattern]
        ready = [_latest(value, group, found) for group in edges]
        found[value] = _merge(of, edges, ready) if join else Classes(of, edges, ready)
    return found


def gather(edge: Edge, source: Map, like: Map, missing: int) -> Map:
    """Return what the positions of a reader (a map like this) see of a source's map."""
    rows, columns = edge.rows(like.shape[0]), edge.columns(like.shape[1])
    seen: Map = source[np.ix_(rows, columns)]
    return np.where((rows >= 0)[:, None] & (columns >= 0)[None, :], seen, missing)


def scatter(edge: Edge, reader: AnyMap, target: AnyMap, combine: Callable[..., None]) -> None:
    """Combine a reader's map into the positions of its source's map `target`, in place.

    `combine` is a ufunc's `at`: np.minimum.at or np.maximum.at.
    """
    rows, columns = edge.rows(reader.shape[0]), edge.columns(reader.shape[1])
    i, j = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
    combine(target, np.ix_(rows[i], columns[j]), reader[np.ix_(i, j)])


def output_edges(graph: Graph, found: Dependence) -> list[list[Edge]]:
    """Return for each output feature the edges by which it reads values: one, or none."""
    edges: list[list[Edge]] = []
    for source in graph.outputs:
        for feature in features_of(source):
            if isinstance(source.origin, Value):
                edges.append([_edge(source, int(found[source.origin].of[feature]))])
            else:
                edges.append([])
    return edges


def unique(edges: Sequence[Sequence[Edge]], features: Iterable[int]) -> list[Edge]:
    """Return the edges of some output features, equal ones once."""
    return list({_identity(edge): edge for feature in features for edge in edges[feature]}.values())


def features_of(source: Source) -> npt.NDArray[np.int64]:
    """Return the origin's features that a source reads, in order."""
    return source.start + source.step * np.arange(source.count)


def spread(sources: Sources) -> Iterator[tuple[int, Source]]:
    """Yield each source with the number of its first feature among the joined ones."""
    first = 0
    for source in sources:
        yield first, source
        first += source.count


def _edge(source: Source, klass: int) -> Edge:
    origin = source.origin
    assert isinstance(origin, Value)
    return Edge(
        origin,
        klass,
        source.dy,
        source.dx,
        max(source.top, 0),
        min(source.bottom, origin.height),
        max(source.left, 0),
        min(source.right, origin.width),
        moved=source.moved,
    )


def conv_edge(conv: Conv, source: Source, klass: int, tap: int) -> Edge:
    """Return the edge by which a convolution reads a class of a source through a tap."""
    plain, at = _edge(source, klass), conv.taps[tap]
    return Edge(
        plain.origin,
        klass,
        source.dy + at.dy,
        source.dx + at.dx,
        max(plain.top, source.dy),
        min(plain.bottom, source.dy + conv.height),
        max(plain.left, source.dx),
        min(plain.right, source.dx + conv.width),
        conv.up,
        conv.down,
        at.phase,
        source.moved,
    )


def _live(value: Value, found: Dependence) -> tuple[npt.NDArray[np.bool_], list[Edge]]:
    """Return which features [features, edges] depend on which of a pool of edges."""
    body = value.body
    pool: list[Edge] = []
    columns: list[npt.NDArray[np.bool_]] = []

    def add(edge: Edge, live: npt.NDArray[np.bool_]) -> None:
        if live.any():
            pool.append(edge)
            columns.append(live)

    if isinstance(body, Conv):
        weights = [(tap.weight != 0).cpu().numpy() for tap in body.taps]
        for first, source in spread(body.inputs):
            for klass, chosen in _by_class(source, found):
                for index, weight in enumerate(weights):
                    live: npt.NDArray[np.bool_] = np.any(weight[first + chosen], axis=0)
                    if live.any():
                        add(conv_edge(body, source, klass, index), live)
        return _stack(columns, value.features), pool

    for first, source, read in _operands(body):
        for klass, chosen in _by_class(source, found):
            live = np.zeros(value.features, dtype=bool)
            live[read(first + chosen)] = True
            add(_edge(source, klass), live)
    return _stack(columns, value.features), pool


def _operands(
    body: object,
) -> Iterator[tuple[int, Source, Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]]]:
    """Yield the sources of a body with a function: joined features -> features that read them."""
    if isinstance(body, Pointwise):
        for operand in body.operands:
            if not isinstance(operand, int | float):
                for first, source in spread(operand):
                    yield first, source, lambda features: features
    elif isinstance(body, Reduce):
        size, inner = body.size, body.inner
        for first, source in spread(body.inputs):
            yield first, source, lambda f: f // (size * inner) * inner + f % inner
    elif isinstance(body, Lookup):
        width = body.weight.shape[1]
        for first, source in spread(body.indices):
            yield first, source, lambda f: (f[:, None] * width + np.arange(width)).ravel()


def _by_class(source: Source, found: Dependence) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield the classes a source reads, with the numbers of its features in each."""
    if isinstance(source.origin, Value):
        of = found[source.origin].of[features_of(source)]
        for klass in np.unique(of):
            yield int(klass), np.flatnonzero(of == klass)


def _stack(columns: list[npt.NDArray[np.bool_]], features: int) -> npt.NDArray[np.bool_]:
    return np.stack(columns, axis=1) if columns else np.zeros((features, 0), dtype=bool)


def _latest(value: Value, edges: list[Edge], found: Dependence) -> Map:
    ready = np.zeros((value.height, value.width), dtype=np.int64)
    for edge in edges:
        source = found[edge.origin].ready[edge.klass]
        np.maximum(ready, gather(edge, source, ready, missing=0), out=ready)
    return ready


def _merge(of: npt.NDArray[np.int64], edges: list[list[Edge]], ready: list[Map]) -> Classes:
    """Join classes that are ready alike everywhere, so that few remain."""
    kept: dict[bytes, int] = {}
    target: list[int] = []
    merged = Classes(of, [], [])
    for group, times in zip(edges, ready, strict=True):
        key = times.tobytes()
        if key not in kept:
            kept[key] = len(merged.edges)
            merged.edges.append([])
            merged.ready.append(times)
        target.append(kept[key])
        known = {_identity(edge) for edge in merged.edges[kept[key]]}
        merged.edges[kept[key]] += [edge for edge in group if _identity(edge) not in known]
    merged.of = np.asarray(target, dtype=np.int64)[of]
    return merged


def _identity(edge: Edge) -> tuple[object, ...]:
    bounds = (edge.top, edge.bottom, edge.left, edge.right)
    return (id(edge.origin), edge.klass, edge.dy, edge.dx, bounds, edge.up, edge.down, edge.phase)
