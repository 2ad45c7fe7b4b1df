"""Which part of a dataset a split name means, the same for every file format."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch

from genfast.data._files import StrPath, check_size, data_error
from genfast.data.dataset import ImageDataset
from genfast.data.sounds import SoundDataset
from genfast.errors import InputError

AnyDataset = TypeVar("AnyDataset", ImageDataset, SoundDataset)

SPLITS = ("train", "test", "valid", "all")
_HELD_OUT = 0.1


def check_split(where: str, split: str) -> None:
    """Raise `InputError` unless `split` is a known name."""
    if split not in SPLITS:
        raise InputError(f"{where}: expected split to be one of {', '.join(SPLITS)}, got {split=}")


def select(
    path: StrPath, parts: Mapping[str, Callable[[], AnyDataset]], split: str, max_bytes: int
) -> AnyDataset:
    """Load what `split` means out of the parts that exist.

    Args:
        path: file or folder, for messages.
        parts: how to load each part that is there; "all" for a file that has no split.
        split: what is asked for. "all" joins every part. Where only one of "train" and "test"
            exists, the other is a fixed tenth of it, held out; "valid" is never made up.
        max_bytes: cap on the joined data.
    """
    if split == "all":
        loaded = [load() for load in parts.values()]
        return loaded[0] if len(loaded) == 1 else _join(path, loaded, max_bytes)
    if split == "valid" and "valid" not in parts:
        raise data_error(path, "a validation split", f"only {', '.join(parts)}")
    if split == "valid" or {"train", "test"} <= parts.keys():
        return parts[split]()
    only = next((name for name in ("all", "train", "test") if name in parts), None)
    if only is None:
        raise data_error(path, f"a {split} split", f"only {', '.join(parts) or 'none'}")
    return hold_out(path, parts[only](), split)


def hold_out(path: StrPath, data: AnyDataset, split: str) -> AnyDataset:
    """Return the fixed tenth of `data` for "test", the rest of it for "train"."""
    count = len(data)
    if count < 2:
        what = "images" if isinstance(data, ImageDataset) else "sounds"
        raise data_error(path, f"at least 2 {what} to hold out a test split", count)
    # RandomState is frozen by NumPy's policy, so a model never meets its test images after an
    # upgrade.
    order = np.random.RandomState(0).permutation(count)
    held = max(1, round(count * _HELD_OUT))
    return data.subset(np.sort(order[:held] if split == "test" else order[held:]))


def _join(path: StrPath, parts: list[AnyDataset], max_bytes: int) -> AnyDataset:
    found = [part.labels for part in parts if part.labels is not None]
    labels = torch.cat(found) if len(found) == len(parts) else None
    first = parts[0]
    if isinstance(first, SoundDataset):
        return _join_sounds(path, parts, labels, max_bytes)
    for other in parts[1:]:
        if (other.image_shape, other.levels) != (first.image_shape, first.levels):
            expected = f"every split with {first.image_shape} images of {first.levels} levels"
            raise data_error(path, expected, f"{other.image_shape} of {other.levels}")
    check_size(path, "images", sum(part.images.nbytes for part in parts), max_bytes)
    return ImageDataset(
        torch.cat([part.images for part in parts]), labels, first.levels, first.name
    )


def _join_sounds(
    path: StrPath, parts: list[SoundDataset], labels: torch.Tensor | None, max_bytes: int
) -> SoundDataset:
    rates = sorted({part.sample_rate for part in parts})
    if len(rates) > 1:
        raise data_error(path, f"every split at {rates[0]} Hz", f"{rates[1]} Hz")
    check_size(path, "sounds", sum(part.samples.nbytes for part in parts), max_bytes)
    sounds = [part[index][0] for part in parts for index in range(len(part))]
    return SoundDataset(sounds, labels, rates[0], parts[0].name)
