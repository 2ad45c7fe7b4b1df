"""Is a model causal along the scan, and if not, which layer and which tap looks ahead?

The answer is read from the captured graph and its weights, not from the size of numbers: a leak
of 1e-4 counts as much as one of 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from genfast.errors import CausalityError, InputError
from genfast.sampling.probe.dependence import (
    Dependence,
    Map,
    analyse,
    gather,
    output_edges,
    scatter,
    unique,
)
from genfast.sampling.probe.leak import Draws, Leak, explain
from genfast.sampling.values import Graph


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
            ahead = f", output t predicts symbol t + {self.offset}" if self.offset else ""
            order = "; each colour sees those before it" if self.colours_in_order else ""
            return f"causal in raster order{ahead}; receptive field {field}{order}"
        leak = self.leak
        text = (
            f"not causal in raster order: the prediction of pixel {leak.pixel}, colour "
            f"{leak.colour} depends on pixel {leak.sees_pixel}, colour {leak.sees_colour}. "
            f"It looks ahead in {leak.where}, through the tap at row {leak.tap[0]:+d}, column "
            f"{leak.tap[1]:+d}, which reads {leak.reads}"
        )
        if leak.moved:
            text += f", shifted by {leak.moved}"
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
    from genfast.sampling.capture.model import capture
    from genfast.sampling.conditioning import traced_conditions
    from genfast.sampling.line import with_lines
    from genfast.sampling.lower.lowering import lower
    from genfast.sampling.model_call import ModelCall
    from genfast.sampling.surroundings import ordinary_tensors

    conditions = traced_conditions(conditioning)
    call = ModelCall(model, event_shape, distribution, forward, "check_causality")  # type: ignore[arg-type]

    def attempt(call: ModelCall, predicts: str | None) -> CausalityReport:
        with ordinary_tensors():
            x = call.example(conditions)
        graph = lower(capture(model, x, conditions, call.forward))
        colours, sizes = call.grid[0], graph.output_sizes
        given = call.distribution
        draws: Draws = given.draws(sizes, colours) if given else _guess_draws(sizes, colours)
        return report_causality(graph, colours, draws, predicts)

    report, lines = with_lines(call, conditions, predicts, attempt)
    return report if lines is None else lines.line.report(report)


def report_causality(
    graph: Graph,
    colours: int,
    draws: Draws,
    predicts: str | None = None,
    found: Dependence | None = None,
) -> CausalityReport:
    """Report on a captured model; see `check_causality`. `found`: its analysis, if there is one."""
    _height, width = graph.input.height, graph.input.width
    found = analyse(graph, scan_time(graph, colours)) if found is None else found
    ready = _output_ready(graph, found, draws)
    offset = find_offset(graph, ready, colours, predicts)
    due = [_due(graph, width, colours, first, offset) for first, _, _ in draws]
    late = [_late(times, limit, width, offset) for times, limit in zip(ready, due, strict=True)]
    rows, left, right = _receptive_field(graph, found)
    limits = [_due(graph, width, colours, 0, offset) for _ in draws]
    in_order = any(bool((r > limit).any()) for r, limit in zip(ready, limits, strict=True))
    if not any(map(np.any, late)):
        return CausalityReport(True, offset, in_order and len(draws) > 1, rows, left, right)
    leak = explain(graph, scan_time(graph, colours), draws, due, late, colours, offset)
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
        for edge in unique(edges, features):
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
            scatter(edge, start, needed[edge.origin][edge.klass], np.maximum)
    for value in reversed(graph.values):
        for klass, edges in enumerate(found[value].edges):
            if needed[value][klass].any():
                for edge in edges:
                    reader = needed[value][klass]
                    scatter(edge, reader, needed[edge.origin][edge.klass], np.maximum)
        marks = np.array([each[0, 0] for each in needed[value]])
        for link in found[value].links:
            for number in np.flatnonzero(link.live[marks].any(axis=0)).tolist():
                needed[link.origin][number][0, 0] = True
    seen = np.logical_or.reduce(needed[graph.input])
    rows, columns = np.nonzero(seen)
    if len(rows) == 0:
        return 0, 0, 0
    return (
        int(row - rows.min()),
        max(0, int(column - columns.min())),
        max(0, int(columns.max() - column)),
    )


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
