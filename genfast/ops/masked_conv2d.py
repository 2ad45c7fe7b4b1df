"""Two-dimensional convolution with a masked kernel, computed over the live taps only.

Source: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks", ICML 2016,
section 3.4 (masked convolutions).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError
from genfast.ops import _masked_conv2d_arguments as arguments
from genfast.ops import _masked_conv2d_epilogue as epilogue
from genfast.ops._checks import check_tensor, integer

# The taps travel to a CUDA kernel by value, so their number is bounded (kernels/masked_conv2d.h).
_MOST_CUDA_TAPS = 512


def masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    addend: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    rectify: bool = False,
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
    2. conv[n, co, h, w] = bias[co] + sum over live taps (kh, kw) and ci of masked[co, ci, kh, kw]
       * x[n, ci, h*stride + kh*dilation - top, w*stride + kw*dilation - left], zero outside x
    3. out = activation(conv + addend) + residual

    Step 2 is `F.conv2d(F.pad(x, padding), weight * mask, bias, stride, 0, dilation, groups)`,
    except that what only dead taps reach is never read, that a weight under a zero of the mask is
    never used (NaN there stays there), and that no padded copy is made. For the backward pass step
    3 keeps its result (ReLU and ELU without a residual), conv + addend, or without an activation
    nothing.

    Args:
        x: [N, C_in, H, W] or [C_in, H, W]; float16, bfloat16, float32 or float64, any strides
            (contiguous is fastest). Half types are summed in float32. On x86 processors numbers
            too small to be normal count as zero: a few would make the sums many times as slow.
        weight: [C_out, C_in/groups, kH, kW], dtype and device of `x`.
        mask: bool or floating point, broadcastable to the weight. It gets no gradient.
        bias: [C_out] or None.
        addend: None, of the convolution's shape, or [N, C_out] (the same at every pixel).
        activation: None, "relu", "elu", "concat_elu" (ELU of conv + addend, then ELU of its
            negative in C_out channels more) or "gate" (tanh of the first half of the channels times
            sigmoid of the second: C_out/2 channels).
        residual: None or of the result's shape.
        rectify: Convolve max(0, x), as behind a ReLU, without a copy of it for the forward pass and
            without a pass over its gradient.
        stride: Integer or pair, >= 1.
        padding: Integer or pair (rows, columns), >= 0; (left, right, top, bottom) as for `F.pad`,
            where a negative number crops; "same" (stride 1; what is odd goes right and below) or
            "valid".
        dilation: Integer or pair, >= 1.
        groups: Groups of channels.
        taps: The live taps, ascending, when the caller knows them (`live_taps` finds them once);
            taps left out count as dead. Without it a CUDA mask is read back at every call.

    Returns:
        [N, C, H_out, W_out] or [C, H_out, W_out] with C of the activation, dtype of `x`, channels
        last if `x` is, else contiguous. Differentiable in all but the mask to any order; the
        gradient of a masked weight is exactly 0. The same bits for every number of threads. Under
        autocast the operands are cast as for conv2d.

    Raises:
        InputError: if an argument breaks a rule above, or the mask requires a gradient.
    """
    strides = arguments.pair("stride", stride, 1)
    dilations = arguments.pair("dilation", dilation, 1)
    groups = integer("masked_conv2d", "groups", groups, 1)
    arguments.check_tensors(x, weight, mask, bias, groups)
    if x.dim() == 3:
        batched = masked_conv2d(
            x.unsqueeze(0),
            weight,
            mask,
            bias,
            addend=None if addend is None else addend.unsqueeze(0),
            activation=activation,
            residual=None if residual is None else residual.unsqueeze(0),
            rectify=rectify,
            stride=strides,
            padding=padding,
            dilation=dilations,
            groups=groups,
            taps=taps,
        )
        return batched.squeeze(0)
    kernel = weight.shape[2:]
    paddings = arguments.sides(padding, kernel, strides, dilations)
    arguments.check_fit(x, weight, paddings, dilations)
    known = _known_taps(taps, mask, weight)
    geometry = known, strides, paddings, dilations, groups
    plain = addend is None and activation is None and residual is None and not rectify
    if not plain:
        size = arguments.output_size(x.shape[2:], kernel, strides, paddings, dilations)
        epilogue.check_epilogue(
            x, (x.shape[0], weight.shape[0], *size), addend, activation, residual
        )
        if addend is not None and addend.dim() == 2:
            addend = addend.unsqueeze(2).unsqueeze(3)
    if has_kernel("masked_conv2d", x.device) and not (
        x.is_cuda and known is not None and len(known) > _MOST_CUDA_TAPS
    ):
        channels_last = _is_channels_last(x)
        if channels_last:
            x = _reorder(x, channels_last=False)
        if plain:
            out: torch.Tensor = torch.ops.genfast.masked_conv2d.default(
                x, weight, mask, bias, *geometry
            )
        else:
            operator = epilogue.operator_on(x.device)
            out = operator(
                x, weight, mask, bias, addend, residual, activation or "none", rectify, *geometry
            )
        if channels_last:
            out = _reorder(out, channels_last=True)
        return out
    return masked_conv2d_reference(
        x,
        weight,
        mask,
        bias,
        addend=addend,
        activation=activation,
        residual=residual,
        rectify=rectify,
        stride=strides,
        padding=paddings,
        dilation=dilations,
        groups=groups,
        taps=known,
    )


def _reorder(x: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
    """A copy that is channels last or contiguous; its gradient goes back as x was."""
    copied: torch.Tensor = torch.ops.genfast._masked_conv2d_reorder.default(x, channels_last)
    return copied


def _is_channels_last(x: torch.Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def masked_conv2d_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    addend: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    rectify: bool = False,
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
    x = F.relu(x) if rectify else x
    steps = arguments.pair("stride", stride, 1), arguments.pair("dilation", dilation, 1)
    left, right, top, bottom = arguments.sides(padding, weight.shape[2:], *steps)
    if left == right >= 0 and top == bottom >= 0:
        out = F.conv2d(x, masked, bias, stride, (top, left), dilation, groups)
    else:
        padded = F.pad(x, (left, right, top, bottom))
        out = F.conv2d(padded, masked, bias, stride, 0, dilation, groups)
    if addend is not None and addend.dim() == out.dim() - 2:
        addend = addend.unsqueeze(-1).unsqueeze(-1)
    if x.dim() == 3:
        return epilogue.apply_epilogue(
            out.unsqueeze(0), addend, activation, residual, reference=True
        ).squeeze(0)
    return epilogue.apply_epilogue(out, addend, activation, residual, reference=True)


def live_taps(mask: torch.Tensor) -> tuple[int, ...]:
    """The kernel positions kh * kW + kw where the mask is nonzero for some pair of channels.

    Args:
        mask: [..., kH, kW], bool or floating point. On CUDA this waits for the device.

    Returns:
        Ascending positions, for `masked_conv2d(..., taps=)`.

    Raises:
        InputError: if the mask has fewer than two axes.
    """
    check_tensor("live_taps", "mask", mask)
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
    if taps is not None:
        return arguments.check_taps(taps, weight)
    if torch.compiler.is_compiling() or mask.is_meta:
        return None  # the values of a mask are unknown then; the operator looks for itself
    shape = (*mask.shape[:-2], *weight.shape[2:])
    return list(live_taps(mask.expand(shape)))


if loaded():
    from genfast.ops import _masked_conv2d_fakes as _masked_conv2d_fakes
