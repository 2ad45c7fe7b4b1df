"""Which layer looks ahead: one path from an output back to a symbol it must not know."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from genfast.sampling.probe.dependence import (
    NEVER,
    Dependence,
    Edge,
    Link,
    Map,
    analyse,
    gather,
    output_edges,
    scatter,
    single,
    unique,
)
from genfast.sampling.probe.sight import Sight
from genfast.sampling.values import Attend, Conv, Graph, Input, Previous, Value

# Parameters of one draw: the first colour drawn, how many, and which output features they are.
Draws = Sequence[tuple[int, int, Sequence[int]]]

_NAMELESS = "an operation without a name"


@dataclass(frozen=True)
class Leak:
    """One way by which an output depends on a symbol that is not drawn yet.

    `pixel`, `colour`: what is predicted; `sees_pixel`, `sees_colour`: what it looks at; `where`:
    the operation that looks ahead; `tap`: the (rows, columns) by which it does; `reads`: the
    operation whose numbers it looks at; `moved`: the pad or slice that shifted them, if one did.
    """

    pixel: tuple[int, int]
    colour: int
    sees_pixel: tuple[int, int]
    sees_colour: int
    where: str
    tap: tuple[int, int]
    reads: str
    moved: str = ""


@dataclass(frozen=True, eq=False)
class _Hop:
    """A step of a path from an input to an output: position `at` of `reader` reads by `edge`.

    An attention reads many positions: then `reads` is the latest of them.
    """

    reader: Value | None  # None: the output itself
    klass: int
    at: tuple[int, int]
    edge: Edge
    reads: tuple[int, int]  # the position read


@dataclass(eq=False)
class _Cut:
    """Edges taken out of a graph, or others in their place, and of links the marks taken out."""

    edges: dict[Edge, Edge | None]
    links: dict[Link, npt.NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many edges are gone as a whole."""
        marks = (int((link.live & mask).sum()) for link, mask in self.links.items())
        return sum(left is None for left in self.edges.values()) + sum(marks)


def explain(
    graph: Graph,
    time: npt.NDArray[np.int64],
    draws: Draws,
    due: Sequence[Map],
    late: Sequence[npt.NDArray[np.bool_]],
    colours: int,
    offset: int,
) -> Leak:
    """Follow one leak back to the input and name the step of the path that is to blame."""
    draw = next(d for d, marks in enumerate(late) if marks.any())
    row, column = map(int, np.argwhere(late[draw])[0])
    found = analyse(graph, time)
    path = _path(graph, found, draws[draw][2], (row, column))
    ahead = [_steps_ahead(graph, hop, offset) for hop in path]
    if max(ahead) > 0:
        hop = [hop for hop, steps in zip(path, ahead, strict=True) if steps == max(ahead)][-1]
    else:
        # A feature that leaks must not be lumped together with those that are rightly as late.
        found = analyse(graph, time, join=False)
        path = _path(graph, found, draws[draw][2], (row, column))
        hop = _culprit(graph, found, draws, due, path)
    klass, (y, x) = path[-1].edge.klass, path[-1].reads
    seen = int(found[graph.input].ready[klass][y, x]) - 1
    pixel, colour = divmod(seen, colours)
    width = graph.input.width
    scale = (hop.edge.up, hop.edge.down)
    tap = (hop.edge.dy, hop.edge.dx)
    if hop.edge.sight is not None:
        tap = (hop.reads[0] - hop.at[0], hop.reads[1] - hop.at[1])
    where = "the model's output" if hop.reader is None else hop.reader.where or _NAMELESS
    reads = hop.edge.origin.where or _NAMELESS
    if scale != (1, 1):
        where += f" (stride {hop.edge.down}, upsampling {hop.edge.up})"
    predicted = (row, column + offset)
    return Leak(
        predicted, draws[draw][0], divmod(pixel, width), colour, where, tap, reads, hop.edge.moved
    )


def _path(
    graph: Graph, found: Dependence, features: Sequence[int], at: tuple[int, int]
) -> list[_Hop]:
    """Return the hops from an output position to the latest input it depends on."""
    edges = output_edges(graph, found)
    options = [edge for feature in features for edge in edges[feature]]
    reader: Value | None = None
    klass, path = 0, []
    while True:
        hops = [
            _Hop(reader, klass, at, edge, place)
            for edge in options
            if (place := _place_read(reader, edge, at, found)) is not None
        ]
        hop = max(
            hops, key=lambda each: int(found[each.edge.origin].ready[each.edge.klass][each.reads])
        )
        path.append(hop)
        reader, klass, at = hop.edge.origin, hop.edge.klass, hop.reads
        if isinstance(reader.body, Input):
            return path
        options = found[reader].edges_of(klass)


def _place_read(
    reader: Value | None, edge: Edge, at: tuple[int, int], found: Dependence
) -> tuple[int, int] | None:
    """Return the position that a position of a reader sees, the latest of several; None: none."""
    if edge.sight is not None:
        assert reader is not None
        times = found[edge.origin].ready[edge.klass]
        place = edge.sight.newest(at[0] * reader.width + at[1], times.ravel())
        return divmod(place, times.shape[1]) if place >= 0 else None
    row, column = edge.rows(at[0] + 1)[at[0]], edge.columns(at[1] + 1)[at[1]]
    return (int(row), int(column)) if row >= 0 and column >= 0 else None


def _steps_ahead(graph: Graph, hop: _Hop, offset: int) -> int:
    """Return by how many pixels of the scan a hop looks ahead; negative: back."""
    reader, origin, whole = hop.reader, hop.edge.origin, graph.input.width
    if reader is not None and 1 in (reader.height * reader.width, origin.height * origin.width):
        return 0  # a single position that stands for all has no place among them
    # Output (i, j) belongs to the pixel that it predicts, `offset` columns to the right. Where
    # convolutions without padding have cut columns off, these were the first ones.
    row, column = hop.at if reader is not None else (hop.at[0], hop.at[1] + offset)
    if reader is not None:
        row, column = row * reader.row_scale, _natural(reader, column, whole)
    return (hop.reads[0] * origin.row_scale - row) * whole + (
        _natural(origin, hop.reads[1], whole) - column
    )


def _natural(value: Value, column: int, width: int) -> int:
    """Return the input column that belongs to a column of a value."""
    return column * value.column_scale + max(0, width - value.width * value.column_scale)


def _culprit(
    graph: Graph, found: Dependence, draws: Draws, due: Sequence[Map], path: list[_Hop]
) -> _Hop:
    """Choose the hop without which the model would be causal and yet see the most.

    Cutting any hop of a path ends the leak along it, but a hop that is in its right keeps the
    predictions from what they may know. Of equals: one that a pad or slice has shifted, then the
    one with the least to cut, then the one nearest to the input.
    """
    limits = _limits(graph, found, draws, due)
    # Pointwise operations keep what they are given: a layer with weights, or a shift, is to blame.
    path = [hop for hop in path if hop.edge.moved or _joins_positions(hop)] or path
    best, best_score = path[-1], (False, -1, False, 0)
    for hop in path:
        cut = _violating(hop, found, limits)
        ready = _output_times(graph, found, draws, cut)
        heals = all(bool((r <= limit).all()) for r, limit in zip(ready, due, strict=True))
        seen = int(sum(r.sum() for r in ready))
        score = (heals, seen, bool(hop.edge.moved), -cut.size)
        if score >= best_score:
            best, best_score = hop, score
    return best


def _joins_positions(hop: _Hop) -> bool:
    return hop.reader is not None and isinstance(hop.reader.body, Conv | Attend | Previous)


def _violating(hop: _Hop, found: Dependence, limits: dict[tuple[Value, int], Map]) -> _Cut:
    """Return the edges like a hop's, of all classes of its reader, that see what is too late."""
    if hop.reader is None:
        return _Cut({hop.edge: None})

    def kind(edge: Edge) -> tuple[object, ...]:
        # What one mask hides or shows: keys and values of an attention alike.
        seen = edge.sight is not None
        return () if seen else (edge.origin, edge.dy, edge.dx, edge.phase)

    cut = _Cut({})
    classes = found[hop.reader]
    for link in classes.links:
        if link.origin is hop.edge.origin:
            own = single(limits[hop.reader, klass] for klass in range(len(classes.ready)))
            cut.links[link] = single(found[link.origin].ready)[None] > own[:, None]
    for klass, edges in enumerate(found[hop.reader].edges):
        limit = limits[hop.reader, klass]
        for edge in edges:
            if kind(edge) == kind(hop.edge):
                times = found[edge.origin].ready[edge.klass]
                if (gather(edge, times, limit, missing=0) > limit).any():
                    cut.edges[edge] = _in_time(edge, times, limit)
    return cut


def _in_time(edge: Edge, times: Map, limit: Map) -> Edge | None:
    """An edge without what is too late: of an attention some pairs of positions, else all of it."""
    if edge.sight is None:
        return None
    return replace(edge, sight=Sight(edge.sight.seen & (times.ravel() <= limit.reshape(-1, 1))))


def _output_times(graph: Graph, found: Dependence, draws: Draws, cut: _Cut) -> list[Map]:
    """Return when each draw's parameters would be ready if some edges were cut."""
    ready: dict[tuple[Value, int], Map] = {}

    def latest(edges: Iterable[Edge], shape: tuple[int, int]) -> Map:
        times = np.zeros(shape, dtype=np.int64)
        for edge in edges:
            left = cut.edges.get(edge, edge)
            if left is not None:
                seen = gather(left, ready[edge.origin, edge.klass], times, missing=0)
                np.maximum(times, seen, out=times)
        return times

    for value in graph.values:
        for klass, edges in enumerate(found[value].edges):
            is_input = isinstance(value.body, Input)
            times = found[value].ready[klass]
            ready[value, klass] = times if is_input else latest(edges, (value.height, value.width))
        for link in found[value].links:
            origin = [ready[link.origin, k] for k in range(link.live.shape[1])]
            for klass, time in enumerate(link.latest(origin, cut.links.get(link))):
                np.maximum(ready[value, klass], time, out=ready[value, klass])
    outputs = output_edges(graph, found)
    shape = (graph.output_height, graph.output_width)
    return [latest(unique(outputs, features), shape) for _, _, features in draws]


def _limits(
    graph: Graph, found: Dependence, draws: Draws, due: Sequence[Map]
) -> dict[tuple[Value, int], Map]:
    """Return for each class until when its readers need it to be ready."""
    outputs = output_edges(graph, found)
    limit = {
        (value, klass): np.full((value.height, value.width), NEVER)
        for value, classes in found.items()
        for klass in range(len(classes.edges))
    }
    for (_, _, features), times in zip(draws, due, strict=True):
        for edge in unique(outputs, features):
            scatter(edge, times, limit[edge.origin, edge.klass], np.minimum)
    for value in reversed(graph.values):
        for klass, group in enumerate(found[value].edges):
            for edge in group:
                scatter(edge, limit[value, klass], limit[edge.origin, edge.klass], np.minimum)
        for link in found[value].links:
            own = single(limit[value, klass] for klass in range(len(link.live)))
            for klass, time in enumerate(link.earliest(own)):
                np.minimum(limit[link.origin, klass], time, out=limit[link.origin, klass])
    return limit
