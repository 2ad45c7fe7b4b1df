"""What a run trains on: batches of each epoch, and what identifies the data."""

import hashlib
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from genfast.data import ImageDataset, SoundDataset, as_images, crops, open_data, open_sounds
from genfast.data._loader import own_levels
from genfast.data.batches import Batch, labelled_batches
from genfast.data.sounds import count_crops
from genfast.errors import InputError
from genfast.images import save_grid
from genfast.sounds import save_sounds


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
        noun: what the data are, for messages.

    Raises:
        InputError, DataError: if the data are no images, or there are none.
    """

    noun = "images"

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
            first = next((images for images, _ in self.epoch(0)), None)
        else:
            # An incomplete last batch is left out, so a batch must not be larger than the data.
            self.levels, self._batch_size = data.levels, max(1, min(batch_size, len(data)))
            first = data.images[:1] if len(data) else None
        if first is None:
            raise InputError("data: expected at least one image, got none")
        channels, height, width = first.shape[1:]
        self.image_shape = (channels, height, width)

    @property
    def decided(self) -> dict[str, Any]:
        """The settings of a model's config that the data decide."""
        return {"image_shape": self.image_shape, "levels": self.levels}

    def per_epoch(self) -> int | None:
        """Count the batches of an epoch, if that is known."""
        if isinstance(self._data, ImageDataset):
            return len(self._data) // self._batch_size
        try:
            return len(self._data)
        except TypeError:  # an IterableDataset without a length
            return None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, decided by (seed, epoch), from the batch `start` on."""
        return labelled_batches(
            self._data,
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            start=start,
            drop_last=True,
            levels=self.levels,
        )

    def once(self) -> Iterator[Batch]:
        """Yield all images once, the same each time."""
        size, seed, levels = self._batch_size, self._seed, self.levels
        return labelled_batches(self._data, size, seed=seed, epoch=0, shuffle=False, levels=levels)

    def describe(self) -> dict[str, Any]:
        """Tell what identifies the data, as JSON content."""
        description = {"levels": self.levels, "image_shape": list(self.image_shape)}
        if isinstance(self._data, DataLoader):
            return description | {"name": "DataLoader", "batches": self.per_epoch()}
        digest = hashlib.sha256(self._data.images.contiguous().numpy().data).hexdigest()
        count = len(self._data)
        return description | {"name": self._data.name, "count": count, "sha256": digest}

    def to_draw(self, model: Any) -> tuple[int, dict[str, Any]]:
        """How many samples show where a run is, and options to draw them with."""
        return 64, {}

    def write_samples(self, samples: Tensor, path: Path) -> None:
        """Write drawn images as a grid to `path` with the suffix .png."""
        save_grid(samples, path.with_suffix(".png"), self.levels)


class SoundBatches:
    """Batches of crops of sounds in memory.

    Args:
        data: a path for `genfast.data.open_sounds`, or a SoundDataset.
        batch_size: crops per batch.
        seed: decides order and places of the crops.
        config: settings of the model: `length`, `levels` and `companding`.
        split: which part of named data.

    Attributes:
        sample_rate: in Hz.
        noun: what the data are, for messages.

    Raises:
        InputError, DataError: if the data are no sounds, or there are none.
    """

    noun = "sounds"

    def __init__(
        self, data: Any, batch_size: int, seed: int, config: Any, split: str = "train"
    ) -> None:
        if isinstance(data, str | Path):
            data = open_sounds(data, split)
        if not isinstance(data, SoundDataset):
            kind = type(data).__name__
            raise InputError(f"data: expected a SoundDataset or a path of WAV files, got {kind}")
        if len(data) == 0:
            raise InputError("data: expected at least one sound, got none")
        self._data, self._seed, self._length = data, seed, config.length
        self._levels, self._companding = config.levels, config.companding
        longest = int(data.offsets.diff().max())
        if split == "train" and longest < self._length:
            warnings.warn(
                f"data: expected length <= {longest}, the samples of the longest sound, got "
                f"length={self._length}: every example ends in silence, which the model learns too",
                stacklevel=2,
            )
        self._count = count_crops(data, self._length)
        # An incomplete last batch is left out, so a batch must not be larger than an epoch.
        self._batch_size = max(1, min(batch_size, self._count))
        self.sample_rate = data.sample_rate

    @property
    def decided(self) -> dict[str, Any]:
        """The settings of a model's config that the data decide."""
        return {"sample_rate": self.sample_rate}

    def per_epoch(self) -> int | None:
        """Count the batches of an epoch."""
        return self._count // self._batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, decided by (seed, epoch), from the batch `start` on."""
        return self._crops(epoch=epoch, start=start, drop_last=True)

    def once(self) -> Iterator[Batch]:
        """Yield all sounds once, the same each time."""
        return self._crops(epoch=0, shuffle=False)

    def _crops(self, **how: Any) -> Iterator[Batch]:
        return crops(
            self._data,
            self._length,
            self._batch_size,
            levels=self._levels,
            companding=self._companding,
            seed=self._seed,
            **how,
        )

    def describe(self) -> dict[str, Any]:
        """Tell what identifies the data, as JSON content."""
        digest = hashlib.sha256(self._data.samples.numpy().data)
        digest.update(self._data.offsets.numpy().data)
        return {
            "sample_rate": self.sample_rate,
            "name": self._data.name,
            "count": len(self._data),
            "sha256": digest.hexdigest(),
        }

    def to_draw(self, model: Any) -> tuple[int, dict[str, Any]]:
        """How many samples show where a run is, and options to draw them with: a second each.

        A sound is drawn sample by sample, so that more would take longer than the training.
        """
        takes_length = "length" in inspect.signature(model.sample).parameters
        return 8, {"length": min(self._length, self.sample_rate)} if takes_length else {}

    def write_samples(self, samples: Tensor, path: Path) -> None:
        """Write drawn sounds as WAV files to the folder `path`."""
        save_sounds(samples, path, self.sample_rate, self._levels, self._companding)


def with_last(items: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Yield each item and whether it is the last, looking one item ahead."""
    missing = object()
    item: Any = next(items, missing)
    while item is not missing:
        following: Any = next(items, missing)
        yield item, following is missing
        item = following
