"""The instructions of a schedule, and the storage they use."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genfast.sampling import values as v
from genfast.sampling.plan.accumulate import sums_from_convolutions
from genfast.sampling.plan.emit_attend import emit_attend
from genfast.sampling.plan.emit_flat import (
    dense_into_grid,
    emit_dense,
    emit_flatten,
    emit_unflatten,
    in_order_of_time,
)
from genfast.sampling.plan.fuse import (
    expressions,
    flatten,
    joined_into_readers,
    make_read,
    runs,
    uses_of,
)
from genfast.sampling.plan.schedule import Clock, Needed, Schedule, Unit
from genfast.sampling.plan.storage import Reading, ring
from genfast.sampling.probe.dependence import (
    NEVER,
    Dependence,
    Edge,
    Map,
    carried_edges,
    conv_edge,
    features_of,
    gather,
    is_dense,
    spread,
)
from genfast.sampling.probe.leak import Draws
from genfast.sampling.program import (
    Buffer,
    Draw,
    Gemm,
    Instruction,
    Lookup,
    Pointwise,
    Read,
    Reduce,
    Table,
    Tap,
    When,
)

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Group:
    """Features of a value that are computed together."""

    when: When
    features: Indices


@dataclass(eq=False)
class Layout:
    """How a value is stored: the groups of its features, and each feature's slot (-1: none)."""

    groups: list[Group]
    slots: Indices


class Emitter:
    """Writes the instructions of a schedule and the storage they use."""

    def __init__(
        self,
        graph: v.Graph,
        found: Dependence,
        clock: Clock,
        schedule: Schedule,
        needed: Needed,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.graph, self.found, self.clock = graph, found, clock
        self.schedule, self.needed = schedule, needed
        self.dtype, self.device = dtype, device
        self.times = {value: self._times(value) for value in graph.values}
        self.dense_of = dense_into_grid(graph)
        self.layouts = {value: self._layout(value) for value in graph.values}
        self.tables: list[Table] = []
        self._table_numbers: dict[int, int] = {}
        self._ticks: dict[v.Value, Indices] = {}
        self._origins: list[v.Constant | v.Condition] = []  # kept, for their ids are in use
        self._nothing = v.Constant(torch.zeros(1, 1, 1))
        self._stored: list[v.Value] = [graph.input]
        self._partials: list[tuple[str, Group]] = []
        self._early: dict[tuple[Unit, Edge], Map] = {}
        uses = uses_of(graph)
        self.sums = sums_from_convolutions(graph, self.times, uses, self._may_begin_from)
        self.joined = joined_into_readers(graph, self.times, uses, self.sums)
        within = self.joined | {convolution for convolution, _ in self.sums.values()}
        stored = [
            value
            for value in graph.values
            if value is not graph.input
            and value not in within
            and value not in self.dense_of.values()
            and self.layouts[value].groups
        ]
        self._stored += stored
        self._numbers = {value: number for number, value in enumerate(self._stored)}

    def _times(self, value: v.Value) -> list[When | None]:
        return [self.schedule.get((value, int(klass))) for klass in self.found[value].of]

    def _layout(self, value: v.Value) -> Layout:
        chosen: dict[When, list[int]] = {}
        for feature, when in enumerate(self.times[value]):
            if when is not None:
                chosen.setdefault(when, []).append(feature)
        groups = [Group(when, np.asarray(features)) for when, features in chosen.items()]
        if (value.height, value.width) == (1, 1):
            groups.sort(key=lambda group: int(self.clock.ticks(group.when)[0, 0]))
        slots = np.full(value.features, -1)
        if isinstance(value.body, v.Input):
            return Layout(groups, np.arange(value.features))
        if groups:
            slots[np.concatenate([group.features for group in groups])] = np.arange(
                sum(len(group.features) for group in groups)
            )
        return Layout(groups, slots)

    # Where things are

    def number(self, value: v.Value) -> int:
        """Return the buffer of a value that is stored."""
        return self._numbers[value]

    def tick(self, when: When) -> int:
        """Return when the single position of a grid is computed."""
        return int(self.clock.ticks(when)[0, 0])

    def ticks_of(self, source: v.Source) -> Indices:
        """Return when each feature of a source on a single position is computed; 0 if it is not."""
        origin = source.origin
        if not isinstance(origin, v.Value):
            return np.zeros(source.count, dtype=np.int64)
        if origin not in self._ticks:
            ticks = {when: self.tick(when) for when in set(self.times[origin]) if when is not None}
            self._ticks[origin] = np.array(
                [0 if when is None else ticks[when] for when in self.times[origin]]
            )
        return self._ticks[origin][features_of(source)]

    def add_partial(self, value: v.Value, when: When, features: Indices) -> int:
        """Return a new buffer for sums of some features, computed before the features are."""
        self._partials.append((f"{self._name(value)}, early taps", Group(when, features)))
        return len(self._stored) + len(self._partials) - 1

    def locate(self, source: v.Source, features: Indices) -> tuple[int, bool, Indices]:
        """Return the buffer or table of a source, and the slots of features of its origin."""
        origin = source.origin
        if not isinstance(origin, v.Value):
            return self._table(origin), True, features
        if origin not in self._numbers:  # all that is read of it lies outside, where the fill is
            return self._table(self._nothing), True, np.zeros_like(features)
        return self._numbers[origin], False, np.maximum(self.layouts[origin].slots[features], 0)

    def _table(self, origin: v.Constant | v.Condition) -> int:
        if id(origin) not in self._table_numbers:
            self._table_numbers[id(origin)] = len(self.tables)
            self._origins.append(origin)
            self.tables.append(self._make_table(origin))
        return self._table_numbers[id(origin)]

    def _make_table(self, origin: v.Constant | v.Condition) -> Table:
        if isinstance(origin, v.Condition):
            number = self.graph.conditions.index(origin)
            shape = (origin.features, origin.height, origin.width)
            return Table(f"condition {number}", *shape, None, number, origin.shared)
        data = origin.data.to(self.device, self.dtype)[None].contiguous()
        _, height, width, features = data.shape
        return Table(origin.where or "constant", features, height, width, data)

    def reads(self, sources: v.Sources, features: Indices | None = None) -> tuple[Read, ...]:
        """Return the reads of (some of the) joined features of sources, in order."""
        starts = np.cumsum([0, *(source.count for source in sources)])
        chosen = np.arange(starts[-1]) if features is None else features
        owners = np.searchsorted(starts, chosen, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(chosen)]
        found: list[Read] = []
        for first, last in itertools.pairwise(cuts):
            source = sources[owners[first]]
            places = source.start + source.step * (chosen[first:last] - starts[owners[first]])
            number, table, slots = self.locate(source, places)
            found += [make_read(source, number, table, slots[a:b]) for a, b in runs(slots)]
        return tuple(found)

    # Instructions

    def instructions(self) -> list[Instruction]:
        """Return all instructions, in the order of computation."""
        found: list[Instruction] = []
        for value in self._stored[1:]:
            body = value.body
            if isinstance(body, v.Conv) and is_dense(value):
                found += emit_dense(self, value, body)
                continue
            for group in self.layouts[value].groups:
                if value in self.sums:
                    convolution, other = self.sums[value]
                    initial = self.reads(other, group.features)
                    found += self._conv(value, convolution, group, initial)
                elif isinstance(body, v.Conv):
                    found += self._conv(value, value, group)
                elif isinstance(body, v.Flatten):
                    found += emit_flatten(self, value, body, group)
                elif isinstance(body, v.Unflatten):
                    found += emit_unflatten(self, value, body, group)
                elif isinstance(body, v.Pointwise):
                    found += self._pointwise(value, group)
                elif isinstance(body, v.Reduce):
                    found += self._reduce(value, body, group)
                elif isinstance(body, v.Lookup):
                    found += self._lookup(value, body, group)
                elif isinstance(body, v.Attend):
                    found += emit_attend(self, value, body, group)
        return in_order_of_time(found)

    def slots(self, value: v.Value, features: Indices) -> int:
        """Return the first slot of features that lie one after another."""
        slots = self.layouts[value].slots[features]
        assert (np.diff(slots) == 1).all()
        return int(slots[0])

    def _conv(
        self, value: v.Value, convolution: v.Value, group: Group, initial: tuple[Read, ...] = ()
    ) -> Iterator[Gemm]:
        """Yield what computes `value`: some features of a convolution, added to `initial`."""
        body = convolution.body
        assert isinstance(body, v.Conv)
        number, first = self._numbers[value], self.slots(value, group.features)
        count = len(group.features)
        bias = None if body.bias is None else self.numbers_of(body.bias[_index(group.features)])
        early, late = self._taps(convolution, body, group)
        if not early:
            taps = tuple(late)
            yield Gemm(number, first, count, group.when, taps, bias, initial, body.up, body.down)
            return
        when = replace(group.when, span=True, after=0)
        partial = self.add_partial(value, when, group.features)
        yield Gemm(partial, 0, count, when, tuple(early), bias, (), body.up, body.down)
        initial = (Read(partial, 0, 1, count, bottom=value.height, right=value.width),)
        yield Gemm(number, first, count, group.when, tuple(late), None, initial, body.up, body.down)

    def numbers_of(self, tensor: Tensor) -> Tensor:
        """Return a weight as the program holds it."""
        return tensor.detach().to(self.device, self.dtype).contiguous()

    def _may_begin_from(self, value: v.Value) -> bool:
        """Can a convolution's sums begin from other numbers? Late ones begin from early ones."""
        body = value.body
        assert isinstance(body, v.Conv)
        return not is_dense(value) and not any(
            early
            for group in self.layouts[value].groups
            for *_, early in self._products(value, body, group)
        )

    def _taps(self, value: v.Value, body: v.Conv, group: Group) -> tuple[list[Tap], list[Tap]]:
        """Return the taps of some features that can be added up a span early, and the others."""
        early: list[Tap] = []
        late: list[Tap] = []
        for source, chosen, index, weight, goes_early in self._products(value, body, group):
            taps = early if goes_early else late
            taps += self._make_taps(source, chosen, weight, body, index)
        return early, late

    def _products(
        self, value: v.Value, body: v.Conv, group: Group
    ) -> Iterator[tuple[v.Source, Indices, int, Tensor, bool]]:
        """Yield (source, features, tap, weight, whether it can be added up a span early)."""
        columns = _index(group.features)
        for first, source in spread(body.inputs):
            features = features_of(source)
            for index, tap in enumerate(body.taps):
                weight = tap.weight.detach()[first : first + source.count, columns]
                live = (weight != 0).any(dim=1).cpu().numpy()
                if not live.any():
                    continue
                for chosen, edge in self._by_class(source, features, live, body, index):
                    if edge is not None and (edge.origin, edge.klass) not in self.schedule:
                        continue  # it reads outside only
                    goes_early = edge is not None and self._is_early(value, group, edge)
                    if edge is None:
                        goes_early = not group.when.span
                    yield source, chosen, index, weight, goes_early

    def _by_class(
        self,
        source: v.Source,
        features: Indices,
        live: npt.NDArray[np.bool_],
        body: v.Conv,
        tap: int,
    ) -> Iterator[tuple[Indices, Edge | None]]:
        """Yield the features to multiply, by class of the value they belong to."""
        if not isinstance(source.origin, v.Value):
            yield np.flatnonzero(live), None
            return
        of = self.found[source.origin].of[features]
        for klass in np.unique(of[live]):
            yield np.flatnonzero((of == klass) & live), conv_edge(body, source, int(klass), tap)

    def _make_taps(
        self,
        source: v.Source,
        chosen: Indices,
        weight: Tensor,
        body: v.Conv,
        tap: int,
    ) -> Iterator[Tap]:
        number, table, slots = self.locate(source, features_of(source)[chosen])
        order = np.argsort(slots, kind="stable")
        slots, chosen = slots[order], chosen[order]
        cuts = [0, *(np.flatnonzero(np.diff(slots) != 1) + 1).tolist(), len(slots)]
        at = body.taps[tap]
        for a, b in itertools.pairwise(cuts):
            read = Read(
                number, int(slots[a]), 1, b - a, source.dy + at.dy, source.dx + at.dx,
                max(source.top, source.dy), min(source.bottom, source.dy + body.height),
                max(source.left, source.dx), min(source.right, source.dx + body.width),
                0.0, table,
            )  # fmt: skip
            yield Tap(read, self.numbers_of(weight[_index(chosen[a:b])]), at.phase)

    def _is_early(self, value: v.Value, group: Group, edge: Edge) -> bool:
        """Can a tap be added up at the start of the span, before the pixels that need it?"""
        if group.when.span:
            return False
        span_ticks = self.clock.ticks(replace(group.when, span=True, after=0))
        written = self.clock.ticks(self.schedule[edge.origin, edge.klass])
        seen = gather(edge, written, span_ticks, missing=-1)
        klasses = np.unique(self.found[value].of[group.features])
        marks = np.logical_or.reduce([self.needed[value, int(k)] for k in klasses])
        if not (seen[marks] <= span_ticks[marks]).all():
            return False
        for klass in klasses:
            for own in self.found[value].edges[int(klass)]:
                if own.origin is edge.origin and (own.dy, own.dx, own.klass, own.phase) == (
                    edge.dy, edge.dx, edge.klass, edge.phase,
                ):  # fmt: skip
                    self._early[(value, int(klass)), own] = span_ticks
        return True

    def _pointwise(self, value: v.Value, group: Group) -> Iterator[Pointwise]:
        number, start = self._numbers[value], self.slots(value, group.features)
        for first, last, expression in expressions(value, group.features, self.joined):
            for a, b, reads, constants, steps in flatten(expression, last - first, self.locate):
                at = start + first + a
                yield Pointwise(number, at, b - a, group.when, reads, constants, steps)

    def _reduce(self, value: v.Value, body: v.Reduce, group: Group) -> Iterator[Reduce]:
        number = self._numbers[value]
        features = np.arange(body.outer * body.size * body.inner)
        cube = features.reshape(body.outer, body.size, body.inner)
        if len(group.features) == value.features:
            reads = self.reads(body.inputs)
            first = self.slots(value, group.features)
            yield Reduce(
                number, first, group.when, reads, body.op, body.outer, body.size, body.inner
            )
            return
        for feature in group.features:
            outer, inner = divmod(int(feature), body.inner)
            reads = self.reads(body.inputs, cube[outer, :, inner])
            first = int(self.layouts[value].slots[feature])
            yield Reduce(number, first, group.when, reads, body.op, 1, body.size, 1)

    def _lookup(self, value: v.Value, body: v.Lookup, group: Group) -> Iterator[Lookup]:
        number, width = self._numbers[value], body.weight.shape[1]
        weight = self.numbers_of(body.weight)
        for index in np.unique(group.features // width):
            chosen = group.features[group.features // width == index]
            (read,) = self.reads(body.indices, np.asarray([index]))
            first = self.slots(value, chosen)
            table = weight[:, _index(chosen % width)].contiguous()
            yield Lookup(number, first, group.when, read, table)

    # Draws and storage

    def draws(self, draws: Draws, offset: int) -> tuple[Draw, ...]:
        """Return what every draw reads; positions count from the pixel drawn."""
        width = self.graph.output_width
        planned = []
        for first, count, features in draws:
            reads = self.reads(self.graph.outputs, np.asarray(features))
            moved = tuple(self._from_pixel(read, offset, width) for read in reads)
            planned.append(Draw(first, count, moved))
        return tuple(planned)

    @staticmethod
    def _from_pixel(read: Read, offset: int, width: int) -> Read:
        """Return a read of the output's grid as seen from the pixel `offset` columns to the right.

        Beside the output's grid there is no parameter, even where the value read has numbers.
        """
        left, right = max(read.left, read.dx), min(read.right, width + read.dx)
        return replace(read, dx=read.dx - offset, left=left, right=right)

    def buffers(self, draws: tuple[Draw, ...]) -> tuple[Buffer, ...]:
        """Return the storage of every value and of every partial sum."""
        readings = self._readings(draws)
        buffers = []
        for value in self._stored:
            layout = self.layouts[value]
            features = int((layout.slots >= 0).sum())
            if (value.height, value.width) == (1, 1):
                buffers.append(Buffer(self._name(value), features, 1, 1, 1, 1))
                continue
            kept = [
                ring(
                    self.clock,
                    self.schedule[value, klass],
                    readings.get((value, klass), []),
                    int(NEVER),
                )
                for klass in range(len(self.found[value].edges))
                if (value, klass) in self.schedule
            ]
            rows, columns = _largest(kept, value.width)
            buffers.append(
                Buffer(self._name(value), features, value.height, value.width, rows, columns)
            )
        for name, group in self._partials:
            when = group.when
            columns = (
                when.width
                if self.clock.span == self.clock.width
                else min(when.before + self.clock.span, when.width)
            )
            buffers.append(Buffer(name, len(group.features), when.height, when.width, 1, columns))
        return tuple(buffers)

    def _readings(self, draws: tuple[Draw, ...]) -> dict[Unit, list[Reading]]:
        found: dict[Unit, list[Reading]] = {}
        for unit, when in self.schedule.items():
            value, klass = unit
            ticks = np.where(self.needed[unit], self.clock.ticks(when), NEVER)
            edges = self.found[value].edges[klass]
            if isinstance(value.body, v.Previous):  # reads the state, which stands for its inputs
                edges = carried_edges(value.body, self.found)
            for edge in edges:
                early = self._early.get((unit, edge))
                at = ticks if early is None else np.where(self.needed[unit], early, NEVER)
                found.setdefault((edge.origin, edge.klass), []).append(Reading(edge, at))
        for edge, at in self._draw_readings(draws):
            found.setdefault((edge.origin, edge.klass), []).append(Reading(edge, at))
        return found

    def _draw_readings(self, draws: tuple[Draw, ...]) -> Iterable[tuple[Edge, Map]]:
        """Yield what draws read, with their positions as readers."""
        clock = self.clock
        pixels = np.arange(clock.height * clock.width).reshape(clock.height, clock.width)
        for number, draw in enumerate(draws):
            ticks = pixels * clock.per_pixel + 1 + number
            for read in draw.reads:
                if not read.table:
                    value = self._stored[read.source]
                    bounds = (
                        max(read.top, 0), min(read.bottom, value.height),
                        max(read.left, 0), min(read.right, value.width),
                    )  # fmt: skip
                    for klass in np.unique(self.found[value].of):
                        if (value, int(klass)) in self.schedule:
                            yield Edge(value, int(klass), read.dy, read.dx, *bounds), ticks

    def _name(self, value: v.Value) -> str:
        kind = type(value.body).__name__.lower()
        return value.where.split(" (")[0] or kind


def _index(features: Indices) -> slice | list[int]:
    """Return what selects these features: a slice where they follow one another."""
    if len(features) and (np.diff(features) == 1).all():
        return slice(int(features[0]), int(features[-1]) + 1)
    return [int(feature) for feature in features]


def _largest(kept: Sequence[tuple[int, int]], width: int) -> tuple[int, int]:
    """Return a ring that is large enough for several: whole rows if any keeps more than one."""
    rows = max((rows for rows, _ in kept), default=1)
    columns = max((columns for _, columns in kept), default=1)
    return rows, width if rows > 1 else columns
