"""WAV files, decoded with soundfile (libsndfile) after their headers have been looked at here.

libsndfile quietly shortens a file that is cut off. So every declared size is first compared with
what is there, and only plain PCM and floats are let through, without the chunks that nobody needs.
"""

import io
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from genfast.data._files import (
    MAX_BYTES,
    StrPath,
    check_size,
    data_error,
    is_folder,
    read_whole,
)
from genfast.data._folders import class_numbers, find_files, has_files, split_folders
from genfast.data._splits import check_split, select
from genfast.data.sounds import SoundDataset

SUFFIXES = frozenset({".wav", ".wave"})

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FORMATS = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}
_MAX_CHANNELS = 64


class Header(NamedTuple):
    """What a WAV file declares; one frame is one sample of every channel.

    `form` and `content` are where its chunks of format and samples are, `(place, length)`.
    """

    channels: int
    sample_rate: int
    frames: int
    form: tuple[int, int]
    content: tuple[int, int]


def wav(
    path: StrPath,
    split: str = "train",
    *,
    max_bytes: int = MAX_BYTES,
    follow_links: bool = False,
) -> SoundDataset:
    """Read a folder of WAV files, or one file, as mono sounds of 16 bits, in the order of names.

    Files lie in the folder itself, or in one subfolder per class: labels are then the positions of
    the subfolders' names in alphabetical order. Where there is a subfolder called train, it is a
    split, and so are those called test and valid (or val); the rest is left alone. So are other
    files and hidden ones.

    PCM of 8, 16, 24 or 32 bits and floats of 32 or 64 bits are read. Several channels become one,
    their mean. Floats beyond -1 .. 1 are clipped. Nothing is resampled: all files must have one
    sample rate.

    Args:
        path: the folder, or one file.
        split: "train", "test", "valid" or "all". Where there is only one of train and test, a
            fixed tenth of it is the test split.
        max_bytes: most memory that the sounds, and one file while it is decoded, may take.
        follow_links: allow symbolic links that lead out of the folder.

    Raises:
        DataError: no WAV files, different sample rates, or a file that is truncated, empty, too
            large, of another format or damaged.
        InputError: an unknown split.
    """
    check_split("wav", split)
    if not is_folder(path):
        load = partial(_load, [Path(path)], None, Path(path).stem, max_bytes)
        return select(path, {"all": load}, split, max_bytes)
    roots = split_folders(path) or {"all": Path(path)}
    found = {
        part: find_files(root, path, follow_links, SUFFIXES, "sounds")
        for part, root in roots.items()
    }
    labels = class_numbers(found)
    parts: dict[str, Callable[[], SoundDataset]] = {
        part: partial(_load, [file for _, file in files], labels[part], Path(path).name, max_bytes)
        for part, files in found.items()
    }
    return select(path, parts, split, max_bytes)


def has_sounds(path: StrPath) -> bool:
    """Tell whether there are WAV files in a folder, or one or two subfolders down."""
    return has_files(path, SUFFIXES)


def _load(files: list[Path], labels: list[int] | None, name: str, max_bytes: int) -> SoundDataset:
    sounds: list[npt.NDArray[np.int16]] = []
    rate, total = 0, 0
    for file in files:
        samples, header = decode(file, max_bytes)
        if sounds and header.sample_rate != rate:
            expected = f"{rate} Hz like {files[0].name} (nothing is resampled)"
            raise data_error(file, expected, f"{header.sample_rate} Hz")
        rate, total = header.sample_rate, total + samples.nbytes
        check_size(file.parent, f"{len(files)} sounds", total, max_bytes)
        sounds.append(samples)
    return SoundDataset(sounds, labels, rate, name)


def decode(file: Path, max_bytes: int = MAX_BYTES) -> tuple[npt.NDArray[np.int16], Header]:
    """Return one WAV file as mono samples `[T]` of 16 bits; a broken one is a `DataError`."""
    data = read_whole(file, max_bytes, "a WAV file")
    header = read_header(file, data)
    # The samples of all channels as float32, their mean as float64 and as integers.
    needed = header.frames * (4 * header.channels + 8 + 2)
    check_size(file, f"a decoded sound of {header.frames} frames", needed, max_bytes)
    try:
        samples = _read(_plain(data, header))
    except Exception as error:
        # libsndfile's own errors, and those of its wrapper, all mean the same here.
        reason = f"{type(error).__name__}: {error}"
        raise data_error(file, "a readable WAV file", reason) from None
    if samples.shape != (header.frames, header.channels):
        expected = f"{header.frames} frames of {header.channels} channels"
        raise data_error(file, expected, f"{samples.shape[0]} of {samples.shape[1]}")
    mono = samples.mean(axis=1, dtype=np.float64)
    if not np.isfinite(mono).all():
        raise data_error(file, "finite samples", f"{mono[~np.isfinite(mono)][0]}")
    scaled = np.rint(np.clip(mono, -1, 1) * 2**15).clip(-(2**15), 2**15 - 1)
    return scaled.astype(np.int16), header


def _plain(data: bytes, header: Header) -> bytes:
    """Return the file with no chunks but those of format and samples."""
    chunks = b""
    for name, (place, length) in ((b"fmt ", header.form), (b"data", header.content)):
        padding = b"\0" * (length % 2)
        chunks += struct.pack("<4sI", name, length) + data[place : place + length] + padding
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def _read(data: bytes) -> npt.NDArray[np.float32]:
    import soundfile  # loads libsndfile, which is needed only here

    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        samples: npt.NDArray[np.float32] = sound.read(dtype="float32", always_2d=True)
    return samples


def read_header(file: StrPath, data: bytes) -> Header:
    """Return what a WAV file declares, checked against its length."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise data_error(file, "a WAV file (RIFF ... WAVE)", f"first bytes 0x{data[:12].hex()}")
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise data_error(file, f"{size + 8} bytes, as its header says", len(data), at="byte 4")
    chunks = _chunks(file, data, size + 8)
    if b"fmt " not in chunks or b"data" not in chunks:
        missing = "fmt" if b"fmt " not in chunks else "data"
        raise data_error(file, f"a chunk called {missing}", f"{len(chunks)} others")
    place, length = chunks[b"fmt "]
    if length < 16:
        raise data_error(file, "16 bytes of format", length, at=f"byte {place}")
    tag, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", data, place)
    if tag == _EXTENSIBLE and length >= 40:
        (tag,) = struct.unpack_from("<H", data, place + 24)
    if (tag, bits) not in _FORMATS:
        expected = "PCM of 8, 16, 24 or 32 bits or floats of 32 or 64"
        raise data_error(file, expected, f"format {tag} of {bits} bits", at=f"byte {place}")
    if not 1 <= channels <= _MAX_CHANNELS or not 1 <= rate < 2**31:
        expected = f"1 to {_MAX_CHANNELS} channels and a sample rate in Hz"
        raise data_error(file, expected, f"{channels} and {rate}", at=f"byte {place}")
    if frame != channels * bits // 8:
        expected = f"frames of {channels * bits // 8} bytes"
        raise data_error(file, expected, frame, at=f"byte {place}")
    place, length = chunks[b"data"]
    if length == 0 or length % frame != 0:
        expected = f"at least one whole frame of {frame} bytes"
        raise data_error(file, expected, f"{length} bytes", at=f"byte {place}")
    return Header(channels, rate, length // frame, chunks[b"fmt "], chunks[b"data"])


def _chunks(file: StrPath, data: bytes, end: int) -> dict[bytes, tuple[int, int]]:
    """Return place and length of each chunk's content; of two with one name the first."""
    found: dict[bytes, tuple[int, int]] = {}
    place = 12
    while place + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, place)
        place += 8
        if place + length > end:
            expected = f"{length} bytes of chunk {name!r}"
            raise data_error(file, expected, end - place, at=f"byte {place}")
        found.setdefault(name, (place, length))
        place += length + length % 2
    return found
