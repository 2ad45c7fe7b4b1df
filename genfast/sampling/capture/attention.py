"""PyTorch's fused attention ops, as the two products and the softmax between them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes

# What `F.scaled_dot_product_attention` becomes, by device and arguments.
FUSED = {
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
}


def parts_of_fused(op: OpOverload) -> Callable[..., Any]:
    """Return a function with a fused op's arguments and results, the first of them in parts."""

    def parts(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            _, *others = op(*args, **kwargs)
        names = [argument.name for argument in op._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        mask = given.get("attn_mask", given.get("attn_bias"))
        out = attention(
            given["query"], given["key"], given["value"], mask,
            bool(given.get("is_causal", False)), given.get("scale"),
        )  # fmt: skip
        return (out, *others)

    return parts


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Softmax attention over [N, heads, positions, depth]; fewer keys' heads are repeated."""
    repeats = query.shape[-3] // key.shape[-3]
    if repeats > 1:
        key, value = (each.repeat_interleave(repeats, dim=-3) for each in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * scale
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    elif mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    return torch.softmax(scores, -1) @ value
