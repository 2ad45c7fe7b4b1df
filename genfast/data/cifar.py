"""CIFAR in its binary version: fixed-size records, no header.

CIFAR-10   1 label byte (0-9), then 3,072 bytes: red, green, blue planes of 32x32
CIFAR-100  1 coarse label (0-19), 1 fine label (0-99), then the same 3,072 bytes
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genfast.data._files import (
    MAX_BYTES,
    StrPath,
    allocate,
    check_inside,
    check_size,
    data_error,
    is_folder,
    list_folder,
    open_regular,
    read_some,
)
from genfast.data._splits import check_split, select
from genfast.data.dataset import ImageDataset
from genfast.errors import InputError

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_LABEL_LIMITS = {10: (10,), 100: (20, 100)}  # classes -> one limit per label byte
_RECORDS = 1024  # read at a time
_NAMES = {
    10: {"train": re.compile(r"data_batch_\d+\.bin"), "test": re.compile(r"test_batch\.bin")},
    100: {"train": re.compile(r"train\.bin"), "test": re.compile(r"test\.bin")},
}


def cifar(
    path: StrPath,
    split: str = "train",
    *,
    classes: int | None = None,
    max_bytes: int = MAX_BYTES,
    follow_links: bool = False,
) -> ImageDataset:
    """Read CIFAR-10 or CIFAR-100 in the binary version; labels are the fine ones.

    Args:
        path: a folder with the files under their usual names (data_batch_1.bin, test_batch.bin;
            train.bin, test.bin for CIFAR-100), or one file; the other split is looked for beside
            it.
        split: "train", "test" or "all" (of one file: that file). Where there is only one of train
            and test, a fixed tenth of it is the test split.
        classes: 10 or 100; None finds out by the names, then by the length of the file.
        max_bytes: most memory the images may take.
        follow_links: allow symbolic links that lead out of the folder.

    Raises:
        DataError: a file is missing, not a whole number of records, or holds a label out of range.
        InputError: an unknown split or number of classes.
    """
    check_split("cifar", split)
    if classes is not None and classes not in _LABEL_LIMITS:
        raise InputError(f"cifar: expected classes to be 10 or 100, got {classes=}")
    if is_folder(path):
        classes, groups = _files_in(path, classes)
    else:
        classes = classes or _classes_of(Path(path))
        groups = _files_beside(Path(path), classes, split)
    for file in (file for files in groups.values() for file in files if file != Path(path)):
        check_inside(file, file.parent, follow_links)
    name = f"cifar{classes}"
    parts = {
        part: partial(_load, files, classes, name, max_bytes) for part, files in groups.items()
    }
    return select(path, parts, split, max_bytes)


def cifar_names(folder: StrPath) -> dict[int, dict[str, list[Path]]]:
    """Return the files of each variant and split that lie in a folder, in numerical order."""
    found: dict[int, dict[str, list[Path]]] = {}
    for file in sorted(list_folder(folder), key=lambda file: (len(file.name), file.name)):
        for classes, patterns in _NAMES.items():
            for part, pattern in patterns.items():
                if pattern.fullmatch(file.name):
                    found.setdefault(classes, {}).setdefault(part, []).append(file)
    return found


def _files_in(path: StrPath, classes: int | None) -> tuple[int, dict[str, list[Path]]]:
    found = cifar_names(path)
    expected = "data_batch_*.bin and test_batch.bin, or train.bin and test.bin"
    if classes is None and len(found) > 1:
        raise data_error(path, "files of CIFAR-10 or of CIFAR-100 (classes= decides)", "both")
    if classes is None and found:
        classes = next(iter(found))
    if classes not in found:
        pickled = any(file.name == "data_batch_1" for file in list_folder(path))
        what = "the Python version, which is pickle and is not read" if pickled else "none"
        raise data_error(path, f"CIFAR's binary version ({expected})", what)
    return classes, found[classes]


def _files_beside(file: Path, classes: int, split: str) -> dict[str, list[Path]]:
    """Return the named file and the files of the other split, where its name says which it is."""
    part = next((p for p, name in _NAMES[classes].items() if name.fullmatch(file.name)), None)
    if part is None or split == "all" or not is_folder(file.parent):
        return {"all": [file]}
    other = "test" if part == "train" else "train"
    beside = cifar_names(file.parent).get(classes, {}).get(other)
    return {part: [file], other: beside} if beside else {"all": [file]}


def _classes_of(file: Path) -> int:
    for classes, patterns in _NAMES.items():
        if any(pattern.fullmatch(file.name) for pattern in patterns.values()):
            return classes
    with open_regular(file) as (_, length):
        fitting = [
            n for n, limits in _LABEL_LIMITS.items() if length % (_PIXELS + len(limits)) == 0
        ]
    if len(fitting) != 1 or length == 0:
        expected = "a multiple of 3073 (CIFAR-10) or of 3074 bytes (CIFAR-100; classes= decides)"
        raise data_error(file, expected, f"{length} bytes")
    return fitting[0]


def _load(files: list[Path], classes: int, name: str, max_bytes: int) -> ImageDataset:
    counts = [_count(file, classes) for file in files]
    check_size(files[0].parent, "images", sum(counts) * _PIXELS, max_bytes)
    images = allocate(files[0], (sum(counts), *_SHAPE), np.uint8)
    labels = np.empty(len(images), np.int64)
    start = 0
    for file, count in zip(files, counts, strict=True):
        _read(file, classes, images[start : start + count], labels[start : start + count])
        start += count
    return ImageDataset(images, labels, name=name)


def _count(file: Path, classes: int) -> int:
    record = _PIXELS + len(_LABEL_LIMITS[classes])
    with open_regular(file) as (_, length):
        if length == 0 or length % record:
            raise data_error(
                file, f"a multiple of {record} bytes (CIFAR-{classes})", f"{length} bytes"
            )
        return int(length // record)


def _read(
    file: Path, classes: int, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
) -> None:
    """Fill `images` [N, 3, 32, 32] and `labels` [N] from the records of one file."""
    limits = _LABEL_LIMITS[classes]
    record = _PIXELS + len(limits)
    with open_regular(file) as (stream, _):
        for start in range(0, len(images), _RECORDS):
            stop = min(start + _RECORDS, len(images))
            data = read_some(stream, file, (stop - start) * record, start * record, "records")
            rows = np.frombuffer(data, np.uint8).reshape(-1, record)
            for column, limit in enumerate(limits):
                bad = np.flatnonzero(rows[:, column] >= limit)
                if len(bad):
                    at = f"record {start + bad[0]}, byte {(start + bad[0]) * record + column}"
                    found = rows[bad[0], column]
                    raise data_error(file, f"a label in 0 .. {limit - 1}", found, at=at)
            labels[start:stop] = rows[:, len(limits) - 1]
            images[start:stop] = rows[:, len(limits) :].reshape(-1, *_SHAPE)
