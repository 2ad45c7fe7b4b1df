"""Images in a NumPy `.npz` archive, read without trusting anything it declares.

`numpy.load` allocates an array from the shape in the header before it looks for the data, and can
run pickled code. Here the sizes in the zip directory, in the array header and in the file are
compared with one another first, and only plain numbers are read.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from genfast.data._files import (
    MAX_BYTES,
    StrPath,
    check_inside,
    check_size,
    data_error,
    is_folder,
    list_folder,
    open_regular,
)
from genfast.data._levels import (
    MAX_LEVELS,
    channel_first,
    infer_levels,
    level_dtype,
    looks_channel_last,
    to_levels,
)
from genfast.data._npy import open_archive, read_array
from genfast.data._splits import check_split, select
from genfast.data.dataset import ImageDataset
from genfast.errors import InputError

_ALIASES = {"train": ("train",), "test": ("test",), "valid": ("valid", "val")}


class _Keys(NamedTuple):
    images: str
    labels: str


def npz(
    path: StrPath,
    split: str = "train",
    key: str = "images",
    *,
    levels: int | None = None,
    channels_last: bool | None = None,
    classes: int | None = None,
    max_bytes: int = MAX_BYTES,
    follow_links: bool = False,
) -> ImageDataset:
    """Read images, and labels where there are any, from `.npz` archives.

    An archive holds `images` (or `key`) and perhaps `labels` and a scalar `levels`; or several
    splits at once, as `x_train`, `y_train` or as `train_images`, `train_labels`.

    Args:
        path: one archive, or a folder with train.npz, test.npz and perhaps valid.npz; of these
            the others are found when one is named.
        split: "train", "test", "valid" or "all" (of one file: that file). Where there is only one
            of train and test, a fixed tenth of it is the test split.
        key: name of the images in the archive: `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]`;
            booleans, integers from 0, or floats in [0, 1].
        levels: number of grey levels. None takes the archive's, else 2 for integers that are all
            0 or 1, else 256 (65,536 for larger integers).
        channels_last: whether a 4-D array is `[N, H, W, C]`; None decides by its shape.
        classes: number of classes; labels at or above it are refused.
        max_bytes: most memory an array may take, as stored and as grey levels together.
        follow_links: allow symbolic links that lead out of the folder.

    Raises:
        DataError: a file is missing, truncated, too large, holds objects, or declares what it
            does not contain.
        InputError: an unknown split or an impossible `levels`.
    """
    check_split("npz", split)
    if levels is not None and not 2 <= levels <= MAX_LEVELS:
        raise InputError(f"npz: expected 2 to {MAX_LEVELS} levels, got {levels=}")
    load = partial(
        _load,
        name=Path(path).stem,
        levels=levels,
        channels_last=channels_last,
        classes=classes,
        max_bytes=max_bytes,
    )
    parts: dict[str, Callable[[], ImageDataset]] = {}
    files = _files(Path(path), split)
    for part, file in files.items():
        check_inside(file, file.parent, follow_links or file == Path(path))
        keys = _keys(file, key)
        if part != "all" and "all" not in keys:
            raise data_error(file, f"an array called {key!r}", f"splits {', '.join(keys)}")
        for inner, names in keys.items():
            parts[inner if part == "all" else part] = partial(load, file, names)
    return select(path, parts, split, max_bytes)


def npz_names(folder: StrPath) -> dict[str, Path]:
    """Return the archives in a folder that are named after a split."""
    names = {file.name: file for file in list_folder(folder)}
    return {
        split: names[f"{alias}.npz"]
        for split, aliases in _ALIASES.items()
        for alias in aliases
        if f"{alias}.npz" in names
    }


def _files(path: Path, split: str) -> dict[str, Path]:
    if is_folder(path):
        found = npz_names(path)
        if not found:
            raise data_error(path, "train.npz or test.npz", "neither")
        return found
    beside = npz_names(path.parent) if is_folder(path.parent) and split != "all" else {}
    # train.npz with test.npz beside it is a split already: nothing needs to be held out.
    complete = path in beside.values() and {"train", "test"} <= beside.keys()
    return beside if complete else {"all": path}


def _keys(file: Path, key: str) -> dict[str, _Keys]:
    """Return where in the archive the images and labels of each split are."""
    with open_regular(file) as (stream, length), open_archive(stream, file, length) as archive:
        files = {info.filename for info in archive.infolist() if info.filename.endswith(".npy")}
        names = {name.removesuffix(".npy") for name in files}
    if key in names:
        return {"all": _Keys(key, "labels")}
    found = {}
    for split, aliases in _ALIASES.items():
        for alias in aliases:
            for keys in (
                _Keys(f"x_{alias}", f"y_{alias}"),
                _Keys(f"{alias}_images", f"{alias}_labels"),
            ):
                if keys.images in names:
                    found[split] = keys
    if not found:
        listed = ", ".join(sorted(names)[:10]) or "an empty archive"
        raise data_error(file, f"an array called {key!r}, 'x_train' or 'train_images'", listed)
    return found


def _load(
    file: Path,
    keys: _Keys,
    *,
    name: str,
    levels: int | None,
    channels_last: bool | None,
    classes: int | None,
    max_bytes: int,
) -> ImageDataset:
    def fail(expected: str, found: str) -> Exception:
        return data_error(file, expected, found, at=keys.images)

    with open_regular(file) as (stream, length), open_archive(stream, file, length) as archive:
        names = {info.filename for info in archive.infolist()}
        read = partial(read_array, archive, file, length, max_bytes=max_bytes)
        images: npt.NDArray[Any] = read(keys.images, ranks=(3, 4))
        labels = read(keys.labels, ranks=(1, 2)) if f"{keys.labels}.npy" in names else None
        if levels is None and "levels.npy" in names:
            levels = _scalar_levels(file, read("levels", ranks=(0,)))
    levels = infer_levels(images, fail) if levels is None else levels
    if channels_last is None:
        channels_last = looks_channel_last(images.shape)
    if images.dtype != level_dtype(levels) or channels_last or not images.flags.c_contiguous:
        both = images.nbytes + images.size * np.dtype(level_dtype(levels)).itemsize
        check_size(file, f"{keys.images} (as stored and as grey levels)", both, max_bytes)
    pixels = channel_first(to_levels(images, levels, fail), fail, channels_last)
    if labels is not None:
        check_size(file, keys.labels, 8 * labels.size, max_bytes)
        labels = _check_labels(file, keys.labels, labels, len(pixels), classes)
    return ImageDataset(pixels, labels, levels, name)


def _scalar_levels(file: Path, value: npt.NDArray[Any]) -> int:
    if value.dtype.kind not in "ui" or not 2 <= int(value) <= MAX_LEVELS:
        raise data_error(file, f"an integer in 2 .. {MAX_LEVELS}", value, at="levels")
    return int(value)


def _check_labels(
    file: Path, key: str, labels: npt.NDArray[Any], count: int, classes: int | None
) -> npt.NDArray[np.int64]:
    """Return labels [N] or [N, 1] as int64 [N], every one of them checked."""
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "uib":
        found = f"{labels.dtype} {list(labels.shape)}"
        raise data_error(file, f"{count} integer labels, one per image", found, at=key)
    labels = labels.reshape(-1)
    limit = classes if classes is not None else np.iinfo(np.int32).max
    bad = np.flatnonzero((labels < 0) | (labels >= limit))
    if len(bad):
        raise data_error(file, f"labels in 0 .. {limit - 1}", labels[bad[0]], at=f"{key}[{bad[0]}]")
    return labels.astype(np.int64)
