"""Instructions of attention: heads that are computed at the same time together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from genfast.sampling import values as v
from genfast.sampling.program import Attend

if TYPE_CHECKING:
    from genfast.sampling.plan.emit import Emitter, Group


def emit_attend(
    emitter: "Emitter", value: v.Value, body: v.Attend, group: "Group"
) -> Iterator[Attend]:
    """Attend with whole heads; of a head whose features have several times, with those of one."""
    width = value.features // body.heads
    depth = sum(source.count for source in body.keys) // body.heads
    _, _, biases, seen = body.bias.shape
    table = v.Constant(body.bias.flatten(2), value.where)
    for heads, features in _runs(group, width):
        first, last = heads[0], heads[-1] + 1
        channels = np.arange(first * depth, last * depth)
        start, count = (first * seen, len(heads) * seen) if biases > 1 else (0, seen)
        (bias,) = emitter.reads((v.Source(table, start, 1, count),))
        yield Attend(
            emitter.number(value), emitter.slots(value, features), group.when,
            emitter.reads(body.queries, channels), emitter.reads(body.keys, channels),
            emitter.reads(body.values, features), bias,
            len(heads), value.height, value.width, body.scale,
        )  # fmt: skip


def _runs(group: "Group", width: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield heads that follow one another and are whole, or one that is not, with the features."""
    heads, counts = np.unique(group.features // width, return_counts=True)
    run: list[int] = []
    for head, count in zip(heads.tolist(), counts.tolist(), strict=True):
        if run and (count < width or head != run[-1] + 1):
            yield run, group.features[np.isin(group.features // width, run)]
            run = []
        run.append(head)
        if count < width:
            yield run, group.features[group.features // width == head]
            run = []
    if run:
        yield run, group.features[np.isin(group.features // width, run)]
