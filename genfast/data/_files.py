"""Reading files that may be broken or hostile: typed errors, bounded reads, no surprises.

Every reader follows one order: look at the header, compare every declared size with the length of
the file and with `max_bytes`, and only then allocate.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genfast.errors import DataError

StrPath = str | os.PathLike[str]

MAX_BYTES = 4 * 2**30
"""Default for `max_bytes`: the most memory the images of one dataset may take."""

# The most that one byte of a deflate stream can expand to (zlib's technical notes give 1032:1),
# with room for a short stream. More than this cannot be there, whatever a header declares.
_DEFLATE_RATIO = 1032
_DEFLATE_SLACK = 1032 * 16

_CHUNK = 2**20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Readable(Protocol):
    """The one method that bounded reading needs."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""


def shown(text: StrPath) -> str:
    """Return a name as one short printable line, whatever bytes it is made of."""
    name = os.fspath(text)
    if not name.isprintable():
        name = ascii(name)[1:-1]
    return name if len(name) <= 200 else f"{name[:80]}...{name[-117:]}"


def data_error(path: StrPath, expected: str, found: object, at: str = "") -> DataError:
    """Return the error every reader raises: file, place, what was expected, what was found."""
    where = f"{shown(path)}: {at}" if at else shown(path)
    return DataError(f"{where}: expected {expected}, found {shown(str(found))}")


@contextmanager
def open_regular(path: StrPath) -> Iterator[tuple[Any, int]]:
    """Open an ordinary file and yield `(stream, length in bytes)`.

    Pipes and devices are refused, since reading one may block or never end. `O_NONBLOCK` lets the
    open itself return, and the check is made on what was opened, so it cannot be raced.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise data_error(path, "a file", "nothing there") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise data_error(path, "a file that can be read", _reason(error)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
            raise data_error(path, "a file", kind)
        stream = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with stream:
        yield stream, status.st_size


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def check_size(path: StrPath, what: str, size: int, max_bytes: int) -> None:
    """Refuse `size` bytes of `what` above the cap, before anything is allocated."""
    if size > max_bytes:
        raise data_error(path, f"{what} of at most max_bytes={max_bytes} bytes", f"{size} bytes")


def check_deflate(path: StrPath, what: str, size: int, packed: int) -> None:
    """Refuse a declared `size` that `packed` bytes of a deflate stream can never hold."""
    most = packed * _DEFLATE_RATIO + _DEFLATE_SLACK
    if size > most:
        raise data_error(path, f"at most {most} bytes of {what} from {packed} compressed", size)


def allocate(path: StrPath, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialised array; too little memory is a `DataError` naming the file."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise data_error(path, f"an array {list(shape)} that fits in memory", error) from None


def read_some(stream: Readable, path: StrPath, size: int, offset: int, what: str) -> bytes:
    """Read exactly `size` bytes of `what`; `offset` is where they start, for the message."""
    data = bytearray()
    while len(data) < size:
        piece = _read(stream, path, min(size - len(data), _CHUNK), offset + len(data), what)
        if not piece:
            raise data_error(path, f"{size} bytes of {what}", len(data), at=f"byte {offset}")
        data += piece
    return bytes(data)


def read_into(
    stream: Readable, path: StrPath, array: npt.NDArray[Any], offset: int, what: str
) -> None:
    """Fill a contiguous array from the stream, in pieces, or raise `DataError`."""
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        piece = _read(stream, path, min(len(view) - done, _CHUNK), offset + done, what)
        if not piece:
            raise data_error(path, f"{len(view)} bytes of {what}", done, at=f"byte {offset}")
        view[done : done + len(piece)] = piece
        done += len(piece)


def read_end(stream: Readable, path: StrPath, offset: int, what: str) -> None:
    """Check that the stream ends here; this is also what makes gzip and zip compare their CRC."""
    if _read(stream, path, 1, offset, what):
        raise data_error(path, f"the end of {what}", "more bytes", at=f"byte {offset}")


def _read(stream: Readable, path: StrPath, size: int, offset: int, what: str) -> bytes:
    try:
        return stream.read(size)
    except DataError:
        raise
    except Exception as error:
        # gzip, zlib, zipfile and the operating system each raise their own kinds.
        raise data_error(path, f"readable {what}", _reason(error), at=f"byte {offset}") from None


def read_whole(path: StrPath, max_bytes: int, what: str) -> bytes:
    """Return the bytes of a file of at most `max_bytes`."""
    with open_regular(path) as (stream, length):
        check_size(path, what, length, max_bytes)
        data = _read(stream, path, length, 0, what)
        if len(data) != length:
            raise data_error(path, f"{length} bytes of {what}", len(data))
        return data


def list_folder(folder: StrPath) -> list[Path]:
    """Return what lies in a folder, sorted by name, hidden names left out."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise data_error(folder, "a folder that can be read", _reason(error)) from None
    return [Path(folder, name) for name in names if not name.startswith(".")]


def check_inside(path: Path, root: StrPath, follow_links: bool) -> None:
    """Refuse a symbolic link that leads out of `root`, unless the caller trusts the folder."""
    if follow_links or not path.is_symlink():
        return
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        return
    expected = "a file inside the folder (follow_links=True allows links out of it)"
    raise data_error(path, expected, f"a link to {os.path.realpath(path)}")


def is_folder(path: StrPath) -> bool:
    """Tell whether `path` is a folder; a name that cannot exist is not."""
    try:
        return os.path.isdir(path)
    except ValueError:
        return False
