"""The border where any kind of image data becomes an `ImageDataset`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from genfast.data._levels import (
    MAX_LEVELS,
    Fail,
    channel_first,
    infer_levels,
    looks_channel_last,
    to_levels,
)
from genfast.data._loader import image_of, loader_batches, own_levels
from genfast.data.dataset import ImageDataset
from genfast.errors import InputError

Data = ImageDataset | Tensor | npt.NDArray[Any] | Dataset[Any] | DataLoader[Any]
"""Everything that may stand where images are expected."""


def as_images(data: Data, levels: int | None = None) -> ImageDataset:
    """Return any kind of image data as integer grey levels in memory.

    1. Find the images: the dataset itself, an array, the items of a Dataset or of all batches of
       a DataLoader (each x or (x, label)).
    2. Bring them to `[N, C, H, W]` on the CPU; `[N, H, W]` has one channel.
    3. Floats x in [0, 1] become round(x * (levels - 1)); integers stay what they are.

    Args:
        data: an `ImageDataset`, a tensor or array, a Dataset or a DataLoader.
        levels: number of grey levels. None takes those of the ImageDataset itself, or inside
            a Subset or DataLoader; else 256 for floats; for integers 2 if all are 0 or 1, else
            256, or 65,536 for larger ones.

    Raises:
        InputError: on a wrong shape or dtype, a value out of range, or levels unlike the dataset's.
    """
    _check_levels("as_images", levels)
    if isinstance(data, ImageDataset):
        if levels is not None and levels != data.levels:
            raise InputError(f"as_images: expected levels={data.levels}, the data's, got {levels=}")
        return data
    if isinstance(data, (Tensor, np.ndarray)):
        return ImageDataset(*_canonical(to_array(data), levels, "as_images"))
    levels = levels or own_levels(data)
    if isinstance(data, DataLoader):
        return _collect(loader_batches(data, 0, 0), levels, batched=True)
    if isinstance(data, Dataset) or hasattr(data, "__getitem__") or hasattr(data, "__iter__"):
        return _collect(_items(data), levels, batched=False)
    kind = type(data).__name__
    raise InputError(f"as_images: expected a tensor, array, Dataset or DataLoader, got {kind}")


def to_canonical(images: Tensor | npt.NDArray[Any], levels: int, where: str) -> Tensor:
    """Return one batch, `[B, C, H, W]` or `[B, H, W]`, as grey levels on the CPU."""
    return ImageDataset(*_canonical(to_array(images), levels, where)).images


def to_array(images: Tensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return images as an array, sharing memory where possible."""
    if isinstance(images, np.ndarray):
        return images
    images = images.detach().cpu()
    return (images.float() if images.dtype == torch.bfloat16 else images).numpy()


def _check_levels(where: str, levels: int | None) -> None:
    if levels is not None and not 2 <= levels <= MAX_LEVELS:
        raise InputError(f"{where}: expected 2 to {MAX_LEVELS} levels, got {levels=}")


def _fail(where: str) -> Fail:
    return lambda expected, found: InputError(f"{where}: expected {expected}, got {found}")


def _canonical(
    array: npt.NDArray[Any], levels: int | None, where: str
) -> tuple[npt.NDArray[Any], None, int]:
    """Return the first three arguments of `ImageDataset`."""
    fail = _fail(where)
    if looks_channel_last(array.shape):
        shape = list(array.shape)
        raise fail("images [N, C, H, W]", f"shape {shape}; move the last axis to place 1")
    array = channel_first(array, fail, channels_last=False)
    levels = infer_levels(array, fail) if levels is None else levels
    return to_levels(array, levels, fail), None, levels


def _items(data: Any) -> Iterator[Any]:
    sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if sized and not isinstance(data, IterableDataset):
        # A map-style Dataset need not raise IndexError at its end, so it is not iterated.
        return (data[index] for index in range(len(data)))
    return iter(data)


def _collect(items: Iterator[Any], levels: int | None, *, batched: bool) -> ImageDataset:
    """Join the items, or batches, of a foreign dataset; floats are quantised one by one."""
    fail = _fail("as_images")
    images: list[npt.NDArray[Any]] = []
    labels: list[int] = []
    labelled, floating = True, None
    for item in items:
        array = to_array(image_of(item, "as_images"))
        array = array if batched else array[None]
        if images and array.shape[1:] != images[0].shape[1:]:
            shapes = f"{list(images[0].shape[1:])} and {list(array.shape[1:])}"
            raise fail("images of one shape", shapes)
        if floating not in (None, array.dtype.kind == "f"):
            raise fail("integers or floats throughout", "both")
        floating = array.dtype.kind == "f"
        if floating:
            array = to_levels(array, levels or 256, fail)  # takes less memory at once
        images.append(array)
        values = labels_of(item, len(array)) if labelled else None
        labelled = values is not None
        labels += values or []
    if not images:
        raise fail("at least one image", "an empty dataset")
    if floating:
        levels = levels or 256
    pixels, _, levels = _canonical(np.concatenate(images), levels, "as_images")
    return ImageDataset(pixels, labels if labelled else None, levels)


def labels_of(item: Any, count: int) -> list[int] | None:
    """Return the class numbers of an item or batch, or None where it has no such thing."""
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        return None
    try:
        values = np.asarray(to_array(item[1]) if isinstance(item[1], Tensor) else item[1])
    except ValueError:  # ragged
        return None
    if values.dtype.kind not in "uib" or values.size != count or (values < 0).any():
        return None
    return [int(value) for value in values.reshape(-1)]
