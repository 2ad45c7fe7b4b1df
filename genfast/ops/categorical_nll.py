"""The likelihood of classes under a softmax, at every place of an image or a sound."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError
from genfast.ops import _checks

Layout = Literal["KC", "CK"]

_LAYOUTS: tuple[str, ...] = get_args(Layout)


def categorical_nll(logits: Tensor, symbols: Tensor, *, layout: Layout = "KC") -> Tensor:
    """Negative log-likelihood of the classes of each example, under a softmax over K logits.

    Args:
        logits: floating point. Layout "KC": [N, K, ...] beside symbols [N, ...], so
            [N, K, C, H, W], or [N, K, H, W] for one colour. Layout "CK": [N, C, K, ...] beside
            symbols [N, C, ...]. Any strides; contiguous, channels last and views of the other
            layout are read as they are.
        symbols: integers in 0 .. K - 1. Beside logits [N, K, H, W] of layout "KC", [N, 1, H, W]
            too. On the GPU a symbol out of range gives NaN, for a check would have to wait.
        layout: on which side of the colours the classes are.

    Returns:
        [N], nats per example: the sum over all places. float64 for float64 logits, else float32.
        It has first derivatives and, on the CPU, the same bits for every number of threads. The
        backward pass makes the gradient in one pass over the logits.

    Raises:
        InputError: shapes that do not fit, an unknown layout, symbols out of range.
    """
    symbols = _checked_symbols(logits, symbols, layout)
    _checks.check_range("categorical_nll", "symbols", symbols, logits.shape[_axis(layout)])
    if has_kernel("categorical_nll", logits.device):
        loss: Tensor = torch.ops.genfast.categorical_nll.default(logits, symbols, _axis(layout))
        return loss
    return categorical_nll_reference(logits, symbols, layout=layout)


def categorical_nll_reference(logits: Tensor, symbols: Tensor, *, layout: Layout = "KC") -> Tensor:
    """`categorical_nll` in plain PyTorch; differentiable to any order."""
    symbols = _checked_symbols(logits, symbols, layout)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).movedim(_axis(layout), 1)
    each = F.cross_entropy(logits, symbols.long(), reduction="none")
    return each.flatten(1).sum(dim=1) if each.dim() > 1 else each


def _axis(layout: str) -> int:
    return 1 if layout == "KC" else 2


def _checked_symbols(logits: Tensor, symbols: Tensor, layout: str) -> Tensor:
    """The symbols, of the shape of the logits without their axis of classes."""
    _checks.check_tensor("categorical_nll", "logits", logits)
    _checks.check_tensor("categorical_nll", "symbols", symbols)
    if layout not in _LAYOUTS:
        raise InputError(f"categorical_nll: expected layout in {_LAYOUTS}, got layout={layout!r}")
    axis = _axis(layout)
    if not logits.is_floating_point() or logits.dim() <= axis or logits.shape[axis] == 0:
        shape = "[N, K, ...]" if layout == "KC" else "[N, C, K, ...]"
        raise InputError(
            f"categorical_nll: expected floating point logits {shape}, got logits.shape="
            f"{list(logits.shape)}, logits.dtype={logits.dtype}"
        )
    _checks.check_integer_dtype("categorical_nll", "symbols", "symbols", symbols)
    wanted = tuple(logits.shape[:axis]) + tuple(logits.shape[axis + 1 :])
    one_colour = (wanted[0], 1, *wanted[1:])
    if layout == "KC" and symbols.dim() == 4 and tuple(symbols.shape) == one_colour:
        symbols = symbols[:, 0]
    if tuple(symbols.shape) != wanted or symbols.device != logits.device:
        raise InputError(
            f"categorical_nll: expected symbols {list(wanted)} on {logits.device} beside logits "
            f"{list(logits.shape)} of layout {layout!r}, got symbols.shape="
            f"{list(symbols.shape)} on {symbols.device}"
        )
    return symbols


if loaded():

    def _computed(logits: Tensor) -> torch.dtype:
        return torch.float64 if logits.dtype == torch.float64 else torch.float32

    @torch.library.register_fake("genfast::categorical_nll")
    def _categorical_nll_fake(logits: Tensor, symbols: Tensor, axis: int) -> Tensor:
        return logits.new_empty((logits.shape[0],), dtype=_computed(logits))

    @torch.library.register_fake("genfast::_categorical_nll_with_sums")
    def _categorical_nll_with_sums_fake(
        logits: Tensor, symbols: Tensor, axis: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _computed(logits)
        most = logits.new_empty(symbols.shape, dtype=dtype)
        return logits.new_empty((logits.shape[0],), dtype=dtype), most, torch.empty_like(most)

    @torch.library.register_fake("genfast::_categorical_nll_backward")
    def _categorical_nll_backward_fake(
        grad_loss: Tensor, logits: Tensor, symbols: Tensor, most: Tensor, sum: Tensor, axis: int
    ) -> Tensor:
        return torch.empty_like(logits)

    for _device in ("cpu", "cuda"):
        torch.library.register_autocast("genfast::categorical_nll", _device, torch.float32)
