"""What every number of a captured model depends on, and when along the scan it can be computed.

Time counts symbols in scan order: a number is ready at time t if it needs none but the first t.
The features of a value fall into classes that are ready alike; per class there is a map
[height, width] of ready times, and the edges by which it depends on classes of other values.
Dependence is read from the weights: a tap whose weights are exactly zero is no dependence.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from genfast.sampling.probe.sight import Sight
from genfast.sampling.values import (
    Attend,
    Conv,
    Flatten,
    Graph,
    Input,
    Lookup,
    Pointwise,
    Previous,
    Reduce,
    Source,
    Sources,
    Unflatten,
    Value,
)

Map = npt.NDArray[np.int64]  # [height, width]
Times = npt.NDArray[np.int64]  # one for each class
AnyMap = npt.NDArray[Any]
NEVER = np.int64(1) << 60


@dataclass(frozen=True, eq=False)
class Edge:
    """A class of a value reads class `klass` of `origin`.

    Reader's position (i, j) with (i % up, j % up) == phase reads (i // up * down + dy,
    j // up * down + dx) where that lies in rows top .. bottom - 1, columns left .. right - 1.
    `moved` names the operation that shifted what is read, if one did. With a `sight`, a reader
    reads all positions that this says it sees, and the offsets are those of a plain read.
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
    sight: Sight | None = None

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


@dataclass(frozen=True, eq=False)
class Link:
    """A dense layer between single positions: class k reads those of `origin` that live[k] marks.

    It stands for as many edges as it has marks, which would be too many to visit one by one.
    """

    origin: Value
    live: npt.NDArray[np.bool_]  # [classes of the reader, classes of the origin]

    def latest(self, ready: Sequence[Map], cut: npt.NDArray[np.bool_] | None = None) -> Times:
        """Return for each class of the reader when all that it reads is ready; not what is cut."""
        live = self.live if cut is None else self.live & ~cut
        times: Times = np.where(live, single(ready), 0).max(axis=1, initial=0)
        return times

    def earliest(self, limits: Times) -> Times:
        """Return for each class of the origin the least limit of its readers, NEVER without any."""
        times: Times = np.where(self.live, limits[:, None], NEVER).min(axis=0, initial=NEVER)
        return times

    def edges(self, klass: int) -> list[Edge]:
        """Return the edges of one class of the reader."""
        return [_at_single(self.origin, int(k)) for k in np.flatnonzero(self.live[klass])]


def single(maps: Iterable[Map]) -> Times:
    """Return the numbers of maps of single positions."""
    return np.array([each[0, 0] for each in maps], dtype=np.int64)


@dataclass(eq=False)
class Classes:
    """The classes of a value: `of` [features] numbers them; `edges` and `ready` have one each.

    Dense layers between single positions have `links` instead of edges.
    """

    of: npt.NDArray[np.int64]
    edges: list[list[Edge]]
    ready: list[Map]
    links: list[Link] = field(default_factory=list)

    def edges_of(self, klass: int) -> list[Edge]:
        """Return all edges of a class, those that links stand for as well."""
        return [*self.edges[klass], *(edge for link in self.links for edge in link.edges(klass))]


Dependence = dict[Value, Classes]


def analyse(graph: Graph, time: npt.NDArray[np.int64], join: bool = True) -> Dependence:
    """Find the classes of every value.

    Args:
        graph: the captured model.
        time: [features of the input, height, width]: the number of symbols known once this one is.
        join: make one class of those that are ready alike everywhere.
    """
    found: Dependence = {}
    states = states_of(graph)
    for value in graph.values:
        if isinstance(value.body, Input):
            features = np.arange(value.features)
            found[value] = _merge(features, [[] for _ in features], list(time))
            continue
        if isinstance(value.body, Flatten):
            found[value] = _flattened(value, value.body, found, join)
            continue
        if is_dense(value):
            found[value] = _linked(value, found, join)
            continue
        if isinstance(value.body, Unflatten):
            of, edges = _dealt_out(value, value.body, found)
        elif isinstance(value.body, Previous):
            of, edges = np.zeros(value.features, np.int64), [list(_recalled(value.body, found))]
        elif isinstance(value.body, Pointwise):
            of, edges = _elementwise(value, value.body, found)
        else:
            of, edges = _by_pattern(*_live(value, found))
        if value in states:  # each of its features counts for all of them one position later
            of, edges = np.zeros_like(of), [_different(itertools.chain(*edges))]
        ready = [_latest(value, group, found) for group in edges]
        found[value] = _merge(of, edges, ready) if join else Classes(of, edges, ready)
    return found


def _by_pattern(
    live: npt.NDArray[np.bool_], pool: Sequence[Edge]
) -> tuple[npt.NDArray[np.int64], list[list[Edge]]]:
    """Make a class of the features that depend on the same edges: live [features, edges]."""
    patterns: dict[bytes, int] = {}
    of = np.empty(len(live), dtype=np.int64)
    edges: list[list[Edge]] = []
    for feature, pattern in enumerate(live):
        number = patterns.setdefault(pattern.tobytes(), len(edges))
        if number == len(edges):
            edges.append([pool[index] for index in np.flatnonzero(pattern).tolist()])
        of[feature] = number
    return of, edges


def gather(edge: Edge, source: Map, like: Map, missing: int) -> Map:
    """Return what the positions of a reader (a map like this) see of a source's map, the latest."""
    if edge.sight is not None:
        return edge.sight.latest(source.ravel(), missing).reshape(like.shape)
    rows, columns = edge.rows(like.shape[0]), edge.columns(like.shape[1])
    seen: Map = source[np.ix_(rows, columns)]
    return np.where((rows >= 0)[:, None] & (columns >= 0)[None, :], seen, missing)


def scatter(edge: Edge, reader: AnyMap, target: AnyMap, combine: np.ufunc) -> None:
    """Combine a reader's map into the positions of its source's map `target`, in place.

    `combine` is np.minimum or np.maximum.
    """
    if edge.sight is not None:
        edge.sight.combine(reader.ravel(), target.reshape(-1), combine)
        return
    rows, columns = edge.rows(reader.shape[0]), edge.columns(reader.shape[1])
    i, j = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
    combine.at(target, np.ix_(rows[i], columns[j]), reader[np.ix_(i, j)])


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
    return _different(edge for feature in features for edge in edges[feature])


def _different(edges: Iterable[Edge]) -> list[Edge]:
    return list({_identity(edge): edge for edge in edges}.values())


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

    if isinstance(body, Attend):
        for edge, live in _attended(value, body, found):
            add(edge, live)
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
    if isinstance(body, Reduce):
        size, inner = body.size, body.inner
        for first, source in spread(body.inputs):
            yield first, source, lambda f: f // (size * inner) * inner + f % inner
    elif isinstance(body, Lookup):
        width = body.weight.shape[1]
        for first, source in spread(body.indices):
            yield first, source, lambda f: (f[:, None] * width + np.arange(width)).ravel()


def _attended(
    value: Value, body: Attend, found: Dependence
) -> Iterator[tuple[Edge, npt.NDArray[np.bool_]]]:
    """Yield what features of an attention depend on: all of a head on its queries and keys."""
    depth = sum(source.count for source in body.keys) // body.heads
    head = np.arange(value.features) // (value.features // body.heads)
    for first, source in spread(body.queries):
        for klass, chosen in _by_class(source, found):
            yield _edge(source, klass), np.isin(head, (first + chosen) // depth)
    for number, sight in enumerate(body.sights):
        sees = body.sight_of == number
        for first, source in spread(body.keys):
            for klass, chosen in _by_class(source, found):
                heads = (first + chosen) // depth
                edge = replace(_edge(source, klass), sight=sight)
                yield edge, np.isin(head, heads[sees[heads]])
        for first, source in spread(body.values):
            for klass, chosen in _by_class(source, found):
                live = np.zeros(value.features, dtype=bool)
                live[first + chosen] = sees[head[first + chosen]]
                yield replace(_edge(source, klass), sight=sight), live


# Recurrences


def states_of(graph: Graph) -> set[Value]:
    """Return the values that are read one position later."""
    bodies = [value.body for value in graph.values]
    return {body.state for body in bodies if isinstance(body, Previous) and body.state is not None}


def carried_edges(body: Previous, found: Dependence) -> list[Edge]:
    """Return the edges by which the state before is read."""
    operands = [each for each in body.operands if not isinstance(each, int | float)]
    return [
        _edge(source, klass)
        for sources in operands
        for source in sources
        for klass, _ in _by_class(source, found)
    ]


def _recalled(body: Previous, found: Dependence) -> Iterator[Edge]:
    """Yield what a recurrence depends on so far: its inputs at its own position and all before.

    One that runs backwards may depend on all of them.
    """
    sight: Sight | None = None
    for source in body.inputs:
        for klass, _ in _by_class(source, found):
            edge = _edge(source, klass)
            count = edge.origin.height * edge.origin.width
            whole = np.full(count, count) if body.backwards else np.arange(count) + 1
            sight = sight or Sight.of_first(whole)
            yield replace(edge, sight=sight)


def _elementwise(
    value: Value, body: Pointwise, found: Dependence
) -> tuple[npt.NDArray[np.int64], list[list[Edge]]]:
    """Make classes of the features of a pointwise value: one edge per operand, or none."""
    pool: list[Edge] = []
    numbers: list[npt.NDArray[np.int64]] = []
    for operand in body.operands:
        if not isinstance(operand, int | float):
            read = np.full(value.features, -1)
            for first, source in spread(operand):
                for klass, chosen in _by_class(source, found):
                    read[first + chosen] = len(pool)
                    pool.append(_edge(source, klass))
            numbers.append(read)
    if not numbers:
        return np.zeros(value.features, np.int64), [[]]
    patterns, of = np.unique(np.stack(numbers), axis=1, return_inverse=True)
    return of.reshape(-1), [[pool[n] for n in dict.fromkeys(p) if n >= 0] for p in patterns.T]


# Values whose positions are features of a single one


def is_dense(value: Value) -> bool:
    """Whether a value is a dense layer between single positions."""
    body = value.body
    return (
        isinstance(body, Conv)
        and (value.height, value.width, body.height, body.width) == (1, 1, 1, 1)
        and (body.up, body.down) == (1, 1)
        and all((tap.dy, tap.dx, tap.phase) == (0, 0, (0, 0)) for tap in body.taps)
        and all(_at_origin(source) for source in body.inputs)
    )


def _at_origin(source: Source) -> bool:
    origin = source.origin
    inside = source.top <= 0 < source.bottom and source.left <= 0 < source.right
    plain = inside and (source.dy, source.dx, source.fill) == (0, 0, 0)
    return plain and (not isinstance(origin, Value) or (origin.height, origin.width) == (1, 1))


def _at_single(origin: Value, klass: int) -> Edge:
    return Edge(origin, klass, 0, 0, 0, 1, 0, 1)


def _linked(value: Value, found: Dependence, join: bool) -> Classes:
    """Return the classes of a dense layer; without `join` every feature is one."""
    body = value.body
    assert isinstance(body, Conv)
    marks: dict[Value, npt.NDArray[np.bool_]] = {}  # [features, classes of the origin]
    for first, source in spread(body.inputs):
        origin = source.origin
        if not isinstance(origin, Value):
            continue
        of = found[origin].of[features_of(source)]
        seen = marks.setdefault(
            origin, np.zeros((value.features, len(found[origin].ready)), dtype=bool)
        )
        for tap in body.taps:
            live = (tap.weight[first : first + source.count] != 0).cpu().numpy()
            klasses, joined = _any_by(of, live)
            seen[:, klasses] |= joined.T
    ready = np.zeros(value.features, dtype=np.int64)
    for origin, seen in marks.items():
        np.maximum(ready, Link(origin, seen).latest(found[origin].ready), out=ready)
    times, of = np.unique(ready, return_inverse=True) if join else (ready, np.arange(len(ready)))
    links = [Link(origin, _any_by(of, seen)[1]) for origin, seen in marks.items()]
    return Classes(of, [[] for _ in times], [np.full((1, 1), time) for time in times], links)


def _any_by(
    of: npt.NDArray[np.int64], marks: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the classes among `of`, and for each whether any of its rows of marks is true."""
    order = np.argsort(of, kind="stable")
    klasses, starts = np.unique(of[order], return_index=True)
    return klasses, np.logical_or.reduceat(marks[order], starts, axis=0)


def _flattened(value: Value, body: Flatten, found: Dependence, join: bool) -> Classes:
    """Return the classes of all positions' features, each of which reads one edge or none."""
    shape = (body.height, body.width)
    count = value.features // (body.height * body.width)
    number = np.full((*shape, count), -1)
    grid = np.zeros(shape, dtype=np.int64)
    ready = np.zeros((*shape, count), dtype=np.int64)
    pool: list[Edge] = []
    for first, source in spread(body.inputs):
        for klass, chosen in _by_class(source, found):
            plain = _edge(source, klass)
            times = gather(plain, found[plain.origin].ready[klass], grid, missing=-1)
            for i, j in np.argwhere(times >= 0).tolist():
                number[i, j, first + chosen] = len(pool)
                ready[i, j, first + chosen] = times[i, j]
                pool.append(replace(plain, dy=plain.dy + i, dx=plain.dx + j))
    key = ready if join else number
    _, first_of, of = np.unique(key.ravel(), return_index=True, return_inverse=True)
    of = of.reshape(-1)
    edges: list[list[Edge]] = [[] for _ in first_of]
    for klass, each in np.unique(np.stack((of, number.ravel())), axis=1).T.tolist():
        if each >= 0:
            edges[klass].append(pool[each])
    return Classes(of, edges, [np.full((1, 1), time) for time in ready.ravel()[first_of]])


def _dealt_out(
    value: Value, body: Unflatten, found: Dependence
) -> tuple[npt.NDArray[np.int64], list[list[Edge]]]:
    """Make a class of the features that read the same classes at all positions."""
    numbers: list[npt.NDArray[np.int64]] = []
    pool: list[Edge] = []
    for source in body.inputs:
        assert isinstance(source.origin, Value)
        numbers.append(len(pool) + found[source.origin].of[features_of(source)])
        pool += [_edge(source, klass) for klass in range(len(found[source.origin].ready))]
    up = max(value.height, value.width)
    places = list(np.ndindex(value.height, value.width))
    read = np.concatenate(numbers).reshape(len(places), value.features)
    patterns, of = np.unique(read, axis=1, return_inverse=True)
    edges = [
        [replace(pool[n], up=up, phase=at) for n, at in zip(p, places, strict=True)]
        for p in patterns.T.tolist()
    ]
    return of.reshape(-1), edges


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
    scale = (edge.up, edge.down, edge.phase)
    return (id(edge.origin), edge.klass, edge.dy, edge.dx, bounds, scale, id(edge.sight))
