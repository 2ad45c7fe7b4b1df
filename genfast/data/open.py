"""One door to every format, as the command line uses it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from genfast.data._files import MAX_BYTES, StrPath, data_error, is_folder, open_regular
from genfast.data._splits import check_split
from genfast.data.cifar import cifar, cifar_names
from genfast.data.dataset import ImageDataset
from genfast.data.digits import digits
from genfast.data.folder import folder, has_images
from genfast.data.idx import idx, idx_names
from genfast.data.npz import npz, npz_names
from genfast.data.sounds import SoundDataset
from genfast.data.wav import has_sounds, wav

Reader = Callable[..., ImageDataset]

FORMATS: dict[str, Reader] = {
    "idx": idx,
    "cifar": cifar,
    "cifar10": partial(cifar, classes=10),
    "cifar100": partial(cifar, classes=100),
    "npz": npz,
    "folder": folder,
}
"""What may stand before the colon in "format:path"."""

_SOUNDS = "wav:"


def open_data(
    spec: StrPath,
    split: str = "train",
    *,
    max_bytes: int = MAX_BYTES,
    follow_links: bool = False,
) -> ImageDataset:
    """Open a dataset by name or path.

    Args:
        spec: "digits"; or a path: a folder of IDX files named like MNIST's, of CIFAR .bin files,
            of train.npz and test.npz, or of images; or one such file. "format:path" (idx, cifar,
            cifar10, cifar100, npz, folder) says what it is instead of looking.
        split: "train", "test", "valid" or "all". Where there is only one of train and test, a
            fixed tenth of it is the test split.
        max_bytes: most memory the images may take.
        follow_links: allow symbolic links that lead out of a folder.

    Raises:
        DataError: nothing is there, its format is unknown or ambiguous, or its reader refuses it.
        InputError: an unknown split.
    """
    check_split("open_data", split)
    if spec == "digits":
        return digits(split)
    if str(spec).startswith(_SOUNDS):
        raise data_error(spec, "images", "sounds (open_sounds reads them)")
    form, path = _parse(spec)
    reader = FORMATS[form or detect(path)]
    return reader(path, split, max_bytes=max_bytes, follow_links=follow_links)


def open_sounds(
    spec: StrPath,
    split: str = "train",
    *,
    max_bytes: int = MAX_BYTES,
    follow_links: bool = False,
) -> SoundDataset:
    """Open a folder of WAV files, or one, by its path: see `genfast.data.wav`.

    Args:
        spec: the path, or "wav:path".
        split: "train", "test", "valid" or "all".
        max_bytes: most memory the sounds may take.
        follow_links: allow symbolic links that lead out of a folder.

    Raises:
        DataError: nothing is there, or what is there is no sound or is refused by the reader.
        InputError: an unknown split.
    """
    check_split("open_sounds", split)
    path = Path(str(spec).removeprefix(_SOUNDS)).expanduser()
    if spec == "digits" and not is_folder(path):
        raise data_error(path, "a folder of WAV files", "the name of images")
    return wav(path, split, max_bytes=max_bytes, follow_links=follow_links)


def _parse(spec: StrPath) -> tuple[str | None, Path]:
    if isinstance(spec, str):
        form, colon, rest = spec.partition(":")
        if colon and form in FORMATS:
            return form, Path(rest).expanduser()
    return None, Path(spec).expanduser()


def detect(path: StrPath) -> str:
    """Return the format of a file or folder, a key of `FORMATS`."""
    return _detect_folder(path) if is_folder(path) else _detect_file(path)


def _detect_folder(path: StrPath) -> str:
    names = {"idx": idx_names(path), "cifar": cifar_names(path), "npz": npz_names(path)}
    found = [form for form, files in names.items() if files]
    if not found and has_images(path):
        found = ["folder"]
    if not found and has_sounds(path):
        raise data_error(path, "images", "WAV files, which are sounds (open_sounds reads them)")
    if len(found) != 1:
        expected = "files of one format (IDX, CIFAR .bin, train.npz, or images)"
        what = f'{" and ".join(found)}; say which with "{found[0]}:path"' if found else "none"
        raise data_error(path, expected, what)
    return found[0]


def _detect_file(path: StrPath) -> str:
    with open_regular(path) as (stream, _):
        start = stream.read(4)
    if start[:2] == b"\x1f\x8b" or start[:3] == b"\0\0\x08":
        return "idx"
    if start == b"PK\x03\x04":
        return "npz"
    if Path(path).suffix == ".bin":
        return "cifar"
    expected = "an IDX file (plain or gzip), an npz archive or a CIFAR .bin file"
    raise data_error(path, expected, f"first bytes 0x{start.hex()}", at="byte 0")
