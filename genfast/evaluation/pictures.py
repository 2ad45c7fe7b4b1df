"""Rows of images as one PNG with transparent gaps, which suits a page of any colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GAP = 4
"""Pixels between neighbours, after enlarging."""

LEGIBLE = 64
"""Images are enlarged by whole factors to at most this many pixels a side."""


def columns_for(width: int) -> int:
    """How many images of this width stand side by side in a column of a page."""
    return max(3, min(5, 384 // width))


def shown_in_grid(width: int) -> int:
    """How many images of this width a grid of samples shows: taller than wide, to suit a column."""
    columns = columns_for(width)
    return columns * round(columns * 1.6)


def grid_png(images: Tensor, levels: int, columns: int) -> bytes:
    """The first images of `[N, C, H, W]`, `columns` in each row; an incomplete last row is cut."""
    columns = min(columns, len(images))
    rows = len(images) // columns
    return rows_png([images[row * columns : (row + 1) * columns] for row in range(rows)], levels)


def rows_png(rows: Sequence[Tensor], levels: int) -> bytes:
    """One PNG from rows of grey levels `[columns, C, H, W]`, level 0 black, the last one white."""
    cells = torch.stack(list(rows)).detach().cpu().double()
    if cells.shape[2] not in (1, 3):
        cells = cells.mean(2, keepdim=True)
    factor = max(1, LEGIBLE // max(cells.shape[-2:]))
    scaled = (cells * (255.0 / (levels - 1))).round().to(torch.uint8)
    scaled = scaled.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    n_rows, n_columns, channels, height, width = scaled.shape
    size = (n_rows * (height + GAP) - GAP, n_columns * (width + GAP) - GAP)
    canvas = np.zeros((*size, channels + 1), dtype=np.uint8)
    pixels = scaled.permute(0, 1, 3, 4, 2).numpy()
    for row in range(n_rows):
        for column in range(n_columns):
            y, x = row * (height + GAP), column * (width + GAP)
            canvas[y : y + height, x : x + width, :-1] = pixels[row, column]
            canvas[y : y + height, x : x + width, -1] = 255
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG as an address that carries its own content."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
