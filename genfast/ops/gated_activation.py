"""The gate of WaveNet and gated PixelCNN: tanh of half of the channels times sigmoid of the other.

Source: van den Oord et al., "Conditional image generation with PixelCNN decoders", NIPS 2016,
equations 2 and 4; van den Oord et al., "WaveNet: a generative model for raw audio", 2016,
equation 2 and section 2.5.
"""

import torch

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError
from genfast.ops._checks import check_alike, check_tensor


def gated_activation(x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
    """Multiplies tanh of the first half of the channels by the sigmoid of the second.

    1. a, b = the first and the second C channels of x + condition
    2. out = tanh(a) * sigmoid(b)

    The forward pass keeps nothing but its arguments; the backward pass computes the gates again.

    Args:
        x: [N, 2C, ...], any number of axes after the channels; floating point. Contiguous and
            channels_last memory is read as it is.
        condition: None, [N, 2C] or [N, 2C, 1, ...] (the same at every position), or of the shape of
            `x`; dtype and device of `x`. Under autocast it is cast to the dtype of `x`.

    Returns:
        [N, C, ...], dtype of `x`; channels_last if `x` is. Half types are computed in float32.
        Differentiable in both arguments to any order; the same bits for every number of threads.

    Raises:
        InputError: if an argument breaks a rule above.
    """
    _check_arguments(x, condition)
    if condition is not None and condition.dim() < x.dim():
        condition = condition.reshape(condition.shape + (1,) * (x.dim() - 2))
    if has_kernel("gated_activation", x.device):
        out: torch.Tensor = torch.ops.genfast.gated_activation.default(x, condition)
        return out
    if condition is not None:
        condition = condition.to(x.dtype)  # of another dtype under autocast only
    return gated_activation_reference(x, condition)


def gated_activation_reference(
    x: torch.Tensor, condition: torch.Tensor | None = None
) -> torch.Tensor:
    """`gated_activation` in plain PyTorch; differentiable to any order."""
    if condition is not None:
        x = x + condition.reshape(condition.shape + (1,) * (x.dim() - condition.dim()))
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def _check_arguments(x: torch.Tensor, condition: torch.Tensor | None) -> None:
    check_tensor("gated_activation", "x", x)
    if x.dim() < 2 or x.shape[1] < 2 or x.shape[1] % 2 or not x.is_floating_point():
        raise InputError(
            "gated_activation: expected floating point x of shape [N, 2C, ...], got "
            f"x.shape={tuple(x.shape)}, x.dtype={x.dtype}"
        )
    if condition is None:
        return
    per_example = (*x.shape[:2], *(1,) * (x.dim() - 2))
    if condition.shape not in (x.shape, x.shape[:2], per_example):
        raise InputError(
            "gated_activation: expected condition of shape [N, 2C] or of the shape of x "
            f"{tuple(x.shape)}, got condition.shape={tuple(condition.shape)}"
        )
    # It follows x: the arithmetic is float32 whatever the dtype, and float64 for float64.
    check_alike("gated_activation", "condition", condition, "x", x, casts_float64=True)


if loaded():

    def _empty_like(x: torch.Tensor, channels: int) -> torch.Tensor:
        shape = (x.shape[0], channels, *x.shape[2:])
        # The kernels read any stride between examples.
        if not x[:1].is_contiguous() and x[:1].movedim(1, -1).is_contiguous():
            last = x.new_empty((shape[0], *shape[2:], channels))
            return last.movedim(-1, 1)
        return x.new_empty(shape)

    @torch.library.register_fake("genfast::gated_activation")
    def _gated_activation_fake(x: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return _empty_like(x, x.shape[1] // 2)

    @torch.library.register_fake("genfast::_gated_activation_backward")
    def _gated_activation_backward_fake(
        grad: torch.Tensor, x: torch.Tensor, condition: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (0,) if condition is None or condition.shape == x.shape else condition.shape
        return _empty_like(x, x.shape[1]), x.new_empty(shape)
