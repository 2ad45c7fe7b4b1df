"""Sums that a convolution begins from: x + conv(y) is one instruction, and stores no conv(y)."""

from collections.abc import Callable

from genfast.sampling.plan.fuse import Times, Uses, all_within_reader
from genfast.sampling.values import Conv, Graph, Pointwise, Source, Sources, Value

Sums = dict[Value, tuple[Value, Sources]]
"""For each addition the convolution that computes it, and what its sums begin from."""


def sums_from_convolutions(
    graph: Graph, times: Times, uses: Uses, takes: Callable[[Value], bool]
) -> Sums:
    """Return the additions of a convolution that nothing else reads.

    Args:
        graph: the captured model.
        times: when everything is computed.
        uses: the readers of every value.
        takes: whether the sums of a convolution may begin from other numbers.
    """
    sums: Sums = {}
    order = {value: number for number, value in enumerate(graph.values)}
    for value in graph.values:
        parts = _operands(value)
        if parts is None:
            continue
        # The one computed last, so that a chain of sums follows the convolutions as they come.
        choices = [
            (order[whole], whole, other)
            for mine, other in (parts, parts[::-1])
            if (whole := _whole(mine)) is not None
            and isinstance(whole.body, Conv)
            and whole.features == value.features
            and all_within_reader(whole, uses[whole], times)
            and takes(whole)
        ]
        if choices:
            _, convolution, other = max(choices, key=lambda choice: choice[0])
            sums[value] = (convolution, other)
    return sums


def _operands(value: Value) -> tuple[Sources, Sources] | None:
    """Return what an addition adds, if neither is a number."""
    body = value.body
    if not isinstance(body, Pointwise) or body.op != "add":
        return None
    first, second = body.operands
    if isinstance(first, int | float) or isinstance(second, int | float):
        return None
    return first, second


def _whole(sources: Sources) -> Value | None:
    """Return the value whose features these are, all of them in order."""
    source: Source = sources[0]
    origin = source.origin
    if len(sources) > 1 or not isinstance(origin, Value):
        return None
    ordered = (source.start, source.step, source.count) == (0, 1, origin.features)
    return origin if ordered else None
