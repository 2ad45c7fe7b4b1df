"""Pointwise values joined into expressions, so that no number is stored that is used once."""

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from genfast.sampling.probe.dependence import features_of, spread
from genfast.sampling.program import Read, Step, When
from genfast.sampling.values import Attend, Graph, Pointwise, Source, Sources, Value

Indices = npt.NDArray[np.int64]
# Where a feature of a source is stored: (buffer or table number, is a table, its slots).
Locate = Callable[[Source, Indices], tuple[int, bool, Indices]]


@dataclass(frozen=True, eq=False)
class Leaf:
    """Some features of a stored source, seen from the reader's position."""

    source: Source
    features: Indices  # of the source's origin


@dataclass(frozen=True, eq=False)
class Apply:
    """An operation on expressions and numbers; "copy" is its only operand itself."""

    op: str
    operands: "tuple[Expression, ...]"


Expression = Leaf | Apply | float


Times = dict[Value, list[When | None]]
"""For each value when each of its features is computed; None: never."""

Uses = dict[Value, list[tuple[Value | None, int, Source]]]
"""For each value its readers (None: the output), with the feature at which the source begins."""


def joined_into_readers(
    graph: Graph, times: Times, uses: Uses, stored: Collection[Value]
) -> set[Value]:
    """Return the pointwise values to compute within the only expression that reads them.

    That expression must read them at its own position and be computed at the same time.

    Args:
        graph: the captured model.
        times: when everything is computed.
        uses: the readers of every value.
        stored: values that are no part of an expression and read none.
    """
    joined = set()
    for value in graph.values:
        if not isinstance(value.body, Pointwise) or value in stored or value not in uses:
            continue
        readers = uses[value]
        apart = any(reader in stored for reader, _, _ in readers if reader is not None)
        if not apart and all_within_reader(value, readers, times):
            joined.add(value)
    return joined


def uses_of(graph: Graph) -> Uses:
    """Return who reads what."""
    uses: Uses = {}
    for value in graph.values:
        for sources in operands_of(value):
            for first, source in spread(sources):
                if isinstance(source.origin, Value):
                    uses.setdefault(source.origin, []).append((value, first, source))
    for source in graph.outputs:
        if isinstance(source.origin, Value):
            uses.setdefault(source.origin, []).append((None, 0, source))

    return uses


def all_within_reader(
    value: Value, readers: list[tuple[Value | None, int, Source]], times: Times
) -> bool:
    """Whether pointwise values alone read a value: once, where and when they are computed."""
    count = np.zeros(value.features, dtype=np.int64)
    for reader, first, source in readers:
        np.add.at(count, features_of(source), 1)
        if reader is None or not _same_place(value, reader, source):
            return False
        mine = [times[value][f] for f in features_of(source)]
        if mine != times[reader][first : first + source.count]:
            return False
    return bool(count.max() <= 1)


def _same_place(value: Value, reader: Value, source: Source) -> bool:
    grid = (value.height, value.width) == (reader.height, reader.width)
    inside = source.top <= 0 and source.left <= 0
    inside = inside and source.bottom >= value.height and source.right >= value.width
    same = (source.dy, source.dx) == (0, 0) and isinstance(reader.body, Pointwise)
    return grid and inside and same


def operands_of(value: Value) -> list[Sources]:
    """Return everything a value reads."""
    body = value.body
    if isinstance(body, Pointwise):
        return [operand for operand in body.operands if not isinstance(operand, int | float)]
    if isinstance(body, Attend):
        return [body.queries, body.keys, body.values]
    for name in ("inputs", "indices"):
        if hasattr(body, name):
            return [getattr(body, name)]
    return []


def expressions(
    value: Value, features: Indices, joined: set[Value]
) -> Iterator[tuple[int, int, Expression]]:
    """Yield (first, last + 1, expression) for runs of `features` of a pointwise value."""
    body = value.body
    assert isinstance(body, Pointwise)
    parts: list[list[tuple[int, int, Expression]]] = []
    for operand in body.operands:
        if isinstance(operand, int | float):
            parts.append([(0, len(features), float(operand))])
        else:
            parts.append(list(_operand(operand, features, joined)))
    edges = sorted({edge for part in parts for first, last, _ in part for edge in (first, last)})
    for first, last in itertools.pairwise(edges):
        operands = []
        for part in parts:
            start, _, whole = next(p for p in part if p[0] <= first < p[1])
            operands.append(_slice(whole, first - start, last - start))
        yield first, last, Apply(body.op, tuple(operands))


def _operand(
    sources: Sources, features: Indices, joined: set[Value]
) -> Iterator[tuple[int, int, Expression]]:
    starts = np.cumsum([0, *(source.count for source in sources)])
    owner = np.searchsorted(starts, features, side="right") - 1
    cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(features)]
    for first, last in itertools.pairwise(cuts):
        if first == last:
            continue
        source = sources[owner[first]]
        chosen = source.start + source.step * (features[first:last] - starts[owner[first]])
        if isinstance(source.origin, Value) and source.origin in joined:
            for begin, end, part in expressions(source.origin, chosen, joined):
                yield first + begin, first + end, part
        else:
            yield first, last, Leaf(source, chosen)


def _slice(expression: Expression, first: int, last: int) -> Expression:
    if isinstance(expression, Leaf):
        return replace(expression, features=expression.features[first:last])
    if isinstance(expression, Apply):
        operands = tuple(_slice(operand, first, last) for operand in expression.operands)
        return replace(expression, operands=operands)
    return expression


def flatten(
    expression: Expression, count: int, locate: Locate
) -> Iterator[tuple[int, int, tuple[Read, ...], tuple[float, ...], tuple[Step, ...]]]:
    """Yield (first, last + 1, reads, constants, steps) for runs in which all reads are regular."""
    leaves = list(_leaves(expression))
    slots = [locate(leaf.source, leaf.features) for leaf in leaves]
    cuts = {0, count}
    for _, _, places in slots:
        cuts.update(first for first, _ in runs(places))
    # A run that is regular in each of its leaves between the cuts of all of them.
    edges = sorted(cuts)
    for first, last in itertools.pairwise(edges):
        reads = [
            make_read(leaf.source, number, table, places[first:last])
            for leaf, (number, table, places) in zip(leaves, slots, strict=True)
        ]
        yield first, last, *_number(expression, reads)


def _leaves(expression: Expression) -> Iterator[Leaf]:
    if isinstance(expression, Leaf):
        yield expression
    elif isinstance(expression, Apply):
        for operand in expression.operands:
            yield from _leaves(operand)


def _number(
    expression: Expression, reads: list[Read]
) -> tuple[tuple[Read, ...], tuple[float, ...], tuple[Step, ...]]:
    """Write an expression as numbered steps; equal reads, constants and steps become one."""
    unique: list[Read] = list(dict.fromkeys(reads))
    constants: list[float] = []
    nodes: list[tuple[str, tuple[tuple[str, int], ...]]] = []
    pending = iter(reads)

    def visit(node: Expression) -> tuple[str, int]:
        if isinstance(node, Leaf):
            return "read", unique.index(next(pending))
        if isinstance(node, Apply):
            operands = tuple(visit(operand) for operand in node.operands)
            if node.op == "copy":
                return operands[0]
            step = (node.op, operands)
            if step not in nodes:
                nodes.append(step)
            return "step", nodes.index(step)
        key = float(node)
        same = [k for k, c in enumerate(constants) if c == key and str(c) == str(key)]
        if not same:
            constants.append(key)
        return "constant", same[0] if same else len(constants) - 1

    last = visit(expression)
    offset = {"read": 0, "constant": len(unique), "step": len(unique) + len(constants)}
    steps = [Step(op, tuple(offset[kind] + k for kind, k in args)) for op, args in nodes]
    if last[0] != "step" and (steps or last != ("read", 0) or len(unique) > 1):
        # The result is an earlier number: a step that changes nothing stores it.
        number = offset[last[0]] + last[1]
        steps.append(Step("maximum", (number, number)))
    return tuple(unique), tuple(constants), tuple(steps)


def runs(places: Indices) -> list[tuple[int, int]]:
    """Cut places into runs of constant step: a list of (first, last + 1)."""
    found: list[tuple[int, int]] = []
    first = 0
    for k in range(1, len(places) + 1):
        regular = k < len(places) and (
            k - first < 2 or places[k] - places[k - 1] == places[first + 1] - places[first]
        )
        if not regular:
            found.append((first, k))
            first = k
    return found


def make_read(source: Source, number: int, table: bool, places: Indices) -> Read:
    """Return the read of regular places of a buffer or table."""
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    return Read(
        number, int(places[0]), step, len(places), source.dy, source.dx,
        source.top, source.bottom, source.left, source.right, source.fill, table,
    )  # fmt: skip
