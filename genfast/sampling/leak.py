"""Which layer looks ahead: one path from an output back to a symbol it must not know."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genfast.sampling.dependence import (
    NEVER,
    Dependence,
    Edge,
    Map,
    gather,
    output_edges,
    scatter,
)
from genfast.sampling.values import Conv, Graph, Input, Value

# Parameters of one draw: the first colour drawn, how many, and which output features they are.
Draws = Sequence[tuple[int, int, Sequence[int]]]


@dataclass(frozen=True)
class Leak:
    """One way by which an output depends on a symbol that is not drawn yet.

    `pixel`, `colour`: what is predicted; `sees_pixel`, `sees_colour`: what it looks at; `where`:
    the operation that looks ahead; `tap`: the (rows, columns) by which it does.
    """

    pixel: tuple[int, int]
    colour: int
    sees_pixel: tuple[int, int]
    sees_colour: int
    where: str
    tap: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Hop:
    """A step of a path from an input to an output: position `at` of `reader` reads by `edge`."""

    reader: Value | None  # None: the output itself
    klass: int
    at: tuple[int, int]
    edge: Edge

    @property
    def reads(self) -> tuple[int, int]:
        """The position read."""
        return (
            self.at[0] // self.edge.up * self.edge.down + self.edge.dy,
            self.at[1] // self.edge.up * self.edge.down + self.edge.dx,
        )


def explain(
    graph: Graph,
    found: Dependence,
    draws: Draws,
    due: Sequence[Map],
    late: Sequence[npt.NDArray[np.bool_]],
    colours: int,
    offset: int,
) -> Leak:
    """Follow one leak back to the input and name the step of the path that is to blame."""
    draw = next(d for d, marks in enumerate(late) if marks.any())
    row, column = map(int, np.argwhere(late[draw])[0])
    path = _path(graph, found, draws[draw][2], (row, column))
    hop = _culprit(graph, found, draws, due, path, offset)
    klass, (y, x) = path[-1].edge.klass, path[-1].reads
    seen = int(found[graph.input].ready[klass][y, x]) - 1
    pixel, colour = divmod(seen, colours)
    width = graph.input.width
    assert hop.reader is not None
    scale = (hop.edge.up, hop.edge.down)
    tap = (hop.edge.dy, hop.edge.dx)
    where = hop.reader.where or "an operation without a name"
    if scale != (1, 1):
        where += f" (stride {hop.edge.down}, upsampling {hop.edge.up})"
    return Leak((row, column + offset), draws[draw][0], divmod(pixel, width), colour, where, tap)


def _path(
    graph: Graph, found: Dependence, features: Sequence[int], at: tuple[int, int]
) -> list[_Hop]:
    """Return the hops from an output position to the latest input it depends on."""
    edges = output_edges(graph, found)
    options = [edge for feature in features for edge in edges[feature]]
    reader: Value | None = None
    klass, path = 0, []
    while True:
        hop = max(
            (_Hop(reader, klass, at, edge) for edge in options if _reaches(edge, at)),
            key=lambda hop: int(found[hop.edge.origin].ready[hop.edge.klass][hop.reads]),
        )
        path.append(hop)
        reader, klass, at = hop.edge.origin, hop.edge.klass, hop.reads
        if isinstance(reader.body, Input):
            return path
        options = found[reader].edges[klass]


def _reaches(edge: Edge, at: tuple[int, int]) -> bool:
    rows, columns = edge.rows(at[0] + 1), edge.columns(at[1] + 1)
    return bool(rows[at[0]] >= 0 and columns[at[1]] >= 0)


def _culprit(
    graph: Graph,
    found: Dependence,
    draws: Draws,
    due: Sequence[Map],
    path: list[_Hop],
    offset: int,
) -> _Hop:
    """Choose the hop without which the model would be causal, and which looks furthest ahead.

    Where none looks ahead in the grid (a centre tap where there must be none, a colour that sees
    a later one), the choice is the hop both of whose ends are in order without it, nearest to the
    input.
    """
    hops = [hop for hop in path if hop.reader is not None and not isinstance(hop.edge.origin, str)]
    ahead = {hop: _steps_ahead(graph, hop) for hop in hops}
    furthest = max(ahead.values(), default=0)
    suspects = [hop for hop in hops if ahead[hop] == furthest]
    if furthest > 0:
        return suspects[-1]
    limits = _limits(graph, found, draws, due)
    for hop in reversed(hops):
        if isinstance(hop.reader.body, Conv) and _clean_without(hop, found, limits):  # type: ignore[union-attr]
            return hop
    convs = [hop for hop in hops if isinstance(hop.reader.body, Conv)]  # type: ignore[union-attr]
    return (convs or hops)[-1]


def _steps_ahead(graph: Graph, hop: _Hop) -> int:
    """Return by how many pixels of the scan a hop looks ahead; negative: back."""
    reader, origin = hop.reader, hop.edge.origin
    assert reader is not None
    rows = hop.reads[0] * origin.row_scale - hop.at[0] * reader.row_scale
    columns = hop.reads[1] * origin.column_scale - hop.at[1] * reader.column_scale
    return rows * graph.input.width + columns


def _limits(
    graph: Graph, found: Dependence, draws: Draws, due: Sequence[Map]
) -> dict[tuple[Value, int, int], Map]:
    """Return for each (reader, its class, edge number) the limit it sets on what it reads."""
    edges = output_edges(graph, found)
    limit = {
        (value, klass): np.full((value.height, value.width), NEVER)
        for value, classes in found.items()
        for klass in range(len(classes.edges))
    }
    for (_, _, features), times in zip(draws, due, strict=True):
        for edge in {id(e): e for f in features for e in edges[f]}.values():
            scatter(edge, times, limit[edge.origin, edge.klass], np.minimum.at)
    set_by: dict[tuple[Value, int, int], Map] = {}
    for value in reversed(graph.values):
        for klass, group in enumerate(found[value].edges):
            for number, edge in enumerate(group):
                mine = np.full((edge.origin.height, edge.origin.width), NEVER)
                scatter(edge, limit[value, klass], mine, np.minimum.at)
                set_by[value, klass, number] = mine
                np.minimum(limit[edge.origin, edge.klass], mine, out=limit[edge.origin, edge.klass])
    for key, times in limit.items():
        set_by[key[0], key[1], -1] = times
    return set_by


def _clean_without(hop: _Hop, found: Dependence, limits: dict[tuple[Value, int, int], Map]) -> bool:
    """Would both ends of a hop be in order if it were cut?"""
    reader, origin = hop.reader, hop.edge.origin
    assert reader is not None
    ready = np.zeros((reader.height, reader.width), dtype=np.int64)
    for edge in found[reader].edges[hop.klass]:
        if edge is not hop.edge:
            times = found[edge.origin].ready[edge.klass]
            np.maximum(ready, gather(edge, times, ready, missing=0), out=ready)
    if (ready > limits[reader, hop.klass, -1]).any():
        return False
    allowed = np.full((origin.height, origin.width), NEVER)
    for (value, klass, number), times in limits.items():
        if number >= 0:
            edge = found[value].edges[klass][number]
            if edge is not hop.edge and (edge.origin, edge.klass) == (origin, hop.edge.klass):
                np.minimum(allowed, times, out=allowed)
    return not (found[origin].ready[hop.edge.klass] > allowed).any()
