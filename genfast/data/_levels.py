"""From any numbers that mean an image to grey levels 0 .. levels-1, in bounded extra memory."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MAX_LEVELS = 2**16
_CHUNK = 2**20  # elements converted at a time, so that temporaries stay small

Fail = Callable[[str, str], Exception]
"""Builds the exception from what was expected and what was found."""


def level_dtype(levels: int) -> npt.DTypeLike:
    """Return the dtype of canonical images: uint8 where it fits, int32 above."""
    return np.uint8 if levels <= 256 else np.int32


def infer_levels(array: npt.NDArray[Any], fail: Fail) -> int:
    """Return 2 for integers that are all 0 or 1, 256 or 65,536 for the smallest that fits.

    Floating point images in [0, 1] carry no level count, and get 256.
    """
    _check_kind(array, fail)
    if array.dtype.kind == "b":
        return 2
    if array.dtype.kind == "f" or array.size == 0:
        return 256
    largest = int(array.max())
    if largest >= MAX_LEVELS:
        raise fail(f"grey levels below {MAX_LEVELS}", f"{largest}")
    return 2 if largest <= 1 else 256 if largest < 256 else MAX_LEVELS


def to_levels(array: npt.NDArray[Any], levels: int, fail: Fail) -> npt.NDArray[Any]:
    """Return `array` as grey levels; floats in [0, 1] become round(x * (levels - 1)).

    Raises:
        Exception: what `fail` makes, when a value is out of range or the dtype holds no numbers.
    """
    dtype = np.dtype(level_dtype(levels))
    if array.dtype == dtype and dtype == np.uint8 and levels == 256:
        return array
    _check_kind(array, fail)
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    in_place = array.dtype == dtype
    # Keeping the order of a Fortran array saves a copy of it.
    order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
    flat = array.reshape(-1, order=order)
    out = flat if in_place else np.empty(flat.shape, dtype)
    highest = 1 if array.dtype.kind == "f" else levels - 1
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        good = (piece >= 0) & (piece <= highest)  # false for NaN
        if not good.all():
            index = int(np.argmin(good))
            rule = f"floats in [0, 1] or integers in 0 .. {levels - 1}"
            place = [int(i) for i in np.unravel_index(start + index, array.shape, order)]
            raise fail(rule, f"{piece[index]} at index {place}")
        if array.dtype.kind == "f":
            wide = piece.astype(np.float64)
            np.copyto(out[start : start + _CHUNK], np.rint(wide * (levels - 1)), casting="unsafe")
        elif not in_place:
            out[start : start + _CHUNK] = piece
    return out.reshape(array.shape, order=order)


def _check_kind(array: npt.NDArray[Any], fail: Fail) -> None:
    if array.dtype.kind not in "buif":
        raise fail("integer or floating point images", f"dtype {array.dtype}")


def channel_first(
    array: npt.NDArray[Any], fail: Fail, channels_last: bool | None = None
) -> npt.NDArray[Any]:
    """Return `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]` as contiguous `[N, C, H, W]`.

    Without being told, 4-D means channel last only where `looks_channel_last`.
    """
    if array.ndim not in (3, 4) or 0 in array.shape[1:]:
        raise fail("images [N, H, W], [N, C, H, W] or [N, H, W, C]", f"shape {list(array.shape)}")
    if array.ndim == 3:
        array = array[:, None]
    else:
        guess = looks_channel_last(array.shape)
        if guess if channels_last is None else channels_last:
            array = np.moveaxis(array, 3, 1)
    return np.ascontiguousarray(array)


def looks_channel_last(shape: tuple[int, ...]) -> bool:
    """Tell whether a 4-D shape reads as `[N, H, W, C]`: C of 1, 3 or 4, H and W above 4."""
    return len(shape) == 4 and shape[3] in (1, 3, 4) and min(shape[1:3]) > 4
