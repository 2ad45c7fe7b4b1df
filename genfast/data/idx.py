"""IDX, the format of MNIST: a magic number, big-endian dimensions, then the bytes.

    byte 0-1  0
    byte 2    type of the elements; images and labels use 0x08, unsigned byte
    byte 3    number of dimensions d
    byte 4    d sizes, 4 bytes each, most significant byte first
    then      the elements, last dimension fastest

Files may be gzip-compressed; they are read as a stream and never extracted.
"""

import gzip
import math
import re
import struct
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genfast.data._files import (
    MAX_BYTES,
    Readable,
    StrPath,
    allocate,
    check_deflate,
    check_inside,
    check_size,
    data_error,
    is_folder,
    list_folder,
    open_regular,
    read_end,
    read_into,
    read_some,
)
from genfast.data._levels import channel_first
from genfast.data._splits import check_split, select
from genfast.data.dataset import ImageDataset

# "train-images-idx3-ubyte", "emnist-letters-test-images-idx3-ubyte.gz", "t10k-images.idx3-ubyte"
_NAME = re.compile(r"(?P<prefix>.*-)?(?P<tag>train|t10k|test)-images[-.]idx[34]-ubyte(\.gz)?")
_SPLIT_OF_TAG = {"train": "train", "t10k": "test", "test": "test"}


def idx(
    path: StrPath,
    split: str = "train",
    *,
    classes: int | None = None,
    max_bytes: int = MAX_BYTES,
    follow_links: bool = False,
) -> ImageDataset:
    """Read images in IDX format, plain or gzip, with their labels where there are any.

    Args:
        path: a folder with files named as MNIST's, or one file of images `[N, H, W]`,
            `[N, C, H, W]` or `[N, H, W, C]`. Labels are looked for beside it under the name with
            "labels" for "images", and the other split under MNIST's name for it.
        split: "train", "test" or "all" (of one file: that file). Where there is only one file of
            images, a fixed tenth of it is the test split.
        classes: number of classes; labels at or above it are refused.
        max_bytes: most memory the images may take.
        follow_links: allow symbolic links that lead out of the folder.

    Raises:
        DataError: a file is missing, truncated, too long, too large or not IDX.
        InputError: an unknown split.
    """
    check_split("idx", split)

    files = _image_files(Path(path), split)
    for file in files.values():
        check_inside(file, file.parent, follow_links or file == Path(path))
        labels = _labels_file(file)
        if labels is not None:
            check_inside(labels, file.parent, follow_links)
    name = Path(path).name
    parts = {part: partial(_load, file, name, classes, max_bytes) for part, file in files.items()}
    return select(path, parts, split, max_bytes)


def idx_names(folder: StrPath) -> list[Path]:
    """Return the files in a folder that are named like MNIST's images."""
    return [file for file in list_folder(folder) if _NAME.fullmatch(file.name)]


def read_idx(path: StrPath, dimensions: tuple[int, ...], max_bytes: int) -> npt.NDArray[np.uint8]:
    """Return the array of unsigned bytes in one IDX file, gzip or not.

    Args:
        path: the file.
        dimensions: how many dimensions it may have.
        max_bytes: most bytes its elements may take.
    """
    with open_regular(path) as (stream, length):
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        body: Readable = gzip.GzipFile(fileobj=stream) if packed else stream
        shape = _read_header(body, path, dimensions)
        start, count = 4 + 4 * len(shape), math.prod(shape)
        sizes = " x ".join(str(n) for n in shape)
        if packed:
            check_deflate(path, f"IDX data ({sizes})", start + count, length)
        elif start + count != length:
            expected = f"a file of {start + count} bytes ({start} + {sizes})"
            raise data_error(path, expected, f"{length} bytes")
        check_size(path, f"{sizes} elements", count, max_bytes)
        array = allocate(path, shape, np.uint8)
        read_into(body, path, array, start, "elements")
        read_end(body, path, start + count, "the elements")
        return array


def _read_header(body: Readable, path: StrPath, dimensions: tuple[int, ...]) -> tuple[int, ...]:
    magic = read_some(body, path, 4, 0, "IDX magic number")
    if magic[:3] != b"\0\0\x08" or magic[3] not in dimensions:
        allowed = " or ".join(f"0x0000080{d}" for d in dimensions)
        raise data_error(path, f"IDX magic number {allowed}", f"0x{magic.hex()}", at="byte 0")
    rank = magic[3]
    sizes = struct.unpack(f">{rank}I", read_some(body, path, 4 * rank, 4, "IDX dimensions"))
    if 0 in sizes:
        at = f"byte {4 + 4 * sizes.index(0)}"
        raise data_error(path, "dimensions of at least 1", list(sizes), at=at)
    return sizes


def _image_files(path: Path, split: str) -> dict[str, Path]:
    """Map split names to files of images; a file without a partner is "all" there is."""
    if not is_folder(path):
        match = _NAME.fullmatch(path.name)
        if match is None or split == "all":
            return {"all": path}
        named = _partners(path.parent, match["prefix"]) if is_folder(path.parent) else {}
        named[_SPLIT_OF_TAG[match["tag"]]] = path
        return named if len(named) == 2 else {"all": path}
    prefixes = {match["prefix"] for f in idx_names(path) if (match := _NAME.fullmatch(f.name))}
    if len(prefixes) != 1:
        found = (
            "none" if not prefixes else ", ".join(f"{p or ''}*" for p in sorted(map(str, prefixes)))
        )
        raise data_error(path, "one set of files like train-images-idx3-ubyte[.gz]", found)
    return _partners(path, prefixes.pop())


def _partners(folder: Path, prefix: str | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in idx_names(folder):
        match = _NAME.fullmatch(file.name)
        if match is not None and match["prefix"] == prefix:
            # The plain file sorts before the gzip of the same name, and is quicker to read.
            found.setdefault(_SPLIT_OF_TAG[match["tag"]], file)
    return found


def _labels_file(images: Path) -> Path | None:
    name = re.sub(r"idx[34]", "idx1", images.name.replace("images", "labels"))
    if name == images.name:
        return None
    stem = name.removesuffix(".gz")
    return next(
        (f for f in (images.with_name(stem), images.with_name(stem + ".gz")) if f.exists()), None
    )


def _load(images: Path, name: str, classes: int | None, max_bytes: int) -> ImageDataset:
    def fail(expected: str, found: str) -> Exception:
        return data_error(images, expected, found)

    pixels = channel_first(read_idx(images, (3, 4), max_bytes), fail)
    file = _labels_file(images)
    if file is None:
        return ImageDataset(pixels, name=name)
    labels = read_idx(file, (1,), max_bytes // 8)  # they become 8-byte integers
    if len(labels) != len(pixels):
        raise data_error(file, f"{len(pixels)} labels, one per image", len(labels), at="byte 4")
    if classes is not None and int(labels.max()) >= classes:
        first = int(np.argmax(labels >= classes))
        expected = f"a label in 0 .. {classes - 1}"
        raise data_error(file, expected, labels[first], at=f"byte {8 + first}")
    return ImageDataset(pixels, labels, name=name)
