"""Convolution with a masked kernel."""

import torch
import torch.nn.functional as F


def masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """conv2d(x, weight * mask, bias)."""
    return masked_conv2d_reference(
        x, weight, mask, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


def masked_conv2d_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`masked_conv2d` in plain PyTorch."""
    return F.conv2d(x, weight * mask, bias, stride, padding, dilation, groups)
