"""The arguments of `masked_conv2d`: their rules, and options in the form that operators take."""

from collections.abc import Iterable, Sequence

import torch

from genfast.errors import InputError

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
"""Padding (left, right, top, bottom)."""

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    """A number for rows and one for columns, of an option that may be one number for both."""
    if isinstance(value, int) and value >= least:
        return value, value
    numbers = _integers(value)
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2 or min(numbers) < least:
        raise InputError(
            f"masked_conv2d: expected an integer or a pair of integers >= {least}, "
            f"got {name}={value}"
        )
    return numbers[0], numbers[1]


def sides(
    padding: int | Sequence[int] | str, kernel: Sequence[int], stride: Pair, dilation: Pair
) -> Sides:
    """Padding in any of its forms as (left, right, top, bottom)."""
    if not isinstance(padding, str):
        numbers = _integers(padding)
        if len(numbers) == 4:
            return numbers[0], numbers[1], numbers[2], numbers[3]
        if len(numbers) in (1, 2) and min(numbers) >= 0:
            return numbers[-1], numbers[-1], numbers[0], numbers[0]
        raise InputError(
            "masked_conv2d: expected an integer or a pair of integers >= 0, or four integers "
            f"(left, right, top, bottom), got padding={padding}"
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
    if groups < 1 or sizes[0] % groups or x.shape[-3] != sizes[1] * groups:
        raise InputError(
            "masked_conv2d: expected C_out divisible by groups and C_in = groups*weight.shape[1], "
            f"got groups={groups}, x.shape={tuple(x.shape)}, weight.shape={tuple(sizes)}"
        )
    if bias is not None and bias.shape != sizes[:1]:
        raise InputError(
            f"masked_conv2d: expected bias of shape [C_out={sizes[0]}], "
            f"got bias.shape={tuple(bias.shape)}"
        )
    check_alike("weight", weight, x)
    check_alike("bias", bias, x)
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


def check_alike(name: str, tensor: torch.Tensor | None, x: torch.Tensor) -> None:
    """Raise InputError unless the tensor has the device of x, and its dtype or autocast's."""
    if tensor is None or (tensor.dtype == x.dtype and tensor.device == x.device):
        return
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if tensor.device != x.device or not autocast:
        raise InputError(
            f"masked_conv2d: expected {name} of the dtype and device of x ({x.dtype} on "
            f"{x.device}), got {tensor.dtype} on {tensor.device}"
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
    known = [int(tap) for tap in taps]
    last = -1
    for tap in known:
        if not last < tap < positions:
            raise InputError(
                f"masked_conv2d: expected ascending taps in [0, kH*kW={positions}), "
                f"got taps={known}"
            )
        last = tap
    return known


def _broadcasts(mask: Sequence[int], weight: Sequence[int]) -> bool:
    rank = len(mask)
    return 2 <= rank <= 4 and all(
        m in (1, w) for m, w in zip(mask, weight[4 - rank :], strict=True)
    )


def _integers(value: int | Sequence[int]) -> tuple[int, ...]:
    """The numbers of an option; none where one of them is no integer."""
    if isinstance(value, int):
        return (value,)
    numbers = tuple(value) if isinstance(value, tuple | list | Iterable) else (value,)
    for number in numbers:
        if not isinstance(number, int):
            break
    else:
        return numbers
    # NumPy's integers, say.
    if all(hasattr(number, "__index__") for number in numbers):
        return tuple(number.__index__() for number in numbers)
    return ()
