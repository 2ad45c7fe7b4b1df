"""Rules that the arguments of several operators share.

Every message reads `<op>: expected <rule>, got <name>=<value>`.
"""

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import torch

from genfast.errors import InputError

MOST_STEPS = 2**31 - 1
"""The largest stride, dilation or padding: positions made of two of them stay int64."""

# torch has little arithmetic for these, not even a smallest and a largest element.
_WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def check_tensor(op: str, name: str, value: object) -> None:
    """Raise InputError unless the value is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{op}: expected a tensor, got {name}={_short(value)}")


def check_alike(
    op: str,
    name: str,
    tensor: torch.Tensor | None,
    like_name: str,
    like: torch.Tensor,
    *,
    casts_float64: bool = False,
) -> None:
    """Raise InputError unless a tensor has the dtype and device of another, or comes to have them.

    Under autocast that is any floating point dtype, except that float64 is not cast (unless the
    operator does it by itself: `casts_float64`).
    """
    if tensor is None or (tensor.dtype == like.dtype and tensor.device == like.device):
        return
    if tensor.device == like.device and under_autocast(like.device.type):
        kinds = [_kind(each.dtype, casts_float64) for each in (tensor, like)]
        if kinds[0] == kinds[1] != "other":
            return
        reason = "; autocast does not make float64 and others alike"
    else:
        reason = ""
    raise InputError(
        f"{op}: expected {name} of the dtype and device of {like_name} ({like.dtype} on "
        f"{like.device}{reason}), got {name}.dtype={tensor.dtype}, {name}.device={tensor.device}"
    )


def under_autocast(device: str) -> bool:
    """Whether autocast is on for this type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def integers(value: Any) -> tuple[int, ...] | None:
    """The numbers of an option that may be one or several; None where one is no integer."""
    if type(value) is int:
        return (value,)
    try:
        given = (value,) if isinstance(value, str) or not _several(value) else tuple(value)
        for number in given:
            if type(number) is not int:
                break
        else:
            return given
        # NumPy's integers, say. True and False are no numbers of pixels.
        if any(isinstance(number, bool) for number in given):
            return None
        return tuple(operator.index(number) for number in given)
    except TypeError:
        return None


def _several(value: object) -> bool:
    # Arrays without axes are numbers.
    if isinstance(value, tuple | list):
        return True
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0


def integer(op: str, name: str, value: object, least: int, most: int = MOST_STEPS) -> int:
    """The option as an int; InputError unless it is one integer in least .. most."""
    found = None if isinstance(value, tuple | list) else integers(value)
    if found is None or len(found) != 1 or not least <= found[0] <= most:
        raise InputError(
            f"{op}: expected an integer in {least} .. {most}, got {name}={_short(value)}"
        )
    return found[0]


def check_real(op: str, name: str, value: object) -> None:
    """Raise InputError unless the value is a real number; a tensor, which may learn, is none."""
    # The first test is the quick one, and what a compiler can follow.
    if not isinstance(value, int | float) and not isinstance(value, numbers.Real):
        raise InputError(f"{op}: expected a number, got {name}={_short(value)}")


def check_finite(op: str, name: str, value: float) -> None:
    """Raise InputError unless the value is a finite number >= 0."""
    check_real(op, name, value)
    if not 0 <= value < math.inf:
        raise InputError(f"{op}: expected a finite {name} >= 0, got {name}={value}")


def check_integer_dtype(op: str, name: str, what: str, tensor: torch.Tensor) -> None:
    """Raise InputError unless the elements are integers."""
    if tensor.is_floating_point() or tensor.is_complex():
        raise InputError(f"{op}: expected integer {what}, got {name}.dtype={tensor.dtype}")


def signed(symbols: torch.Tensor) -> torch.Tensor:
    """The same numbers in a dtype that torch can count with."""
    return symbols.long() if symbols.dtype in _WIDE_UNSIGNED else symbols


def check_range(op: str, what: str, symbols: torch.Tensor, count: int) -> None:
    """Raise InputError if a symbol is outside 0 .. count - 1, where looking costs little."""
    # A compiled graph must not depend on values.
    if symbols.device.type != "cpu" or symbols.numel() == 0 or torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        return
    low, high = (int(end) for end in torch.aminmax(signed(symbols)))
    if low < 0 or high >= count:
        raise InputError(
            f"{op}: expected {what} in 0 .. {count - 1}, got smallest={low}, largest={high}"
        )


def _kind(dtype: torch.dtype, casts_float64: bool) -> str:
    if not dtype.is_floating_point:
        return "other"
    return "double" if dtype == torch.float64 and not casts_float64 else "cast"


def _short(value: object) -> str:
    """A value in an error message: of a tensor its kind, not its elements."""
    if isinstance(value, torch.Tensor):
        return f"tensor of shape {tuple(value.shape)}, {value.dtype}"
    return repr(value)
