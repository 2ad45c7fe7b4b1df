"""What follows a masked convolution at each pixel: activation(conv + addend) + residual."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from genfast._extension import loaded
from genfast.errors import InputError
from genfast.ops._checks import check_alike
from genfast.ops.gated_activation import gated_activation, gated_activation_reference

_FUSED_ON_CUDA = loaded() and torch._C._dispatch_has_kernel_for_dispatch_key(
    "genfast::_masked_conv2d_activation", "CUDA"
)

ACTIVATIONS = ("relu", "elu", "concat_elu", "gate")


def result_channels(channels: int, activation: str | None) -> int:
    """Channels of the result of a convolution with so many."""
    if activation == "gate":
        return channels // 2
    return 2 * channels if activation == "concat_elu" else channels


def check_epilogue(
    x: torch.Tensor,
    size: Sequence[int],
    addend: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> None:
    """Raise InputError unless the operands fit a convolution of x whose result has `size`."""
    if activation is not None and activation not in ACTIVATIONS:
        raise InputError(
            f"masked_conv2d: expected activation None or one of {ACTIVATIONS}, got {activation=}"
        )
    size = tuple(size)
    if activation == "gate" and size[-3] % 2:
        raise InputError(
            f"masked_conv2d: expected an even C_out for the gate, got weight.shape[0]={size[-3]}"
        )
    if addend is not None and tuple(addend.shape) not in (size, size[:-2]):
        raise InputError(
            f"masked_conv2d: expected addend of shape {size} or {size[:-2]}, got "
            f"addend.shape={tuple(addend.shape)}"
        )
    result = (*size[:-3], result_channels(size[-3], activation), *size[-2:])
    if residual is not None and tuple(residual.shape) != result:
        raise InputError(
            f"masked_conv2d: expected residual of the result's shape {result}, got "
            f"residual.shape={tuple(residual.shape)}"
        )
    check_alike("masked_conv2d", "addend", addend, "x", x)
    check_alike("masked_conv2d", "residual", residual, "x", x)


def apply_epilogue(
    out: torch.Tensor,
    addend: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
    *,
    reference: bool = False,
) -> torch.Tensor:
    """The epilogue of a convolution's result [N, C_out, H, W] in operators of its own."""
    if activation == "gate" and addend is not None and addend.shape[2:] != out.shape[2:]:
        condition, addend = addend, None  # which the gate adds by itself
    else:
        condition = None
    if addend is not None:
        out = out + addend
    match activation:
        case "relu":
            out = F.relu(out)
        case "elu":
            out = F.elu(out)
        case "concat_elu":
            out = F.elu(torch.cat((out, -out), dim=1))
        case "gate":
            gate = gated_activation_reference if reference else gated_activation
            out = gate(out, condition)
    return out if residual is None else out + residual


def operator_on(device: torch.device) -> Callable[..., torch.Tensor]:
    """The fused operator or, where only the convolution has a kernel (Triton's), its parts."""
    fused = device.type != "cuda" or _FUSED_ON_CUDA
    return torch.ops.genfast.masked_conv2d_activation.default if fused else composed


def composed(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    addend: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    rectify: bool,
    *geometry: object,
) -> torch.Tensor:
    """`genfast::masked_conv2d_activation` made of its parts, with the operator's signature."""
    x = F.relu(x) if rectify else x
    out = torch.ops.genfast.masked_conv2d.default(x, weight, mask, bias, *geometry)
    return apply_epilogue(out, addend, activation, residual)
