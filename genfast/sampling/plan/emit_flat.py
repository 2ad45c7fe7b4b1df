"""Instructions of values whose one position holds the features of all pixels.

Their slots are sorted by time, so what a feature reads is mostly one run of earlier slots.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genfast.sampling import values as v
from genfast.sampling.plan.fuse import operands_of, runs
from genfast.sampling.probe.dependence import NEVER, features_of, is_dense, spread
from genfast.sampling.program import Gemm, Instruction, Pointwise, Read, Tap

if TYPE_CHECKING:
    from genfast.sampling.plan.emit import Emitter, Group

Indices = npt.NDArray[np.int64]

# Products with zeros that are cheaper than one more tap.
_GAP = 32
# Features that fill the vectors of a product. Outputs of fewer are computed in blocks, then dealt.
_BLOCK = 32


def dense_into_grid(graph: v.Graph) -> dict[v.Value, v.Value]:
    """Return the dense layers to compute within the only value that reads them, an `Unflatten`.

    Keys are the values that are dealt out, with the layer that they are of.
    """
    readers: dict[v.Value, list[v.Value | None]] = {}
    for value in graph.values:
        for sources in operands_of(value):
            for source in sources:
                if isinstance(source.origin, v.Value):
                    readers.setdefault(source.origin, []).append(value)
    for source in graph.outputs:
        if isinstance(source.origin, v.Value):
            readers.setdefault(source.origin, []).append(None)
    found = {}
    for value in graph.values:
        if isinstance(value.body, v.Unflatten):
            (origin, *others) = {source.origin for source in value.body.inputs}
            alone = isinstance(origin, v.Value) and not others and set(readers[origin]) == {value}
            alone = alone and value.features >= _BLOCK
            if alone and isinstance(origin, v.Value) and is_dense(origin):
                found[value] = origin
    return found


def in_order_of_time(instructions: list[Instruction]) -> list[Instruction]:
    """Sort neighbours that compute single positions by their pixel; others stay where they are."""
    found: list[Instruction] = []
    first = 0
    while first < len(instructions):
        last = first
        while last < len(instructions) and _is_single(instructions[last]):
            last += 1
        found += sorted(instructions[first:last], key=_pixel)
        found += instructions[last : last + 1]
        first = last + 1
    return found


def _is_single(instruction: Instruction) -> bool:
    when = instruction.when
    return (when.height, when.width, when.span) == (1, 1, False)


def _pixel(instruction: Instruction) -> tuple[int, int, int]:
    when = instruction.when
    return when.row_offset, when.column_offset, when.after


def emit_flatten(
    emitter: "Emitter", value: v.Value, body: v.Flatten, group: "Group"
) -> Iterator[Pointwise]:
    """Copy the features of each pixel that become known together."""
    number, slots = emitter.number(value), emitter.layouts[value].slots
    count = value.features // (body.height * body.width)
    pixels = group.features // count
    for pixel in np.unique(pixels):
        chosen = group.features[pixels == pixel]
        i, j = divmod(int(pixel), body.width)
        at = 0
        for read in emitter.reads(body.inputs, chosen % count):
            for a, b in runs(slots[chosen[at : at + read.count]]):
                part = replace(
                    read, start=read.start + a * read.step, count=b - a,
                    dy=read.dy + i, dx=read.dx + j,
                )  # fmt: skip
                first = int(slots[chosen[at + a]])
                yield Pointwise(number, first, b - a, group.when, (part,), (), ())
            at += read.count


def emit_dense(emitter: "Emitter", value: v.Value, body: v.Conv) -> Iterator[Gemm]:
    """Multiply by the rows of the weight that are not zero, in blocks of features.

    What is known when a block begins is multiplied for all of its features at once, for few
    features at a time would waste most of a vector; each adds the rest in its own time.
    """
    number, slots = emitter.number(value), emitter.layouts[value].slots

    def bias_of(features: Indices) -> Tensor | None:
        return None if body.bias is None else emitter.numbers_of(body.bias[features])

    for block in _blocks(emitter.layouts[value].groups):
        features = np.concatenate([group.features for group in block])
        when = block[0].when
        known = emitter.tick(when)
        early = tuple(_dense_taps(emitter, body, features, last=known)) if len(block) > 1 else ()
        partial = -1
        if early:
            partial = emitter.add_partial(value, when, features)
            yield Gemm(partial, 0, len(features), when, early, bias_of(features))
        done = 0
        for group in block:
            count, first = len(group.features), int(slots[group.features[0]])
            if early:
                taps = tuple(_dense_taps(emitter, body, group.features, after=known))
                initial = (Read(partial, done, 1, count, bottom=1, right=1),)
                yield Gemm(number, first, count, group.when, taps, None, initial)
            else:
                taps = tuple(_dense_taps(emitter, body, group.features))
                yield Gemm(number, first, count, group.when, taps, bias_of(group.features))
            done += count


def _blocks(groups: "Sequence[Group]") -> "Iterator[list[Group]]":
    """Yield groups that follow one another, until they have enough features together."""
    block: list[Group] = []
    for group in groups:
        block.append(group)
        if sum(len(each.features) for each in block) >= _BLOCK:
            yield block
            block = []
    if block:
        yield block


def emit_unflatten(
    emitter: "Emitter", value: v.Value, body: v.Unflatten, group: "Group"
) -> Iterator[Gemm]:
    """Each position reads its own features of the single one: its taps have a phase of their own.

    A dense layer that nothing else reads is computed right here.
    """
    places = list(np.ndindex(value.height, value.width))
    count, up = len(group.features), max(value.height, value.width)
    features = np.concatenate([features_of(source) for source in body.inputs])
    table = features.reshape(len(places), value.features)[:, group.features]
    layer = emitter.dense_of.get(value)
    taps: list[Tap] = []
    initial: tuple[Read, ...] = ()
    if layer is not None:
        assert isinstance(layer.body, v.Conv)
        for at, columns in zip(places, table, strict=True):
            taps += _dense_taps(emitter, layer.body, columns, at)
        if layer.body.bias is not None:
            data = layer.body.bias.detach()[torch.from_numpy(table.copy())]
            constant = v.Constant(data.view(value.height, value.width, count), layer.where)
            initial = emitter.reads((v.Source(constant, 0, 1, count),))
    else:
        owners = np.repeat(np.arange(len(body.inputs)), [s.count for s in body.inputs])
        owners = owners.reshape(len(places), value.features)[:, group.features]
        for number, at in enumerate(places):
            cuts = [0, *(np.flatnonzero(np.diff(owners[number])) + 1).tolist(), count]
            for a, b in pairwise(cuts):
                source = body.inputs[int(owners[number, a])]
                taps += _selection(emitter, source, table[number, a:b], a, count, at)
    first = emitter.slots(value, group.features)
    yield Gemm(emitter.number(value), first, count, group.when, tuple(taps), None, initial, up)


def _selection(
    emitter: "Emitter", source: v.Source, features: Indices, first: int, count: int,
    phase: tuple[int, int],
) -> Iterator[Tap]:  # fmt: skip
    """Yield taps that copy features of a source to results first, first + 1, ..."""
    number, table, slots = emitter.locate(source, features)
    order = np.argsort(slots, kind="stable")
    slots = slots[order]
    cuts = [0, *(np.flatnonzero(np.diff(slots) != 1) + 1).tolist(), len(slots)]
    for a, b in pairwise(cuts):
        weight = torch.zeros(b - a, count)
        weight[torch.arange(b - a), torch.from_numpy(first + order[a:b])] = 1
        read = Read(number, int(slots[a]), 1, b - a, 0, 0, 0, 1, 0, 1, 0.0, table)
        yield Tap(read, emitter.numbers_of(weight), phase)


def _dense_taps(
    emitter: "Emitter",
    body: v.Conv,
    columns: Indices,
    phase: tuple[int, int] = (0, 0),
    after: int = -1,
    last: int = int(NEVER),
) -> Iterator[Tap]:
    """Yield the taps of some features of a dense layer: runs of slots, across small gaps of zeros.

    Of what is computed after tick `after` and up to tick `last`. Slots between two that are read
    belong to features that are computed no later.
    """
    for first, source in spread(body.inputs):
        for tap in body.taps:
            weight = tap.weight.detach()[first : first + source.count, columns]
            ticks = emitter.ticks_of(source)
            used = (weight != 0).any(dim=1).cpu().numpy() & (ticks > after) & (ticks <= last)
            live = np.flatnonzero(used)
            if len(live) == 0:
                continue
            number, table, slots = emitter.locate(source, features_of(source)[live])
            order = np.argsort(slots, kind="stable")
            slots, rows = slots[order], live[order]
            cuts = [0, *(np.flatnonzero(np.diff(slots) > _GAP) + 1).tolist(), len(slots)]
            for a, b in pairwise(cuts):
                start, stop = int(slots[a]), int(slots[b - 1]) + 1
                yield Tap(
                    Read(number, start, 1, stop - start, 0, 0, 0, 1, 0, 1, 0.0, table),
                    emitter.numbers_of(_scattered(weight, rows[a:b], slots[a:b] - start)),
                    phase,
                )


def _scattered(weight: Tensor, rows: Indices, places: Indices) -> Tensor:
    """Rows of a weight at these places of a larger one; a slot that is read twice adds up."""
    chosen = weight[torch.from_numpy(rows).to(weight.device)]
    if len(places) == places[-1] + 1:
        return chosen
    whole = weight.new_zeros(int(places[-1]) + 1, weight.shape[1])
    return whole.index_add_(0, torch.from_numpy(places).to(weight.device), chosen)
