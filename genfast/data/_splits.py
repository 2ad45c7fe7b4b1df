"""Which part of a dataset a split name means, the same for every file format."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from genfast.data._files import StrPath, check_size, data_error
from genfast.data.dataset import ImageDataset
from genfast.errors import InputError

SPLITS = ("train", "test", "valid", "all")
_HELD_OUT = 0.1


def check_split(where: str, split: str) -> None:
    """Raise `InputError` unless `split` is a known name."""
    if split not in SPLITS:
        raise InputError(f"{where}: expected split to be one of {', '.join(SPLITS)}, got {split=}")


def select(
    path: StrPath, parts: Mapping[str, Callable[[], ImageDataset]], split: str, max_bytes: int
) -> ImageDataset:
    """Load what `split` means out of the parts that exist.

    Args:
        path: file or folder, for messages.
        parts: how to load each part that is there; "all" for a file that has no split.
        split: what is asked for. "all" joins every part. Where only one of "train" and "test"
            exists, the other is a fixed tenth of it, held out; "valid" is never made up.
        max_bytes: cap on the joined images.
    """
    if split == "all":
        return _join(path, [load() for load in parts.values()], max_bytes)
    if split == "valid" and "valid" not in parts:
        raise data_error(path, "a validation split", f"only {', '.join(parts)}")
    if split == "valid" or {"train", "test"} <= parts.keys():
        return parts[split]()
    only = next((name for name in ("all", "train", "test") if name in parts), None)
    if only is None:
        raise data_error(path, f"a {split} split", f"only {', '.join(parts) or 'none'}")
    return hold_out(path, parts[only](), split)


def hold_out(path: StrPath, data: ImageDataset, split: str) -> ImageDataset:
    """Return the fixed tenth of `data` for "test", the rest of it for "train"."""
    count = len(data)
    if count < 2:
        raise data_error(path, "at least 2 images to hold out a test split", count)
    # RandomState is frozen by NumPy's policy, so a model never meets its test images after an
    # upgrade.
    order = np.random.RandomState(0).permutation(count)
    held = max(1, round(count * _HELD_OUT))
    return data.subset(np.sort(order[:held] if split == "test" else order[held:]))


def _join(path: StrPath, parts: list[ImageDataset], max_bytes: int) -> ImageDataset:
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        if (other.image_shape, other.levels) != (first.image_shape, first.levels):
            expected = f"every split with {first.image_shape} images of {first.levels} levels"
            raise data_error(path, expected, f"{other.image_shape} of {other.levels}")
    check_size(path, "images", sum(part.images.nbytes for part in parts), max_bytes)
    labels = [part.labels for part in parts if part.labels is not None]
    return ImageDataset(
        torch.cat([part.images for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        first.levels,
        first.name,
    )
