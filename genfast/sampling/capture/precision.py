"""Does a forward pass compute with the numbers that a plan computes with?

A plan holds every number in the dtype of the model's weights. What a model rounds to fewer digits
on the way, or lets wrap around in 8 or 16 bits, comes out otherwise there. Of what depends on a
single symbol all values are known, so such steps are refused only if one of them changes.
"""

import math

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from genfast.errors import UnsupportedModelError
from genfast.sampling.capture.model import Captured
from genfast.sampling.capture.recording import Call, Fixed, Node, bind, signals_before

_MOST = 1 << 17  # values that are followed
_MOVES = frozenset(  # ops whose results are among their arguments
    (
        *("clone", "alias", "detach", "lift_fresh", "lift_fresh_copy", "positive"),
        *("constant_pad_nd", "cat", "stack", "slice_scatter", "select_scatter", "expand"),
        *("repeat", "roll", "flip", "index_select", "gather", "index", "embedding", "where"),
        *("masked_fill", "reshape", "_unsafe_view", "_reshape_alias", "maximum", "minimum", "max"),
        *("min", "amax", "amin", "clamp", "clamp_min", "clamp_max", "relu", "im2col", "unfold"),
        *("native_dropout", "channel_shuffle", "native_channel_shuffle", "pixel_shuffle"),
        *("pixel_unshuffle", "upsample_nearest1d", "upsample_nearest2d"),
        *("max_pool2d_with_indices", "scatter"),
    )
)
_LOOKUPS = frozenset(("embedding", "index", "index_select", "gather"))


def require_plain_numbers(captured: Captured, symbols: Tensor | None) -> None:
    """Refuse a recording that computes other numbers than those of the weights' dtype.

    Args:
        captured: the recording.
        symbols: all numbers that its input can hold; None if they are not known.

    Raises:
        UnsupportedModelError: it rounds or wraps; the message names the line.
    """
    known: dict[Node, Tensor] = {}
    for node in signals_before(captured.output):
        values = _values(node, known, symbols)
        if values is not None and values.numel() <= _MOST:
            known[node] = values.to(captured.device)
        if node.call is not None and _is_narrow(node.dtype, captured.dtype):
            if not _is_unchanged(node.call, node, known):
                what = "rounds" if node.dtype.is_floating_point else "wraps around"
                raise UnsupportedModelError(
                    f"{node.where}: expected numbers in {captured.dtype} as the model's weights "
                    f"are, got {node.dtype}, which {what} as no plan does"
                )
        elif not node.dtype.is_floating_point and node in known:
            exact = known[node].to(captured.dtype).to(node.dtype) == known[node]
            if not bool(exact.all()):
                raise UnsupportedModelError(
                    f"{node.where}: expected integers that {captured.dtype} holds, as the model's "
                    f"weights are, got {int(known[node][~exact][0])}"
                )


def _is_narrow(dtype: torch.dtype, plan: torch.dtype) -> bool:
    if dtype.is_floating_point:
        return torch.finfo(dtype).eps > torch.finfo(plan).eps
    return dtype != torch.bool and dtype.itemsize <= 2


def _values(node: Node, known: dict[Node, Tensor], symbols: Tensor | None) -> Tensor | None:
    """All values that a node's numbers can have, each once; None if they are not followed."""
    call = node.call
    if call is None:
        return None if symbols is None else _each_once(symbols.to(node.dtype))
    if node.dtype == torch.bool:
        return torch.tensor([False, True])
    source = _only_source(call)
    if source is not None:
        return _each_once(call.run(lambda _: known[source])) if source in known else None
    if node.output not in (None, 0) or not _is_move(call):
        return None
    operands = [each for each in tree_leaves((call.args, call.kwargs)) if _is_tensor(each)]
    parts = []
    for each in operands[:1] if _name(call) in _LOOKUPS else operands:
        if isinstance(each, Fixed) and each.tensor.numel() <= _MOST:
            parts.append(each.tensor.detach().reshape(-1))
        elif isinstance(each, Node) and each in known:
            parts.append(known[each])
        else:
            return None
    fill = bind(call).get("value")
    if isinstance(fill, int | float):
        parts.append(torch.tensor([fill]))
    return _each_once(torch.cat([each.cpu().to(node.dtype) for each in parts]))


def _each_once(numbers: Tensor) -> Tensor:
    found: Tensor = torch.unique(numbers)
    return found


def _is_unchanged(call: Call, node: Node, known: dict[Node, Tensor]) -> bool:
    """Are the results in a narrow dtype what they would be as real numbers?"""
    if _is_move(call):
        return True  # they were, before they were moved
    source = _only_source(call)
    if source is None:
        return False
    if source not in known:
        return _name(call) == "_to_copy" and _holds_all(node.dtype, source.dtype)
    wide = known[source].double()
    if _name(call) == "_to_copy":
        exact = wide if node.dtype.is_floating_point else wide.trunc()
    else:
        try:
            exact = call.run(lambda _: wide)
        except (RuntimeError, TypeError):
            return False  # the bits of integers, say
    found = call.run(lambda _: known[source]).double().to(exact.device)
    return bool(((found == exact) | (found.isnan() & exact.isnan())).all())


def _only_source(call: Call) -> Node | None:
    """What a result is computed from number by number, if that is one tensor."""
    if torch.Tag.pointwise not in call.op.tags and _name(call) not in ("_to_copy", "floor_divide"):
        return None
    operands = {each for each in tree_leaves((call.args, call.kwargs)) if _is_tensor(each)}
    nodes = [each for each in operands if isinstance(each, Node)]
    numbers = all(each.tensor.numel() == 1 for each in operands if isinstance(each, Fixed))
    return nodes[0] if len(nodes) == 1 and numbers else None


def _holds_all(target: torch.dtype, source: torch.dtype) -> bool:
    """Whether a dtype holds every number of another."""
    if source == torch.bool or source == target:
        return True
    if not source.is_floating_point and target.is_floating_point:
        return torch.iinfo(source).bits <= 1 - math.log2(torch.finfo(target).eps)
    return torch.promote_types(source, target) == target


def _is_move(call: Call) -> bool:
    return call.op.is_view or _name(call) in _MOVES


def _name(call: Call) -> str:
    return call.op._schema.name.split("::")[1]


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Node | Fixed)
