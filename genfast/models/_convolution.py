"""What the autoregressive models compute with convolutions and what stands around them."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast._extension import has_kernel
from genfast.nn import MaskedConv2d
from genfast.ops import masked_conv2d
from genfast.ops._masked_conv2d_epilogue import apply_epilogue


def convolve(
    conv: nn.Conv2d,
    x: Tensor,
    *,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    addend: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Apply the weights of a convolution, with other padding and what follows it in one op.

    Args:
        conv: of dilation 1 and one group.
        x: [N, C_in, H, W].
        padding: (left, right, top, bottom) as for `F.pad`; negative numbers crop.
        addend: see `genfast.ops.masked_conv2d`, as for `activation` and `residual`.
        activation: what is applied to the sum.
        residual: what is added to the result.
    """
    if x.is_cuda or not has_kernel("masked_conv2d", x.device):
        return convolve_in_parts(
            conv, x, padding=padding, addend=addend, activation=activation, residual=residual
        )
    weight = conv.weight
    return masked_conv2d(
        x,
        weight,
        torch.ones((1, 1), dtype=torch.bool, device=weight.device),
        conv.bias,
        addend=addend,
        activation=activation,
        residual=residual,
        stride=conv.stride,
        padding=padding,
        taps=range(weight.shape[2] * weight.shape[3]),
    )


def convolve_in_parts(
    conv: nn.Conv2d,
    x: Tensor,
    *,
    padding: tuple[int, int, int, int],
    addend: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """The same with PyTorch's convolution: no tap of it is dead, and on a GPU it is cuDNN's."""
    out = F.conv2d(F.pad(x, padding), conv.weight, conv.bias, conv.stride)
    if addend is not None and addend.dim() == 2:
        addend = addend[:, :, None, None]
    return apply_epilogue(out, addend, activation, residual)


class ReluChain(nn.Sequential):
    """ReLUs and masked convolutions in turn; the ReLUs are part of the convolutions' ops."""

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Apply all of them to [N, C, H, W], and add the residual to the result."""
        layers = list(self)
        assert all(isinstance(layer, nn.ReLU) for layer in layers[::2])
        x, convolutions = input, [cast(MaskedConv2d, layer) for layer in layers[1::2]]
        for conv in convolutions[:-1]:
            x = conv(x, activation="relu", rectify=x is input)
        return cast(Tensor, convolutions[-1](x, residual=residual, rectify=x is input))
