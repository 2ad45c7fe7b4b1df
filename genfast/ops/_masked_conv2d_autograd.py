"""Fake kernels and derivatives of `genfast::masked_conv2d` and its two gradients.

With `*` the convolution, the three operators are bilinear forms of the same kind:

    masked_conv2d(x, weight)          linear in x and in weight, plus the bias
    grad_input(grad, weight)          its transpose in x
    grad_weight(grad, x)              its transpose in weight

so that the derivative of each is made of the other two, to any order.
"""

from collections.abc import Sequence
from typing import Any

import torch

_Gradients = tuple[torch.Tensor | None, ...]


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
    size = [
        (x.shape[2 + a] + 2 * padding[a] - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a]
        + 1
        for a in (0, 1)
    ]
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


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, mask, _bias, ctx.taps, *ctx.options = inputs
    ctx.save_for_backward(x, weight, mask)


def _forward_backward(ctx: Any, grad: torch.Tensor) -> _Gradients:
    x, weight, mask = ctx.saved_tensors
    need_x, need_weight, _, need_bias, *_ = ctx.needs_input_grad
    ops = torch.ops.genfast
    return (
        ops._masked_conv2d_grad_input(grad, weight, mask, ctx.taps, x.shape[2:], *ctx.options)
        if need_x
        else None,
        ops._masked_conv2d_grad_weight(grad, x, mask, ctx.taps, weight.shape[2:], *ctx.options)
        if need_weight
        else None,
        None,
        grad.sum((0, 2, 3)) if need_bias else None,
        *(None,) * 5,
    )


def _grad_input_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    grad, weight, mask, ctx.taps, _input_size, *ctx.options = inputs
    ctx.save_for_backward(grad, weight, mask)


def _grad_input_backward(ctx: Any, grad_x: torch.Tensor) -> _Gradients:
    """`grad_x` is the gradient with respect to the result, which has the shape of x."""
    grad, weight, mask = ctx.saved_tensors
    need_grad, need_weight, *_ = ctx.needs_input_grad
    ops = torch.ops.genfast
    return (
        ops.masked_conv2d(grad_x, weight, mask, None, ctx.taps, *ctx.options)
        if need_grad
        else None,
        ops._masked_conv2d_grad_weight(grad, grad_x, mask, ctx.taps, weight.shape[2:], *ctx.options)
        if need_weight
        else None,
        *(None,) * 7,
    )


def _grad_weight_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    grad, x, mask, ctx.taps, _kernel_size, *ctx.options = inputs
    ctx.save_for_backward(grad, x, mask)


def _grad_weight_backward(ctx: Any, grad_weight: torch.Tensor) -> _Gradients:
    """`grad_weight` is the gradient with respect to the result, which has the weight's shape."""
    grad, x, mask = ctx.saved_tensors
    need_grad, need_x, *_ = ctx.needs_input_grad
    ops = torch.ops.genfast
    return (
        ops.masked_conv2d(x, grad_weight, mask, None, ctx.taps, *ctx.options)
        if need_grad
        else None,
        ops._masked_conv2d_grad_input(grad, grad_weight, mask, ctx.taps, x.shape[2:], *ctx.options)
        if need_x
        else None,
        *(None,) * 7,
    )


torch.library.register_autograd(
    "genfast::masked_conv2d", _forward_backward, setup_context=_forward_setup
)
torch.library.register_autograd(
    "genfast::_masked_conv2d_grad_input", _grad_input_backward, setup_context=_grad_input_setup
)
torch.library.register_autograd(
    "genfast::_masked_conv2d_grad_weight", _grad_weight_backward, setup_context=_grad_weight_setup
)
