"""Fake kernels of `genfast::masked_conv2d` and its gradients: shapes without numbers."""

from collections.abc import Sequence

import torch

from genfast.ops._masked_conv2d_arguments import output_size


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
