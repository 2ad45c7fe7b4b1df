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
    conv: nn.Conv1d | nn.Conv2d,
    x: Tensor,
    *,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    addend: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    rectify: bool = False,
) -> Tensor:
    """Apply the weights of a convolution, with other padding and what follows it in one op.

    Args:
        conv: of dilation 1 and one group; a kernel in one dimension lies along the columns.
        x: [N, C_in, H, W].
        padding: (left, right, top, bottom) as for `F.pad`; negative numbers crop.
        addend: see `genfast.ops.masked_conv2d`, as for `activation` and `residual`.
        activation: what is applied to the sum.
        residual: what is added to the result.
        rectify: convolve max(0, x).
    """
    weight, stride = conv.weight, conv.stride
    if weight.dim() == 3:
        weight, stride = weight.unsqueeze(2), (1, *stride)
    if x.is_cuda or not has_kernel("masked_conv2d", x.device):
        # No tap is dead, and on a GPU PyTorch's convolution is cuDNN's.
        out = F.conv2d(F.pad(F.relu(x) if rectify else x, padding), weight, conv.bias, stride)
        if addend is not None and addend.dim() == 2:
            addend = addend[:, :, None, None]
        return apply_epilogue(out, addend, activation, residual)
    return masked_conv2d(
        x,
        weight,
        torch.ones((1, 1), dtype=torch.bool, device=weight.device),
        conv.bias,
        addend=addend,
        activation=activation,
        residual=residual,
        rectify=rectify,
        stride=stride,
        padding=padding,
        taps=range(weight.shape[2] * weight.shape[3]),
    )


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
