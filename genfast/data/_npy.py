"""One array out of an `.npz` archive, with every declared size checked before it is believed."""

import math
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from genfast.data._files import (
    StrPath,
    allocate,
    check_deflate,
    check_size,
    data_error,
    read_end,
    read_into,
    read_some,
)
from genfast.errors import DataError

# zipfile reads the whole directory of an archive at once and makes an object of every entry. This
# bounds both; NumPy needs about 60 bytes of directory for an array.
_MAX_DIRECTORY = 2**18
_MAX_HEADER = 10_000  # numpy.lib.format refuses longer ones too
_HEADER = re.compile(
    r"""\{\s*['"]descr['"]\s*:\s*['"](?P<descr>[^'"]*)['"]\s*,"""
    r"""\s*['"]fortran_order['"]\s*:\s*(?P<fortran>True|False)\s*,"""
    r"""\s*['"]shape['"]\s*:\s*\((?P<shape>[\d\s,]*)\)\s*,?\s*\}\s*"""
)
_PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class _Bounded:
    """A stream for zipfile that refuses to read more than `limit` bytes at once."""

    def __init__(self, stream: BinaryIO, path: StrPath, length: int) -> None:
        self._stream, self._path, self._length = stream, path, length
        self.limit = _MAX_DIRECTORY
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = max(0, self._length - self._stream.tell())
        if size > self.limit:
            expected = f"a zip directory of at most {self.limit} bytes"
            raise data_error(self._path, expected, f"{size} bytes")
        return self._stream.read(size)


@contextmanager
def open_archive(stream: BinaryIO, path: StrPath, length: int) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose names are unique; nothing but its directory is read."""
    magic = stream.read(4)
    if magic != b"PK\x03\x04":
        raise data_error(path, "a zip archive ('PK' 03 04)", f"0x{magic.hex()}", at="byte 0")
    bounded = _Bounded(stream, path, length)
    try:
        archive = zipfile.ZipFile(bounded)
    except DataError:
        raise
    except Exception as error:
        # Broken directories end in BadZipFile, struct.error, UnicodeDecodeError and others.
        raise data_error(path, "a complete zip archive", error) from None
    bounded.limit = length  # from here on this module says how much is read
    with archive:
        names = [info.filename for info in archive.infolist()]
        if len(set(names)) != len(names):
            raise data_error(path, "every name once", "a name twice in the zip directory")
        yield archive


def read_array(
    archive: zipfile.ZipFile,
    path: StrPath,
    length: int,
    key: str,
    *,
    ranks: tuple[int, ...],
    max_bytes: int,
) -> npt.NDArray[Any]:
    """Return the array `key` in native byte order.

    Args:
        archive: from `open_archive`.
        path: the archive's name, for messages.
        length: the archive's length in bytes.
        key: name of the array, without ".npy".
        ranks: how many dimensions it may have.
        max_bytes: most bytes its elements may take.

    Raises:
        DataError: a size is not what another part of the file says, the array holds anything but
            plain numbers, or its data cannot be read.
    """
    info = archive.getinfo(f"{key}.npy")
    _check_entry(info, path, length, key)
    try:
        stream = archive.open(info)
    except Exception as error:  # encryption, a local header unlike the directory, ...
        raise data_error(path, "a readable zip entry", error, at=key) from None
    with stream:
        start, descr, fortran, shape = _read_header(stream, path, key)
        if not _PLAIN.fullmatch(descr):
            expected = "booleans, integers or floats (no objects, no structures)"
            raise data_error(path, expected, f"dtype {descr!r}", at=key)
        # A boolean is a byte; as uint8 a value other than 0 and 1 can be seen and refused.
        dtype = np.dtype(np.uint8) if descr.endswith("b1") else np.dtype(descr)
        if len(shape) not in ranks or (0 in shape):
            expected = f"{' or '.join(str(r) for r in ranks)} dimensions, none of them 0"
            raise data_error(path, expected, f"shape {list(shape)}", at=key)
        size = math.prod(shape) * dtype.itemsize
        if start + size != info.file_size:
            expected = f"{start + size} bytes for shape {list(shape)} of {dtype}"
            raise data_error(path, expected, f"an entry of {info.file_size}", at=key)
        check_size(path, key, size, max_bytes)
        flat = allocate(path, (math.prod(shape),), dtype)
        read_into(stream, path, flat, start, key)
        read_end(stream, path, start + size, key)
    if descr.endswith("b1"):
        if flat.max() > 1:
            raise data_error(path, "booleans 0 or 1", flat.max(), at=key)
        flat = flat.view(np.bool_)
    elif not dtype.isnative:
        flat = flat.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if fortran else "C")


def _check_entry(info: zipfile.ZipInfo, path: StrPath, length: int, key: str) -> None:
    """Refuse an entry whose declared sizes cannot be true of this file."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # bzip2 and LZMA streams choose their own, large, working memory.
        found = f"method {info.compress_type}"
        raise data_error(path, "a stored or deflated entry", found, at=key)
    if info.compress_size > length:
        raise data_error(path, f"an entry within {length} bytes", info.compress_size, at=key)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        check_deflate(path, key, info.file_size, info.compress_size)
    elif info.file_size != info.compress_size:
        expected = f"{info.compress_size} bytes in a stored entry"
        raise data_error(path, expected, info.file_size, at=key)


def _read_header(stream: Any, path: StrPath, key: str) -> tuple[int, str, bool, tuple[int, ...]]:
    """Return `(bytes before the data, descr, fortran_order, shape)` of an npy stream."""
    magic = read_some(stream, path, 8, 0, f"npy magic of {key}")
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0"):
        expected = "npy version 1.0 or 2.0 (0x934e554d5059 ...)"
        raise data_error(path, expected, f"0x{magic.hex()}", at=f"{key}, byte 0")
    width = 2 if magic[6] == 1 else 4
    packed = read_some(stream, path, width, 8, f"npy header length of {key}")
    (size,) = struct.unpack("<H" if width == 2 else "<I", packed)
    if size > _MAX_HEADER:
        expected = f"an npy header of at most {_MAX_HEADER} bytes"
        raise data_error(path, expected, size, at=f"{key}, byte 8")
    start = 8 + width + size
    text = read_some(stream, path, size, 8 + width, f"npy header of {key}").decode("latin-1")
    match = _HEADER.fullmatch(text)
    numbers = re.findall(r"\d+", match["shape"]) if match else []
    if match is None or len(numbers) > 32 or any(len(number) > 19 for number in numbers):
        expected = "an npy header with a plain dtype and a shape"
        raise data_error(path, expected, text.strip()[:120], at=f"{key}, byte {8 + width}")
    return start, match["descr"], match["fortran"] == "True", tuple(int(n) for n in numbers)
