"""The one form every dataset takes inside genfast: integer grey levels in memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genfast.data._levels import MAX_LEVELS
from genfast.errors import InputError


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images in memory, with optional labels; items are `(image, label)`.

    Args:
        images: `[N, C, H, W]`, integers in 0 .. levels-1; tensor or array.
        labels: `[N]`, integers from 0, or None.
        levels: number of grey levels, 2 to 65,536.
        name: what to call the dataset in logs and reports.

    Attributes:
        images: `[N, C, H, W]`, uint8 where levels <= 256, int32 above; on the CPU.
        labels: `[N]` int64, or None.
        levels: number of grey levels.
        name: as given.

    Raises:
        InputError: on a wrong shape or dtype, or a value out of range.
    """

    images: Tensor
    labels: Tensor | None
    levels: int
    name: str

    def __init__(
        self,
        images: Tensor | npt.NDArray[np.integer],
        labels: Tensor | npt.NDArray[np.integer] | Sequence[int] | None = None,
        levels: int = 256,
        name: str = "",
    ) -> None:
        if not 2 <= levels <= MAX_LEVELS:
            raise InputError(f"ImageDataset: expected 2 to {MAX_LEVELS} levels, got {levels=}")
        self.images = _canonical(as_tensor(images), levels)
        self.labels = None if labels is None else canonical_labels(labels, len(self.images))
        self.levels = levels
        self.name = name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return `(image [C, H, W], label)`; the label is -1 where there is none."""
        return self.images[index], -1 if self.labels is None else int(self.labels[index])

    def __repr__(self) -> str:
        size = "x".join(str(n) for n in self.image_shape)
        return f"ImageDataset({self.name!r}, {len(self)} images {size}, {self.levels} levels)"

    def subset(self, indices: Sequence[int] | Tensor | npt.NDArray[np.integer]) -> "ImageDataset":
        """Return the images at `indices`, in that order, as a dataset of its own."""
        chosen = torch.as_tensor(np.asarray(indices, dtype=np.int64).reshape(-1))
        if len(chosen) and not -len(self) <= int(chosen.min()) <= int(chosen.max()) < len(self):
            worst = max(int(chosen.max()), int(chosen.min()), key=abs)
            raise InputError(f"subset: expected indices below {len(self)}, got index={worst}")
        chosen = torch.where(chosen < 0, chosen + len(self), chosen)
        labels = None if self.labels is None else self.labels[chosen]
        return ImageDataset(self.images[chosen], labels, self.levels, self.name)


def as_tensor(values: Tensor | npt.NDArray[np.generic] | Sequence[int]) -> Tensor:
    """Return values as a tensor on the CPU without gradient, sharing memory where possible."""
    if isinstance(values, np.ndarray):
        # torch cannot share an array that is read-only, byte-swapped or has negative strides.
        values = np.require(values, values.dtype.newbyteorder("="), ["C", "W"])
    return torch.as_tensor(values).detach().cpu()


def _canonical(images: Tensor, levels: int) -> Tensor:
    if images.ndim != 4 or 0 in images.shape[1:]:
        shape = list(images.shape)
        raise InputError(f"ImageDataset: expected images [N, C, H, W], got images.shape={shape}")
    if images.is_floating_point() or images.is_complex():
        raise InputError(
            "ImageDataset: expected integer images (as_images converts floats), "
            f"got images.dtype={images.dtype}"
        )
    if images.dtype not in (torch.uint8, torch.int32):
        images = images.to(torch.int64)  # torch has no arithmetic for some of the others
    if images.numel() and (levels < 256 or images.dtype != torch.uint8):
        low, high = (int(v) for v in torch.aminmax(images))
        if low < 0 or high >= levels:
            raise InputError(
                f"ImageDataset: expected grey levels 0 .. {levels - 1}, got {low} .. {high}"
            )
    return images.to(torch.uint8 if levels <= 256 else torch.int32).contiguous()


def canonical_labels(
    labels: Tensor | npt.NDArray[np.integer] | Sequence[int], count: int
) -> Tensor:
    """Return labels as int64 [count]; InputError unless they are that many integers from 0."""
    values = as_tensor(labels)
    if values.is_floating_point() or values.is_complex() or tuple(values.shape) != (count,):
        raise InputError(
            f"dataset: expected {count} integer labels, "
            f"got labels.shape={list(values.shape)} of {values.dtype}"
        )
    if count and int(values.min()) < 0:
        raise InputError(f"dataset: expected labels from 0, got label={int(values.min())}")
    return values.to(torch.int64).contiguous()
