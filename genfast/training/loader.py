"""What a run trains on: batches of each epoch, and what identifies the data."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from genfast.data import ImageDataset, as_images, batches, open_data
from genfast.data._loader import own_levels
from genfast.errors import InputError


class Batches:
    """Batches of images in memory, or of a DataLoader, which keeps its own batch size and order.

    Args:
        data: a name or path for `genfast.data.open_data`, an ImageDataset, images, a torch Dataset
            or a DataLoader.
        batch_size: images per batch.
        seed: decides the order.
        levels: grey levels the images are wanted in, if the data do not say.
        split: which part of named data.

    Attributes:
        image_shape: (C, H, W).
        levels: number of grey levels.

    Raises:
        InputError, DataError: if the data are no images, or there are none.
    """

    def __init__(
        self, data: Any, batch_size: int, seed: int, levels: int | None, split: str = "train"
    ) -> None:
        if isinstance(data, str | Path):
            data = open_data(data, split)
        if not isinstance(data, ImageDataset | DataLoader):
            data = as_images(data, levels)
        self._data: ImageDataset | DataLoader[Any] = data
        self._seed = seed
        if isinstance(data, DataLoader):
            self.levels, self._batch_size = levels or own_levels(data) or 256, 1
            first = next(self.epoch(0), None)
        else:
            # An incomplete last batch is left out, so a batch must not be larger than the data.
            self.levels, self._batch_size = data.levels, max(1, min(batch_size, len(data)))
            first = data.images[:1] if len(data) else None
        if first is None:
            raise InputError("data: expected at least one image, got none")
        channels, height, width = first.shape[1:]
        self.image_shape = (channels, height, width)

    def per_epoch(self) -> int | None:
        """Count the batches of an epoch, if that is known."""
        if isinstance(self._data, ImageDataset):
            return len(self._data) // self._batch_size
        try:
            return len(self._data)
        except TypeError:  # an IterableDataset without a length
            return None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the batches of an epoch, decided by (seed, epoch), from the batch `start` on."""
        return batches(
            self._data,
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            start=start,
            drop_last=True,
            levels=self.levels,
        )

    def once(self) -> Iterator[Tensor]:
        """Yield all images once, the same each time."""
        size, levels = self._batch_size, self.levels
        return batches(self._data, size, seed=self._seed, epoch=0, shuffle=False, levels=levels)

    def describe(self) -> dict[str, Any]:
        """Tell what identifies the data, as JSON content."""
        description = {"levels": self.levels, "image_shape": list(self.image_shape)}
        if isinstance(self._data, DataLoader):
            return description | {"name": "DataLoader", "batches": self.per_epoch()}
        digest = hashlib.sha256(self._data.images.contiguous().numpy().data).hexdigest()
        count = len(self._data)
        return description | {"name": self._data.name, "count": count, "sha256": digest}


def with_last(items: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Yield each item and whether it is the last, looking one item ahead."""
    missing = object()
    item: Any = next(items, missing)
    while item is not missing:
        following: Any = next(items, missing)
        yield item, following is missing
        item = following
