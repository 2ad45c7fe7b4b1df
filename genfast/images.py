"""Batches of integer images as one picture file."""

import io
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genfast._files import make_folder, write_atomic
from genfast.errors import InputError

# Smaller images are enlarged to about this many pixels, so that a grid of 8 x 8 digits can be seen.
_LEGIBLE = 32
_GAP = 2


def grid(images: Tensor, levels: int = 256, columns: int | None = None) -> Image.Image:
    """Lay images side by side, row after row, each pixel enlarged by a whole factor.

    Args:
        images: [N, C, H, W] integer levels 0 .. levels - 1; C is 1 (grey) or 3 (colour).
        levels: number of grey levels; level 0 is drawn black and level levels - 1 white.
        columns: images per row; by default the grid is about square.

    Returns:
        A picture of mode "L" or "RGB" with a white gap between the images.

    Raises:
        InputError: if a shape, dtype or level is not as above.
    """
    columns = _check(images, levels, columns)
    count, channels, height, width = images.shape
    grey = (images.detach().cpu().to(torch.float64) * (255 / (levels - 1))).round().to(torch.uint8)
    factor = max(1, _LEGIBLE // max(height, width))
    grey = grey.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    height, width = grey.shape[2:]

    rows = math.ceil(count / columns)
    step_y, step_x = height + _GAP, width + _GAP
    canvas = torch.full((channels, rows * step_y - _GAP, columns * step_x - _GAP), 255)
    canvas = canvas.to(torch.uint8)
    for index, image in enumerate(grey):
        y, x = index // columns * step_y, index % columns * step_x
        canvas[:, y : y + height, x : x + width] = image
    pixels = canvas[0] if channels == 1 else canvas.permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy())


def png(images: Tensor, levels: int = 256, columns: int | None = None) -> bytes:
    """Return `grid` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    grid(images, levels, columns).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_grid(
    images: Tensor, path: str | Path, levels: int = 256, columns: int | None = None
) -> Path:
    """Write `grid` to a PNG file; a reader sees the whole old or the whole new picture.

    Returns:
        The path. Missing folders are made.

    Raises:
        InputError: if the images are not as `grid` wants them, the name does not end in ".png",
            or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"save_grid: expected a name that ends in .png, got path={str(path)!r}")
    data = png(images, levels, columns)
    make_folder(path.parent)
    try:
        write_atomic(path, data)
    except OSError as error:
        reason = f"{error.strerror}, {len(data)} bytes needed"
        raise InputError(f"save_grid: cannot write {path}: {reason}") from error
    return path


def _check(images: Tensor, levels: int, columns: int | None) -> int:
    """Check the arguments of `grid`; return the number of columns."""
    if not isinstance(images, Tensor) or images.dim() != 4 or images.numel() == 0:
        shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"grid: expected images [N, C, H, W], none empty, got shape={shape}")
    if images.shape[1] not in (1, 3):
        raise InputError(f"grid: expected 1 or 3 channels, got C={images.shape[1]}")
    if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise InputError(f"grid: expected integer levels, got dtype={images.dtype}")
    if not isinstance(levels, int) or levels < 2:
        raise InputError(f"grid: expected levels >= 2, got levels={levels!r}")
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= levels:
        raise InputError(f"grid: expected levels 0 .. {levels - 1}, got {low} .. {high}")
    if columns is None:
        return math.ceil(math.sqrt(images.shape[0]))
    if not isinstance(columns, int) or columns < 1:
        raise InputError(f"grid: expected columns >= 1, got columns={columns!r}")
    return min(columns, images.shape[0])
