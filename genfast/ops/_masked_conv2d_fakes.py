"""Fake kernels of `genfast::masked_conv2d` and its gradients: shapes without numbers."""

from collections.abc import Sequence

import torch

from genfast.ops._masked_conv2d_arguments import output_size
from genfast.ops._masked_conv2d_epilogue import result_channels


@torch.library.register_fake("genfast::masked_conv2d")
def _forward_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    taps: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.new_empty((x.shape[0], weight.shape[0], *size))


@torch.library.register_fake("genfast::_masked_conv2d_grad_input")
def _grad_input_fake(
    grad: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    taps: Sequence[int] | None,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    return grad.new_empty((grad.shape[0], weight.shape[1] * groups, *input_size))


@torch.library.register_fake("genfast::_masked_conv2d_grad_weight")
def _grad_weight_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor,
    taps: Sequence[int] | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    return grad.new_empty((grad.shape[1], x.shape[1] // groups, *kernel_size))


@torch.library.register_fake("genfast::masked_conv2d_activation")
def _activation_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    addend: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    rectify: bool,
    taps: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.new_empty((x.shape[0], result_channels(weight.shape[0], activation), *size))


@torch.library.register_fake("genfast::_masked_conv2d_activation")
def _activation_keeping_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    addend: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    rectify: bool,
    taps: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    keep_pre: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    channels = weight.shape[0]
    out = x.new_empty((x.shape[0], result_channels(channels, activation), *size))
    return out, x.new_empty((x.shape[0], channels, *size) if keep_pre else (0,))


@torch.library.register_fake("genfast::_masked_conv2d_activation_backward")
def _activation_backward_fake(
    grad: torch.Tensor, kept: torch.Tensor, activation: str, of_output: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    half = kept.dtype in (torch.float16, torch.bfloat16)
    sums = kept.new_empty(kept.shape[:2], dtype=torch.float32 if half else kept.dtype)
    return kept.new_empty(kept.shape), sums


@torch.library.register_fake("genfast::_masked_conv2d_grad_rectified")
def _grad_rectified_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    taps: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape if need_x else (0,)), x.new_empty(
        weight.shape if need_weight else (0,)
    )


@torch.library.register_fake("genfast::_masked_conv2d_reorder")
def _reorder_fake(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(x, memory_format=memory_format)
