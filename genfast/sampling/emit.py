"""The instructions of a schedule, and the storage they use."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genfast.sampling import values as v
from genfast.sampling.dependence import (
    NEVER,
    Dependence,
    Edge,
    Map,
    conv_edge,
    features_of,
    gather,
    spread,
)
from genfast.sampling.fuse import expressions, flatten, joined_into_readers, make_read, runs
from genfast.sampling.leak import Draws
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
from genfast.sampling.schedule import Clock, Needed, Schedule, Unit
from genfast.sampling.storage import Reading, ring

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
        self.joined = joined_into_readers(graph, self.times)
        self.layouts = {value: self._layout(value) for value in graph.values}
        self.tables: list[Table] = []
        self._table_numbers: dict[int, int] = {}
        self._stored: list[v.Value] = [graph.input]
        self._partials: list[tuple[str, Group]] = []
        self._early: dict[tuple[Unit, Edge], Map] = {}
        stored = [
            value
            for value in graph.values
            if value is not graph.input and value not in self.joined and self.layouts[value].groups
        ]
        self._stored += stored
        self._numbers = {value: number for number, value in enumerate(self._stored)}

    def _times(self, value: v.Value) -> list[When | None]:
        return [self.schedule.get((value, int(klass))) for klass in self.found[value].of]

    def _layout(self, value: v.Value) -> Layout:
        times = self.times[value]
        kinds = list(dict.fromkeys(when for when in times if when is not None))
        groups = [
            Group(kind, np.asarray([f for f, when in enumerate(times) if when == kind]))
            for kind in kinds
        ]
        slots = np.full(value.features, -1)
        if isinstance(value.body, v.Input):
            return Layout(groups, np.arange(value.features))
        if groups:
            slots[np.concatenate([group.features for group in groups])] = np.arange(
                sum(len(group.features) for group in groups)
            )
        return Layout(groups, slots)

    # Where things are

    def locate(self, source: v.Source, features: Indices) -> tuple[int, bool, Indices]:
        """Return the buffer or table of a source, and the slots of features of its origin."""
        origin = source.origin
        if isinstance(origin, v.Value):
            return self._numbers[origin], False, self.layouts[origin].slots[features]
        return self._table(origin), True, features

    def _table(self, origin: v.Constant | v.Condition) -> int:
        if id(origin) not in self._table_numbers:
            self._table_numbers[id(origin)] = len(self.tables)
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
        joined = [
            (source, feature) for source in sources for feature in features_of(source).tolist()
        ]
        chosen = joined if features is None else [joined[k] for k in features]
        found: list[Read] = []
        first = 0
        while first < len(chosen):
            source = chosen[first][0]
            last = first
            while last < len(chosen) and chosen[last][0] is source:
                last += 1
            number, table, slots = self.locate(
                source, np.asarray([feature for _, feature in chosen[first:last]])
            )
            found += [make_read(source, number, table, slots[a:b]) for a, b in runs(slots)]
            first = last
        return tuple(found)

    # Instructions

    def instructions(self) -> list[Instruction]:
        """Return all instructions, in the order of computation."""
        found: list[Instruction] = []
        for value in self._stored[1:]:
            for group in self.layouts[value].groups:
                body = value.body
                if isinstance(body, v.Conv):
                    found += self._conv(value, body, group)
                elif isinstance(body, v.Pointwise):
                    found += self._pointwise(value, group)
                elif isinstance(body, v.Reduce):
                    found += self._reduce(value, body, group)
                elif isinstance(body, v.Lookup):
                    found += self._lookup(value, body, group)
        return found

    def _slots(self, value: v.Value, features: Indices) -> int:
        """Return the first slot of features that lie one after another."""
        slots = self.layouts[value].slots[features]
        assert (np.diff(slots) == 1).all()
        return int(slots[0])

    def _conv(self, value: v.Value, body: v.Conv, group: Group) -> Iterator[Gemm]:
        number, first = self._numbers[value], self._slots(value, group.features)
        count = len(group.features)
        bias = None if body.bias is None else self._numbers_of(body.bias[group.features.tolist()])
        early, late = self._taps(value, body, group)
        if not early:
            yield Gemm(number, first, count, group.when, tuple(late), bias, (), body.up, body.down)
            return
        when = replace(group.when, span=True, after=0)
        partial = len(self._stored) + len(self._partials)
        self._partials.append((f"{self._name(value)}, early taps", Group(when, group.features)))
        yield Gemm(partial, 0, count, when, tuple(early), bias, (), body.up, body.down)
        initial = (Read(partial, 0, 1, count, bottom=value.height, right=value.width),)
        yield Gemm(number, first, count, group.when, tuple(late), None, initial, body.up, body.down)

    def _numbers_of(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype).contiguous()

    def _taps(self, value: v.Value, body: v.Conv, group: Group) -> tuple[list[Tap], list[Tap]]:
        """Return the taps of some features that can be added up a span early, and the others."""
        columns = torch.as_tensor(group.features, device=self.device)
        early: list[Tap] = []
        late: list[Tap] = []
        for first, source in spread(body.inputs):
            features = features_of(source)
            rows = torch.arange(first, first + source.count)
            for index, tap in enumerate(body.taps):
                weight = self._numbers_of(tap.weight)[rows.to(self.device)][:, columns]
                live = (weight != 0).any(dim=1).cpu().numpy()
                if not live.any():
                    continue
                for chosen, edge in self._by_class(source, features, live, body, index):
                    goes_early = edge is not None and self._is_early(value, group, edge)
                    if edge is None:
                        goes_early = not group.when.span
                    taps = early if goes_early else late
                    taps += self._make_taps(source, features, chosen, weight, body, index)
        return early, late

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
        features: Indices,
        chosen: Indices,
        weight: Tensor,
        body: v.Conv,
        tap: int,
    ) -> Iterator[Tap]:
        number, table, slots = self.locate(source, features[chosen])
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
            rows = torch.as_tensor(chosen[a:b], device=self.device)
            yield Tap(read, weight[rows].contiguous(), at.phase)

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
        number, start = self._numbers[value], self._slots(value, group.features)
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
            first = self._slots(value, group.features)
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
        weight = self._numbers_of(body.weight)
        for index in np.unique(group.features // width):
            chosen = group.features[group.features // width == index]
            (read,) = self.reads(body.indices, np.asarray([index]))
            first = self._slots(value, chosen)
            table = weight[:, torch.as_tensor(chosen % width, device=self.device)].contiguous()
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
                else min(self.clock.span, when.width)
            )
            buffers.append(Buffer(name, len(group.features), when.height, when.width, 1, columns))
        return tuple(buffers)

    def _readings(self, draws: tuple[Draw, ...]) -> dict[Unit, list[Reading]]:
        found: dict[Unit, list[Reading]] = {}
        for unit, when in self.schedule.items():
            value, klass = unit
            ticks = np.where(self.needed[unit], self.clock.ticks(when), NEVER)
            for edge in self.found[value].edges[klass]:
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
        return f"{value.where or kind}"


def _largest(kept: Sequence[tuple[int, int]], width: int) -> tuple[int, int]:
    """Return a ring that is large enough for several: whole rows if any keeps more than one."""
    rows = max((rows for rows, _ in kept), default=1)
    columns = max((columns for _, columns in kept), default=1)
    return rows, width if rows > 1 else columns
