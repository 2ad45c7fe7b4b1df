"""Is a model causal along the scan, and if not, which layer and which tap looks ahead?

The answer is read from the captured graph and its weights, not from the size of numbers: a leak
of 1e-4 counts as much as one of 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from genfast.errors import CausalityError, InputError
from genfast.sampling.capture import capture
from genfast.sampling.dependence import (
    NEVER,
    Dependence,
    Edge,
    Map,
    analyse,
    gather,
    output_edges,
    scatter,
)
from genfast.sampling.lower import lower
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


@dataclass(frozen=True)
class CausalityReport:
    """What a model's outputs depend on.

    Attributes:
        causal: every output depends only on symbols before the one it predicts.
        offset: the output at position t predicts the symbol at t + offset (sounds only, else 0).
        colours_in_order: some colour's prediction depends on colours before it in its own pixel.
        rows, columns_left, columns_right: the receptive field of the output in the middle of the
            last row, in pixels beside the one predicted.
        leak: where it looks ahead, if it does.
        causal_order: another scan order in which it is causal, if it is in none of ours.
    """

    causal: bool
    offset: int
    colours_in_order: bool
    rows: int
    columns_left: int
    columns_right: int
    leak: Leak | None = None
    causal_order: str | None = None

    def __str__(self) -> str:
        field = f"{self.rows} rows above, {self.columns_left} columns left, "
        field += f"{self.columns_right} right"
        if self.leak is None:
            order = "each colour sees those before it" if self.colours_in_order else "not in order"
            ahead = f", output t predicts symbol t + {self.offset}" if self.offset else ""
            return f"causal in raster order{ahead}; receptive field {field}; colours: {order}"
        leak = self.leak
        text = (
            f"not causal in raster order: the prediction of pixel {leak.pixel}, colour "
            f"{leak.colour} depends on pixel {leak.sees_pixel}, colour {leak.sees_colour}. "
            f"It looks ahead in {leak.where}, through the tap at row {leak.tap[0]:+d}, column "
            f"{leak.tap[1]:+d}"
        )
        if self.causal_order:
            text += f". It is causal in {self.causal_order} order"
        return text


def check_causality(
    model: nn.Module,
    event_shape: Sequence[int],
    *,
    distribution: object | None = None,
    conditioning: Mapping[str, Tensor] | None = None,
    forward: Callable[..., Tensor] | None = None,
    predicts: str | None = None,
) -> CausalityReport:
    """Report which symbols a model's outputs depend on, from its graph and weights.

    Args:
        model: maps [N, C, H, W] (or [N, C, T], [N, T]) to predictions on the same grid.
        event_shape: (C, H, W), (C, T) or (T,).
        distribution: tells which outputs predict which colour, and what the model's input is;
            without it the outputs count as colour c's where an axis of theirs has size C, else as
            the whole pixel's, and the input is random numbers.
        conditioning: as `genfast.compile_sampler` takes it.
        forward: likewise.
        predicts: likewise.

    Returns:
        A report; print it. The model is left as it was.

    Raises:
        UnsupportedModelError: the model contains what cannot be followed.
    """
    from genfast.sampling.sampler import example_input

    shape = tuple(event_shape)
    x = example_input(model, shape, distribution)
    captured = capture(model, x, dict(conditioning or {}), forward)
    graph = lower(captured)
    colours = shape[0] if len(shape) > 1 else 1
    if distribution is not None:
        draws: Draws = distribution.draws(graph.output_sizes, colours)  # type: ignore[attr-defined]
    else:
        draws = _guess_draws(graph.output_sizes, colours)
    return report_causality(graph, colours, draws, predicts)


def report_causality(
    graph: Graph, colours: int, draws: Draws, predicts: str | None = None
) -> CausalityReport:
    """Report on a captured model; see `check_causality`."""
    _height, width = graph.input.height, graph.input.width
    time = scan_time(graph, colours)
    found = analyse(graph, time)
    ready = _output_ready(graph, found, draws)
    offset = find_offset(graph, ready, colours, predicts)
    due = [_due(graph, width, colours, first, offset) for first, _, _ in draws]
    late = [_late(times, limit, width, offset) for times, limit in zip(ready, due, strict=True)]
    rows, left, right = _receptive_field(graph, found)
    limits = [_due(graph, width, colours, 0, offset) for _ in draws]
    in_order = any(bool((r > limit).any()) for r, limit in zip(ready, limits, strict=True))
    if not any(map(np.any, late)):
        return CausalityReport(True, offset, in_order and len(draws) > 1, rows, left, right)
    leak = _explain(graph, found, draws, due, late, colours, offset)
    order = _other_order(graph, colours, draws, predicts)
    return CausalityReport(False, offset, in_order, rows, left, right, leak, order)


def require_causal(report: CausalityReport) -> None:
    """Refuse a model that looks ahead."""
    if not report.causal:
        raise CausalityError(report)


def scan_time(graph: Graph, colours: int) -> npt.NDArray[np.int64]:
    """Return [input features, H, W]: how many symbols are known once this one is."""
    value = graph.input
    pixel = np.arange(value.height * value.width).reshape(value.height, value.width) * colours
    colour = np.arange(value.features) // (value.features // colours)
    time: npt.NDArray[np.int64] = pixel[None] + colour[:, None, None] + 1
    return time


def find_offset(graph: Graph, ready: Sequence[Map], colours: int, predicts: str | None) -> int:
    """Return by how much a sound's prediction is ahead of its position; 0 for images.

    The output at position t of a model that gives T' of T predictions, aligned at their ends,
    predicts symbol t + T - T' ("current"), or the one after it ("next").
    """
    if predicts not in (None, "current", "next"):
        raise InputError(
            f'predicts: expected "current", "next" or None (found out), got {predicts!r}'
        )
    missing = graph.input.width - graph.output_width
    if graph.input.height > 1 or graph.output_height != graph.input.height:
        fits = (graph.output_height, graph.output_width) == (graph.input.height, graph.input.width)
        if not fits or predicts == "next":
            got = f"{graph.output_height} x {graph.output_width}"
            raise InputError(
                "compile_sampler: expected predictions of the pixel at their own position, on the "
                f"input's grid {graph.input.height} x {graph.input.width}, got grid {got}, "
                f"predicts={predicts!r}"
            )
        return 0
    if predicts is not None:
        return missing + (predicts == "next")
    position = np.arange(graph.output_width) * colours
    ahead = max(int((times[0] - position).max()) for times in ready)
    # A prediction of symbol t + offset may know (t + offset) * colours symbols and its own colours
    # before it, so that with one colour "current" is ahead <= missing.
    return missing if ahead <= missing * colours + (colours - 1) else missing + 1


def _guess_draws(sizes: tuple[int, ...], colours: int) -> Draws:
    features = np.arange(int(np.prod(sizes))).reshape(sizes)
    axes = [axis for axis, size in enumerate(sizes) if size == colours]
    if colours == 1 or not axes:
        return [(0, colours, features.ravel().tolist())]
    # Of several axes that fit, the second is the colours': [N, K, C, H, W] is the common layout.
    by_colour = np.moveaxis(features, axes[-1], 0)
    return [(c, 1, by_colour[c].ravel().tolist()) for c in range(colours)]


def _output_ready(graph: Graph, found: Dependence, draws: Draws) -> list[Map]:
    """Return for each draw when all of its parameters are ready, [output height, width]."""
    edges = output_edges(graph, found)
    maps = []
    for _, _, features in draws:
        ready = np.zeros((graph.output_height, graph.output_width), dtype=np.int64)
        for edge in {id(e): e for f in features for e in edges[f]}.values():
            times = found[edge.origin].ready[edge.klass]
            np.maximum(ready, gather(edge, times, ready, missing=0), out=ready)
        maps.append(ready)
    return maps


def _due(graph: Graph, width: int, colours: int, first: int, offset: int) -> Map:
    """Return how many symbols each prediction may know, [output height, width]."""
    rows, columns = np.indices((graph.output_height, graph.output_width))
    due: Map = (rows * width + columns + offset) * colours + first
    return due


def _late(ready: Map, due: Map, width: int, offset: int) -> npt.NDArray[np.bool_]:
    """Mark the predictions that know too much; those of symbols past the end do not count."""
    late: npt.NDArray[np.bool_] = ready > due
    late[:, max(0, width - offset) :] = False
    return late


def _receptive_field(graph: Graph, found: Dependence) -> tuple[int, int, int]:
    """Return rows above, columns left and right that the middle of the last row depends on."""
    needed = {
        value: [np.zeros((value.height, value.width), dtype=bool) for _ in classes.edges]
        for value, classes in found.items()
    }
    row, column = graph.output_height - 1, graph.output_width // 2
    start = np.zeros((graph.output_height, graph.output_width), dtype=bool)
    start[row, column] = True
    for edges in output_edges(graph, found):
        for edge in edges:
            scatter(edge, start, needed[edge.origin][edge.klass], np.maximum.at)
    for value in reversed(graph.values):
        for klass, edges in enumerate(found[value].edges):
            if needed[value][klass].any():
                for edge in edges:
                    reader = needed[value][klass]
                    scatter(edge, reader, needed[edge.origin][edge.klass], np.maximum.at)
    seen = np.logical_or.reduce(needed[graph.input])
    rows, columns = np.nonzero(seen)
    if len(rows) == 0:
        return 0, 0, 0
    return (
        int(row - rows.min()),
        max(0, int(column - columns.min())),
        max(0, int(columns.max() - column)),
    )


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


def _explain(
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


def _other_order(graph: Graph, colours: int, draws: Draws, predicts: str | None) -> str | None:
    """Name another scan order in which the model is causal, if it is in one of these."""
    height, width = graph.input.height, graph.input.width
    if graph.output_height != height or graph.output_width != width:
        return None
    raster = np.arange(height * width).reshape(height, width)
    columns_first = np.arange(height * width).reshape(width, height).T
    orders = {
        "reversed raster": raster[::-1, ::-1],
        "column by column": columns_first,
        "right to left within rows": raster[:, ::-1],
        "bottom row first": raster[::-1],
    }
    features = graph.input.features // colours
    for name, order in orders.items():
        colour = np.arange(graph.input.features) // features
        time = order[None] * colours + colour[:, None, None] + 1
        ready = _output_ready(graph, analyse(graph, time), draws)
        firsts = [first for first, _, _ in draws]
        if all((r <= order * colours + f).all() for r, f in zip(ready, firsts, strict=True)):
            return name
    return None


def random_input(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers to trace a model with when no distribution says what it takes."""
    return torch.rand(shape, dtype=dtype, device=device)
