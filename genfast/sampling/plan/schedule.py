"""When each class of each value is computed: once per span of columns, or at a pixel.

Time on the scan is counted in ticks: pixel p (in scan order) begins at tick p * per_pixel with the
span instructions (if a span begins there) and, in the first column, with what stands before the
scan; then come its phases after 0, 1, ... draws. A schedule
holds if everything is computed no later than it is read, and no earlier than it can be.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genfast.errors import InputError, UnsupportedModelError
from genfast.sampling.probe.dependence import (
    NEVER,
    Dependence,
    Edge,
    Map,
    gather,
    output_edges,
    scatter,
    states_of,
)
from genfast.sampling.program import When
from genfast.sampling.values import Graph, Input, Previous, Value

Unit = tuple[Value, int]  # a value and the number of a class of its features
Schedule = dict[Unit, When]
Needed = dict[Unit, npt.NDArray[np.bool_]]
_UNUSED = np.zeros((1, 1), dtype=np.int64)
_ROWS_LATER = 3  # rows by which a computation may trail behind the row of its own position


@dataclass(frozen=True)
class Clock:
    """The ticks of a scan over `height` x `width` pixels.

    known: symbols of a pixel that are known before each draw, and after the last: e.g. (0, 1).
    span: columns computed together by span instructions.
    """

    height: int
    width: int
    span: int
    known: tuple[int, ...]

    @property
    def colours(self) -> int:
        """Symbols of a pixel."""
        return self.known[-1]

    @property
    def per_pixel(self) -> int:
        """Ticks of a pixel: the span instructions, and a phase before and after every draw."""
        return len(self.known) + 1

    def ready_tick(self, symbols: Map) -> Map:
        """Return the first pixel phase at which this many symbols are known."""
        pixel, colours = np.divmod(symbols, self.colours)
        phase = np.searchsorted(np.asarray(self.known), colours)
        at = pixel * self.per_pixel + 1 + phase
        # All of a pixel's symbols are known after its last draw, before the next pixel begins.
        last = (pixel - 1) * self.per_pixel + len(self.known)
        return np.where(symbols == 0, 0, np.where(colours == 0, last, at))

    def ticks(self, when: When) -> Map:
        """Return the tick of every position of a grid, [height, width]."""
        row = np.arange(when.height)[:, None] * when.row_scale + when.row_offset
        column = np.arange(when.width)[None, :] * when.column_scale + when.column_offset
        if when.span:
            since = column // self.span * self.span * self.per_pixel
        else:
            since = column * self.per_pixel + 1 + when.after
        since[(column < 0) & (column >= -when.before)] = 0
        return row * self.width * self.per_pixel + since


def make_schedule(
    graph: Graph, found: Dependence, clock: Clock, reads: Sequence[tuple[int, Sequence[int], int]]
) -> tuple[Schedule, Needed]:
    """Choose when every class is computed: by spans wherever nothing needs it earlier.

    Args:
        graph: the captured model.
        found: what depends on what.
        clock: the scan.
        reads: for each draw its number, the output features it reads, and by how many columns the
            pixel it draws is right of the output's position.

    Returns:
        When each class that is needed is computed, and which of its positions are.

    Raises:
        UnsupportedModelError: no regular schedule exists.
    """
    due = _draw_deadlines(graph, found, clock, reads)
    needed = _needed(graph, found, due)
    if due and not any(bool((tick < NEVER).any()) for _, tick in due):
        raise InputError(
            "compile_sampler: expected a model that predicts some symbol of the event, got one "
            f"whose first prediction is past its end: {graph.input.width} symbols are too few"
        )
    # Most models need nothing before the scan. Where something is due there, all that can is there.
    for before, with_spans in itertools.product((False, True), (True, False)):
        options = _options(graph, found, clock, needed, with_spans, before)
        schedule, stuck = _choose(graph, found, clock, needed, options, due)
        if stuck is None:
            return schedule, needed
    assert stuck is not None
    if isinstance(stuck.body, Previous):
        raise UnsupportedModelError(
            f"{stuck.where}: expected a recurrence that runs forwards along the scan, from at most "
            f"one position before it, got one over {stuck.height} x {stuck.width} positions"
            + " backwards"
            * stuck.body.backwards
        )
    raise UnsupportedModelError(
        f"compile_sampler: expected a computation that follows the scan, got {stuck.where} on a "
        f"grid of {stuck.height} x {stuck.width}, of which some positions are needed before any "
        "regular order of computation reaches them"
    )


def _draw_deadlines(
    graph: Graph,
    found: Dependence,
    clock: Clock,
    reads: Sequence[tuple[int, Sequence[int], int]],
) -> list[tuple[Edge, Map]]:
    """Return the edges by which draws read values, with the ticks at which they do."""
    edges = output_edges(graph, found)
    rows, columns = np.indices((graph.output_height, graph.output_width))
    due: list[tuple[Edge, Map]] = []
    for draw, features, offset in reads:
        pixel = rows * clock.width + columns + offset
        tick = pixel * clock.per_pixel + 1 + draw
        tick[columns + offset >= clock.width] = NEVER
        unique = {}
        for feature in features:
            for edge in edges[feature]:
                key = (edge.origin, edge.klass, edge.dy, edge.dx, edge.top, edge.bottom)
                unique[*key, edge.left, edge.right] = edge
        due += [(edge, tick) for edge in unique.values()]
    return due


def _needed(graph: Graph, found: Dependence, due: list[tuple[Edge, Map]]) -> Needed:
    """Mark the positions of every class that some draw depends on; classes never needed lack."""
    needed = {
        (value, klass): np.zeros((value.height, value.width), dtype=bool)
        for value in graph.values
        for klass in range(len(found[value].edges))
    }
    for edge, tick in due:
        scatter(edge, tick < NEVER, needed[edge.origin, edge.klass], np.maximum)
    states = states_of(graph)
    for value in reversed(graph.values):
        for klass, edges in enumerate(found[value].edges):
            reader = needed[value, klass]
            if value in states:  # and with a position all before it
                reader |= np.maximum.accumulate(reader.ravel()[::-1])[::-1].reshape(reader.shape)
            if reader.any():
                for edge in edges:
                    scatter(edge, reader, needed[edge.origin, edge.klass], np.maximum)
        for link in found[value].links:
            readers = [needed[value, klass][0, 0] for klass in range(len(link.live))]
            for number in np.flatnonzero(link.live[readers].any(axis=0)).tolist():
                needed[link.origin, number][0, 0] = True
    return {unit: marks for unit, marks in needed.items() if marks.any()}


def _options(
    graph: Graph,
    found: Dependence,
    clock: Clock,
    needed: Needed,
    with_spans: bool,
    before: bool,
) -> dict[Unit, list[When]]:
    """Return for each class the earliest regular times: per span if there is one, per pixel.

    `before`: what is ready when its row begins may be computed before the scan.
    """
    options: dict[Unit, list[When]] = {}
    earliest: dict[Unit, Map] = {}
    stepped = _recurrent(graph)
    for value in graph.values:
        linked = np.zeros(len(found[value].ready), dtype=np.int64)
        for link in found[value].links:
            known = [earliest.get((link.origin, k), _UNUSED) for k in range(link.live.shape[1])]
            np.maximum(linked, link.latest(known), out=linked)
        for klass, edges in enumerate(found[value].edges):
            unit = (value, klass)
            if unit not in needed:
                continue
            ready = np.maximum(clock.ready_tick(found[value].ready[klass]), linked[klass])
            for edge in edges:
                source = earliest.get((edge.origin, edge.klass))
                if source is None:  # all that the edge reads lies outside
                    continue
                np.maximum(ready, gather(edge, source, ready, missing=0), out=ready)
            if isinstance(value.body, Input):
                choices = [_input_time(value, clock, found[value].ready[klass])]
            elif is_single(value, clock):
                choices = [*_single_times(clock, int(ready[0, 0]))]
                if with_spans:
                    choices = [*_single_span_times(clock, int(ready[0, 0])), *choices]
            else:
                marks = needed[unit]
                choices = [*_pixel_times(value, clock, ready, marks, before)]
                if with_spans and value not in stepped:
                    choices = [*_span_times(value, clock, ready, marks, before), *choices]
            options[unit] = choices
            ticks = [clock.ticks(when) for when in choices]
            earliest[unit] = np.minimum.reduce(ticks) if ticks else np.full(ready.shape, NEVER)
    return options


def _recurrent(graph: Graph) -> set[Value]:
    """Return the values of recurrences: what stands between a state and where it is read again.

    They are ready alike and needed alike, so without spans they are all computed at one time.
    """
    place = {value: number for number, value in enumerate(graph.values)}
    found: set[Value] = set()
    for value in graph.values:
        if isinstance(value.body, Previous) and value.body.state is not None:
            found.update(graph.values[place[value] : place[value.body.state] + 1])
    return found


def _can_recall(body: Previous, when: When, schedule: Schedule) -> bool:
    """Whether the state of one position is computed before the next position reads it.

    Positions before the scan are computed together, so there may be one.
    """
    assert body.state is not None
    return not body.backwards and when.before < 2 and schedule.get((body.state, 0)) == when


def is_single(value: Value, clock: Clock) -> bool:
    """Whether the one position of a value stands for all pixels of an image or sound."""
    return (value.height, value.width) == (1, 1) != (clock.height, clock.width)


def _single_times(clock: Clock, ready: int) -> Iterator[When]:
    """Yield the pixel and phase at which a single position is ready, whatever row it is in."""
    pixel, phase = divmod(max(ready, 1) - 1, clock.per_pixel)
    if phase == clock.per_pixel - 1:  # the span tick of the next pixel
        pixel, phase = pixel + 1, 0
    row, column = divmod(pixel, clock.width)
    if row < clock.height:
        yield When(1, 1, False, phase, 1, row, 1, column)


def _single_span_times(clock: Clock, ready: int) -> Iterator[When]:
    """Yield the first span that begins when a single position is ready: below two strides, say."""
    row, column = divmod(-(-ready // clock.per_pixel), clock.width)
    column = -(-column // clock.span) * clock.span
    if column >= clock.width:
        row, column = row + 1, 0
    if row < clock.height:
        yield When(1, 1, True, 0, 1, row, 1, column)


def _input_time(value: Value, clock: Clock, ready: Map) -> When:
    """A symbol is written after its draw."""
    known = int(ready[0, 0])
    after = next(d for d, count in enumerate(clock.known) if count >= known)
    return When(value.height, value.width, after=after)


def _pixel_times(
    value: Value, clock: Clock, ready: Map, needed: npt.NDArray[np.bool_], before: bool
) -> Iterator[When]:
    """Yield the earliest time at a pixel that suits every needed position, if any does."""
    place = _Place(value, clock, ready, needed, before)
    for rows in range(_ROWS_LATER):
        phases = range(clock.per_pixel - 1)
        columns, after = min((place.least_offset(rows, 1 + after), after) for after in phases)
        if columns <= place.highest and place.inside(rows):
            yield place.when(False, after, rows, columns)
            return


def _span_times(
    value: Value, clock: Clock, ready: Map, needed: npt.NDArray[np.bool_], before: bool
) -> Iterator[When]:
    """Yield the earliest time at the start of a span that suits every needed position."""
    place = _Place(value, clock, ready, needed, before)
    for rows in range(_ROWS_LATER):
        if not place.inside(rows):
            return
        nearest = place.least_offset(rows, 0)
        for columns in range(nearest, min(place.highest, nearest + clock.span - 1) + 1):
            when = place.when(True, 0, rows, columns)
            if (clock.ticks(when)[needed] >= ready[needed]).all():
                yield when
                return


class _Place:
    """Where on the scan the needed positions of a class may be computed.

    Attributes:
        lowest, highest: the column offsets at which all are on the scan; with `before`, some.
    """

    def __init__(
        self,
        value: Value,
        clock: Clock,
        ready: Map,
        needed: npt.NDArray[np.bool_],
        before: bool,
    ) -> None:
        i, j = np.nonzero(needed)
        self.value, self.clock, self.ready = value, clock, ready[i, j]
        self.row, self.column = i * value.row_scale, j * value.column_scale
        first, last = int(self.column.min()), int(self.column.max())
        self.first = first
        self.lowest = -last if before else -first
        self.highest = clock.width - 1 - last

    def inside(self, rows: int) -> bool:
        """Whether they are on the scan so many rows later."""
        return -int(self.row.min()) <= rows < self.clock.height - int(self.row.max())

    def least_offset(self, rows: int, tick: int) -> int:
        """Return by how many columns they must trail to be ready at this tick of their pixel.

        What is ready when its row begins is so wherever it stands; the others are on the scan.
        """
        since = self.ready - (self.row + rows) * self.clock.width * self.clock.per_pixel
        at = np.maximum(-((tick - since) // self.clock.per_pixel), 0)
        return int((at - self.column)[since > 0].max(initial=self.lowest))

    def when(self, span: bool, after: int, rows: int, columns: int) -> When:
        """Return the time with these offsets."""
        value = self.value
        return When(
            value.height, value.width, span, after, value.row_scale, rows, value.column_scale,
            columns, max(0, -self.first - columns),
        )  # fmt: skip


def _choose(
    graph: Graph,
    found: Dependence,
    clock: Clock,
    needed: Needed,
    options: dict[Unit, list[When]],
    due: list[tuple[Edge, Map]],
) -> tuple[Schedule, Value | None]:
    """Take for each class its first option that is in time for all its readers, from the end.

    Returns the schedule, and the value that has no time, if there is one.
    """
    deadline = {unit: np.full(marks.shape, NEVER) for unit, marks in needed.items()}
    for edge, tick in due:
        scatter(edge, tick, deadline[edge.origin, edge.klass], np.minimum)
    schedule: Schedule = {}
    for value in reversed(graph.values):
        at = np.full(len(found[value].ready), NEVER)
        for klass, edges in enumerate(found[value].edges):
            unit = (value, klass)
            if unit not in needed:
                continue
            marks = needed[unit]
            for when in options[unit]:
                ticks = clock.ticks(when)
                if (ticks[marks] <= deadline[unit][marks]).all():
                    break
            else:
                return schedule, value
            schedule[unit] = when
            if isinstance(value.body, Previous) and not _can_recall(value.body, when, schedule):
                return schedule, value
            reader = np.where(marks, ticks, NEVER)
            at[klass] = reader.min()
            for edge in edges:
                limit = deadline.get((edge.origin, edge.klass))
                if limit is not None:
                    scatter(edge, reader, limit, np.minimum)
        for link in found[value].links:
            for klass, time in enumerate(link.earliest(at)):
                limit = deadline.get((link.origin, klass))
                if limit is not None:
                    np.minimum(limit, time, out=limit)
    return schedule, None
