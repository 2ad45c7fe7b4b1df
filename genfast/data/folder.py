"""A folder of image files, read with Pillow as carefully as Pillow advises.

Only formats on a short list are tried, pixel counts are checked before anything is decoded, and
whatever a decoder raises on a broken file comes out as a `DataError`.
"""

import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from genfast.data._files import (
    MAX_BYTES,
    StrPath,
    allocate,
    check_size,
    data_error,
    is_folder,
    read_whole,
)
from genfast.data._folders import class_numbers, find_files, has_files, split_folders
from genfast.data._splits import check_split, select
from genfast.data.dataset import ImageDataset
from genfast.errors import DataError, InputError

MAX_PIXELS = 89_478_485
"""Default for `max_pixels`; Pillow's own limit, which holds beside it."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm"}
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def folder(
    path: StrPath,
    split: str = "train",
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    follow_links: bool = False,
) -> ImageDataset:
    """Read a folder of PNG, JPEG, BMP, GIF, WebP or PPM images, in the order of their names.

    Images lie in the folder itself, or in one subfolder per class: labels are then the positions
    of the subfolders' names in alphabetical order. Where there is a subfolder called train, it is
    a split, and so are those called test and valid (or val); the rest is left alone. So are other
    files and hidden ones; of an animation the first frame is read; an alpha channel is dropped.

    Args:
        path: the folder.
        split: "train", "test", "valid" or "all". Where there is only one of train and test, a
            fixed tenth of it is the test split.
        size: side, or (height, width), that every image is resized to after cropping its middle
            to that shape; None demands that all sizes agree.
        channels: 1 for grey, 3 for colour; None is grey where every image is grey.
        max_bytes: most memory that the images, and one file while it is decoded, may take.
        max_pixels: most pixels in one file.
        follow_links: allow symbolic links that lead out of the folder.

    Raises:
        DataError: no images, unequal sizes, a file that is truncated, too large or undecodable.
        InputError: an unknown split, or an impossible size or channel count.
    """
    check_split("folder", split)
    if channels not in (None, 1, 3):
        raise InputError(f"folder: expected channels to be 1, 3 or None, got {channels=}")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise InputError(f"folder: expected size >= 1 or (height, width), got {size=}")
    if not is_folder(path):
        raise data_error(path, "a folder of images", "no folder")
    roots = split_folders(path) or {"all": Path(path)}
    found = {
        part: find_files(root, path, follow_links, _SUFFIXES, "images")
        for part, root in roots.items()
    }
    labels = class_numbers(found)
    parts: dict[str, Callable[[], ImageDataset]] = {}
    for part, files in found.items():
        parts[part] = partial(
            _load,
            [file for _, file in files],
            labels[part],
            Path(path).name,
            sides=sides,
            channels=channels,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
        )
    return select(path, parts, split, max_bytes)


def has_images(path: StrPath) -> bool:
    """Tell whether there are image files in a folder, or one or two subfolders down."""
    return has_files(path, _SUFFIXES)


def _load(
    files: list[Path],
    labels: list[int] | None,
    name: str,
    *,
    sides: tuple[int, int] | None,
    channels: int | None,
    max_bytes: int,
    max_pixels: int,
) -> ImageDataset:
    first = decode(files[0], sides, channels, max_bytes, max_pixels)
    check_size(files[0].parent, f"{len(files)} images", len(files) * first.size, max_bytes)
    images = allocate(files[0], (len(files), *first.shape), np.uint8)
    images[0] = first
    for index, file in enumerate(files[1:], 1):
        pixels = decode(file, sides, channels, max_bytes, max_pixels)
        if pixels.shape[1:] != first.shape[1:]:
            expected = f"{_size(first)} pixels like {files[0].name} (size= resizes)"
            raise data_error(file, expected, _size(pixels))
        if len(pixels) > images.shape[1]:  # the first colour image after grey ones
            check_size(file.parent, f"{len(files)} images", 4 * images.nbytes, max_bytes)
            images = images.repeat(3, axis=1)
        images[index] = pixels
    return ImageDataset(images, labels, name=name)


def _size(array: npt.NDArray[Any]) -> str:
    return f"{array.shape[-2]}x{array.shape[-1]}"


def decode(
    file: Path,
    sides: tuple[int, int] | None,
    channels: int | None,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[np.uint8]:
    """Return one image file as `[C, H, W]`; a broken one is a `DataError`."""
    data = read_whole(file, max_bytes, "an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(file, data, sides, channels, max_bytes, max_pixels)
    except DataError:
        raise
    except UnidentifiedImageError:  # its own text names a Python object instead of the file
        expected = f"a readable image ({', '.join(_FORMATS)})"
        raise data_error(file, expected, "no known image format") from None
    except Exception as error:
        # Decoders raise a dozen kinds on broken bytes; all of them mean the same here.
        reason = f"{type(error).__name__}: {error}"
        raise data_error(file, f"a readable image ({', '.join(_FORMATS)})", reason) from None


def _decode(
    file: Path,
    data: bytes,
    sides: tuple[int, int] | None,
    channels: int | None,
    max_bytes: int,
    max_pixels: int,
) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        width, height = image.size
        if not 0 < width * height <= max_pixels:
            expected = f"1 to max_pixels={max_pixels} pixels"
            raise data_error(file, expected, f"{width}x{height} = {width * height}")
        # Pillow's copy takes up to 4 bytes a pixel, and so does the converted one, then the array.
        check_size(file, f"a decoded image ({width}x{height})", 12 * width * height, max_bytes)
        if image.mode not in _GREY_MODES | _COLOUR_MODES:
            raise data_error(file, "8 bits per channel, grey or colour", f"mode {image.mode}")
        _check_complete(file, data, image)
        grey = channels == 1 or (channels is None and image.mode in _GREY_MODES)
    # Checking the chunks of a PNG used the first handle up.
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        plain: Image.Image = image.convert("L" if grey else "RGB")
    if sides is not None and plain.size != (sides[1], sides[0]):
        plain = ImageOps.fit(plain, (sides[1], sides[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(plain, dtype=np.uint8)
    return pixels[None] if grey else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def _check_complete(file: Path, data: bytes, image: Image.Image) -> None:
    """Refuse what decoders let pass: PNG, BMP and GIF files cut off after their last pixel."""
    if image.format == "PNG":
        image.verify()  # the CRC of every chunk
        complete, end = _PNG_END in data, "an IEND chunk"
    elif image.format == "BMP":
        declared = int.from_bytes(data[2:6], "little")
        complete, end = declared <= len(data), f"{declared} bytes, as its header says"
    elif image.format == "GIF":
        complete, end = data.rstrip(b"\0").endswith(b";"), "a trailer (0x3b)"
    else:
        return
    if not complete:
        raise data_error(file, end, f"the end of the file at byte {len(data)}")
