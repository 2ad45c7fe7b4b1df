"""The arguments of `masked_conv2d`: their rules, and options in the form that operators take."""

from collections.abc import Sequence

import torch

from genfast.errors import InputError
from genfast.ops._checks import MOST_STEPS, check_alike, check_tensor, integers

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
"""Padding (left, right, top, bottom)."""

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    """A number for rows and one for columns, of an option that may be one number for both."""
    numbers = integers(value) or ()
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2 or not least <= min(numbers) <= max(numbers) <= MOST_STEPS:
        raise InputError(
            f"masked_conv2d: expected an integer or a pair of integers >= {least} and <= "
            f"{MOST_STEPS}, got {name}={value}"
        )
    return numbers[0], numbers[1]


def sides(
    padding: int | Sequence[int] | str, kernel: Sequence[int], stride: Pair, dilation: Pair
) -> Sides:
    """Padding in any of its forms as (left, right, top, bottom)."""
    if not isinstance(padding, str):
        numbers = integers(padding) or ()
        fits = all(-MOST_STEPS <= number <= MOST_STEPS for number in numbers)
        if len(numbers) == 4 and fits:
            return numbers[0], numbers[1], numbers[2], numbers[3]
        if len(numbers) in (1, 2) and fits and min(numbers) >= 0:
            return numbers[-1], numbers[-1], numbers[0], numbers[0]
        raise InputError(
            "masked_conv2d: expected an integer or a pair of integers >= 0, or four integers "
            f"(left, right, top, bottom), none beyond {MOST_STEPS}, got padding={padding}"
        )
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same" or stride != (1, 1):
        raise InputError(
            'masked_conv2d: expected integers, "valid" or, with stride 1, "same", '
            f"got padding={padding!r}, stride={stride}"
        )
    height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    # What is odd goes below and to the right.
    return width // 2, width - width // 2, height // 2, height - height // 2


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of the output."""
    height, width = (
        (size[a] + padding[2 - 2 * a] + padding[3 - 2 * a] - dilation[a] * (kernel[a] - 1) - 1)
        // stride[a]
        + 1
        for a in (0, 1)
    )
    return height, width


def check_tensors(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    groups: int,
) -> None:
    """Raise InputError unless the operands fit each other."""
    for name, operand in (("x", x), ("weight", weight), ("mask", mask)):
        check_tensor("masked_conv2d", name, operand)
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
    sizes = weight.shape
    if sizes[0] % groups or x.shape[-3] != sizes[1] * groups:
        raise InputError(
            "masked_conv2d: expected C_out divisible by groups and C_in = groups*weight.shape[1], "
            f"got groups={groups}, x.shape={tuple(x.shape)}, weight.shape={tuple(sizes)}"
        )
    if bias is not None and bias.shape != sizes[:1]:
        raise InputError(
            f"masked_conv2d: expected bias of shape [C_out={sizes[0]}], "
            f"got bias.shape={tuple(bias.shape)}"
        )
    check_alike("masked_conv2d", "weight", weight, "x", x)
    check_alike("masked_conv2d", "bias", bias, "x", x)
    if not (mask.dtype == torch.bool or mask.is_floating_point()) or mask.device != x.device:
        raise InputError(
            "masked_conv2d: expected a bool or floating point mask on the device of x "
            f"({x.device}), got mask.dtype={mask.dtype}, mask.device={mask.device}"
        )
    if mask.shape != sizes and not _broadcasts(mask.shape, sizes):
        raise InputError(
            "masked_conv2d: expected a mask [..., kH, kW] that broadcasts to the weight "
            f"{tuple(sizes)}, got mask.shape={tuple(mask.shape)}"
        )
    if mask.requires_grad:
        raise InputError(
            "masked_conv2d: expected a mask without gradient, got mask.requires_grad=True; "
            "use F.conv2d(x, weight * mask) to learn a mask"
        )


def check_fit(x: torch.Tensor, weight: torch.Tensor, padding: Sides, dilation: Pair) -> None:
    """Raise InputError if padding crops more than there is, or leaves less than the kernel."""
    height, width = x.shape[-2:]
    left, right, top, bottom = padding
    if min(left, right) < -width or min(top, bottom) < -height:
        raise InputError(
            "masked_conv2d: expected padding that crops no more than the input, got "
            f"x.shape={tuple(x.shape)}, padding={padding}"
        )
    if height + top + bottom <= dilation[0] * (
        weight.shape[2] - 1
    ) or width + left + right <= dilation[1] * (weight.shape[3] - 1):
        raise InputError(
            "masked_conv2d: expected a kernel that fits into the padded input, got "
            f"x.shape={tuple(x.shape)}, weight.shape={tuple(weight.shape)}, padding={padding}, "
            f"dilation={dilation}"
        )


def check_taps(taps: Sequence[int], weight: torch.Tensor) -> list[int]:
    """The taps as a list; InputError unless they ascend within the kernel."""
    positions = weight.shape[2] * weight.shape[3]
    known = integers(taps)
    last = -1
    for tap in known or ():
        if not last < tap < positions:
            break
        last = tap
    else:
        if known is not None:
            return list(known)
    raise InputError(
        f"masked_conv2d: expected ascending taps in [0, kH*kW={positions}), all integers, got "
        f"taps={taps}"
    )


def _broadcasts(mask: Sequence[int], weight: Sequence[int]) -> bool:
    rank = len(mask)
    return 2 <= rank <= 4 and all(
        m in (1, w) for m, w in zip(mask, weight[4 - rank :], strict=True)
    )
