"""Two-dimensional convolution with a masked kernel, computed over the live taps only.

Source: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks", ICML 2016,
section 3.4 (masked convolutions).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError

# The taps travel to a CUDA kernel by value, so their number is bounded (kernels/masked_conv2d.h).
_MOST_CUDA_TAPS = 512

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    taps: Sequence[int] | None = None,
) -> torch.Tensor:
    """Convolves x with weight * mask, skipping the kernel positions that the mask closes.

    A tap is the number kh * kW + kw of a kernel position; it is live when the mask is nonzero there
    for some pair of channels.

    1. masked = weight * mask
    2. out[n, co, h, w] = bias[co] + sum over live taps (kh, kw) and ci of masked[co, ci, kh, kw]
       * x[n, ci, h*stride + kh*dilation - padding, w*stride + kw*dilation - padding]

    Equivalent to `F.conv2d(x, weight * mask, bias, stride, padding, dilation, groups)`, except that
    what only dead taps reach is never read, and that a weight under a zero of the mask is never
    used: NaN there stays there.

    Args:
        x: [N, C_in, H, W] or [C_in, H, W]; float16, bfloat16, float32 or float64, any strides
            (contiguous is fastest). Half types are summed in float32.
        weight: [C_out, C_in/groups, kH, kW], dtype and device of `x`.
        mask: bool or floating point, broadcastable to the weight. It gets no gradient.
        bias: [C_out] or None.
        stride: Integer or pair, >= 1.
        padding: Integer or pair, >= 0, or "same" (stride 1) or "valid".
        dilation: Integer or pair, >= 1.
        groups: Groups of channels.
        taps: The live taps, ascending, when the caller knows them (`live_taps` finds them once);
            taps left out count as dead. Without it a CUDA mask is read back at every call.

    Returns:
        [N, C_out, H_out, W_out] or [C_out, H_out, W_out], contiguous, dtype of `x`. Differentiable
        in x, weight and bias to any order; the gradient of a masked weight is exactly 0. The same
        bits for every number of threads. Under autocast the operands are cast as for conv2d.

    Raises:
        InputError: if an argument breaks a rule above, or the mask requires a gradient.
    """
    strides = _pair("stride", stride, 1)
    dilations = _pair("dilation", dilation, 1)
    _check_tensors(x, weight, mask, bias, groups)
    if x.dim() == 3:
        batched = masked_conv2d(
            x.unsqueeze(0),
            weight,
            mask,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            taps=taps,
        )
        return batched.squeeze(0)
    x, paddings = _resolve_padding(x, weight, strides, padding, dilations)
    _check_fit(x, weight, paddings, dilations)
    known = _known_taps(taps, mask, weight)
    if has_kernel("masked_conv2d", x.device) and not (
        x.is_cuda and known is not None and len(known) > _MOST_CUDA_TAPS
    ):
        out: torch.Tensor = torch.ops.genfast.masked_conv2d(
            x, weight, mask, bias, known, strides, paddings, dilations, groups
        )
        return out
    return masked_conv2d_reference(
        x,
        weight,
        mask,
        bias,
        stride=strides,
        padding=paddings,
        dilation=dilations,
        groups=groups,
        taps=known,
    )


def masked_conv2d_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    taps: Sequence[int] | None = None,
) -> torch.Tensor:
    """`masked_conv2d` in plain PyTorch; it computes the dead taps too, as products with zero."""
    live = mask != 0
    if taps is not None:
        kernel = torch.zeros(weight[0, 0].numel(), dtype=torch.bool, device=mask.device)
        kernel[list(taps)] = True
        live = live & kernel.view(weight.shape[2:])
    masked = torch.where(live, weight * mask.to(weight.dtype), 0)
    return F.conv2d(x, masked, bias, stride, padding, dilation, groups)


def live_taps(mask: torch.Tensor) -> tuple[int, ...]:
    """The kernel positions kh * kW + kw where the mask is nonzero for some pair of channels.

    Args:
        mask: [..., kH, kW], bool or floating point. On CUDA this waits for the device.

    Returns:
        Ascending positions, for `masked_conv2d(..., taps=)`.

    Raises:
        InputError: if the mask has fewer than two axes.
    """
    if mask.dim() < 2:
        raise InputError(
            f"live_taps: expected a mask of shape [..., kH, kW], got mask.shape={tuple(mask.shape)}"
        )
    values = mask.detach()
    # A sum of magnitudes is zero where all of them are, and much faster than any() over channels.
    magnitudes = values.float() if values.dtype == torch.bool else values.abs()
    flat = magnitudes.flatten(-2)
    return tuple(flat.reshape(-1, flat.shape[-1]).sum(0).nonzero().flatten().tolist())


def _known_taps(
    taps: Sequence[int] | None, mask: torch.Tensor, weight: torch.Tensor
) -> list[int] | None:
    if taps is None:
        if torch.compiler.is_compiling() or mask.is_meta:
            return None  # the values of a mask are unknown then; the operator looks for itself
        shape = (*mask.shape[:-2], *weight.shape[2:])
        return list(live_taps(mask.expand(shape)))
    positions = weight.shape[2] * weight.shape[3]
    known = [int(tap) for tap in taps]
    ascending = all(a < b for a, b in pairwise(known))
    if not ascending or (known and not 0 <= known[0] <= known[-1] < positions):
        raise InputError(
            f"masked_conv2d: expected ascending taps in [0, kH*kW={positions}), got taps={known}"
        )
    return known


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Iterable) else (value, value)
    if not all(isinstance(number, int) for number in pair):  # NumPy's integers, say
        pair = tuple(number.__index__() for number in pair if hasattr(number, "__index__"))
    if len(pair) != 2 or min(pair) < least:
        raise InputError(
            f"masked_conv2d: expected an integer or a pair of integers >= {least}, "
            f"got {name}={value}"
        )
    return pair


def _check_tensors(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    groups: int,
) -> None:
    if x.dim() not in (3, 4) or x.dtype not in _FLOATING:
        raise InputError(
            "masked_conv2d: expected floating point x of shape [N, C_in, H, W] or [C_in, H, W], "
            f"got x.shape={tuple(x.shape)}, x.dtype={x.dtype}"
        )
    if weight.dim() != 4 or weight.numel() == 0:
        raise InputError(
            "masked_conv2d: expected weight of shape [C_out, C_in/groups, kH, kW], "
            f"got weight.shape={tuple(weight.shape)}"
        )
    if groups < 1 or weight.shape[0] % groups or x.shape[-3] != weight.shape[1] * groups:
        raise InputError(
            "masked_conv2d: expected C_out divisible by groups and C_in = groups*weight.shape[1], "
            f"got groups={groups}, x.shape={tuple(x.shape)}, weight.shape={tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(
            f"masked_conv2d: expected bias of shape [C_out={weight.shape[0]}], "
            f"got bias.shape={tuple(bias.shape)}"
        )
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (
            (tensor.dtype != x.dtype and not autocast) or tensor.device != x.device
        ):
            raise InputError(
                f"masked_conv2d: expected {name} of the dtype and device of x ({x.dtype} on "
                f"{x.device}), got {tensor.dtype} on {tensor.device}"
            )
    if not (mask.dtype == torch.bool or mask.is_floating_point()) or mask.device != x.device:
        raise InputError(
            "masked_conv2d: expected a bool or floating point mask on the device of x "
            f"({x.device}), got mask.dtype={mask.dtype}, mask.device={mask.device}"
        )
    sizes = zip(reversed(mask.shape), reversed(weight.shape), strict=False)
    if not 2 <= mask.dim() <= 4 or any(m not in (1, w) for m, w in sizes):
        raise InputError(
            "masked_conv2d: expected a mask [..., kH, kW] that broadcasts to the weight "
            f"{tuple(weight.shape)}, got mask.shape={tuple(mask.shape)}"
        )
    if mask.requires_grad:
        raise InputError(
            "masked_conv2d: expected a mask without gradient, got mask.requires_grad=True; "
            "use F.conv2d(x, weight * mask) to learn a mask"
        )


def _resolve_padding(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: int | Sequence[int] | str,
    dilation: tuple[int, int],
) -> tuple[torch.Tensor, tuple[int, int]]:
    if not isinstance(padding, str):
        return x, _pair("padding", padding, 0)
    if padding == "valid":
        return x, (0, 0)
    if padding != "same" or stride != (1, 1):
        raise InputError(
            'masked_conv2d: expected an integer, a pair, "valid" or, with stride 1, "same", '
            f"got padding={padding!r}, stride={stride}"
        )
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if total[0] % 2 or total[1] % 2:  # the odd row or column goes below and to the right
        x = F.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, (total[0] // 2, total[1] // 2)


def _check_fit(
    x: torch.Tensor, weight: torch.Tensor, padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    if any(size < 1 for size in _output_size(x.shape, weight.shape, (1, 1), padding, dilation)):
        raise InputError(
            "masked_conv2d: expected a kernel that fits into the padded input, got "
            f"x.shape={tuple(x.shape)}, weight.shape={tuple(weight.shape)}, padding={padding}, "
            f"dilation={dilation}"
        )


def _output_size(
    x: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    return [
        (x[2 + a] + 2 * padding[a] - dilation[a] * (weight[2 + a] - 1) - 1) // stride[a] + 1
        for a in (0, 1)
    ]


if loaded():
    from genfast.ops import _masked_conv2d_autograd as _masked_conv2d_autograd
