"""The deterministic loader: which images come when depends on (seed, epoch) and nothing else."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genfast.data._loader import image_of, loader_batches, own_levels, seed_of
from genfast.data.convert import Data, as_images, labels_of, to_canonical
from genfast.data.dataset import ImageDataset
from genfast.errors import InputError

Batch = tuple[Tensor, Tensor | None]


def batches(
    data: Data,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    levels: int | None = None,
) -> Iterator[Tensor]:
    """Yield the batches of one epoch, `[B, C, H, W]` grey levels on the CPU.

    The order is a permutation from a private generator seeded by (seed, epoch): the global
    generator is neither read nor changed, and an interrupted epoch goes on with `start`.

    A DataLoader is iterated as it is, with its own batch size and order (`batch_size`, `shuffle`
    and `drop_last` do not apply); the random numbers it draws are decided by (seed, epoch) too,
    and batches before `start` are loaded and passed over.

    Args:
        data: an `ImageDataset`, or anything `as_images` takes; what is not an `ImageDataset` is
            converted on every call.
        batch_size: images per batch.
        seed: seed of the run.
        epoch: number of the epoch.
        start: index of the first batch to yield.
        shuffle: False goes through the data in its order.
        drop_last: leave out a last batch smaller than `batch_size`.
        levels: grey levels of data that does not say; for a DataLoader None means those of
            the ImageDataset in it, else 256.

    Raises:
        InputError: `batch_size` below 1, `start` beyond the epoch, or unusable images.
    """
    found = labelled_batches(
        data,
        batch_size,
        seed=seed,
        epoch=epoch,
        start=start,
        shuffle=shuffle,
        drop_last=drop_last,
        levels=levels,
    )
    return (images for images, _ in found)


def labelled_batches(
    data: Data,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    levels: int | None = None,
) -> Iterator[Batch]:
    """Yield the batches of `batches` with their labels `[B]`, int64; None where there are none."""
    if batch_size < 1:
        raise InputError(f"batches: expected batch_size >= 1, got {batch_size=}")
    if start < 0:
        raise InputError(f"batches: expected start >= 0, got {start=}")
    if isinstance(data, DataLoader):
        return _from_loader(data, seed, epoch, start, levels or own_levels(data) or 256)
    dataset = as_images(data, levels)
    count = len(dataset) // batch_size if drop_last else -(-len(dataset) // batch_size)
    if start > count:
        raise InputError(f"batches: expected start <= {count}, the batches there are, got {start=}")
    return _from_memory(dataset, batch_size, range(start, count), seed, epoch, shuffle)


def _from_memory(
    data: ImageDataset, batch_size: int, indices: range, seed: int, epoch: int, shuffle: bool
) -> Iterator[Batch]:
    if shuffle:
        generator = torch.Generator().manual_seed(seed_of(seed, epoch))
        order = torch.randperm(len(data), generator=generator)
    else:
        order = torch.arange(len(data))
    for index in indices:
        chosen = order[index * batch_size : (index + 1) * batch_size]
        # Indexing copies, so a training step may change its batch in place.
        yield data.images[chosen], None if data.labels is None else data.labels[chosen]


def _from_loader(
    loader: DataLoader[Any], seed: int, epoch: int, start: int, levels: int
) -> Iterator[Batch]:
    found = loader_batches(loader, seed, epoch)
    passed = sum(1 for _ in islice(found, start))
    if passed < start:
        raise InputError(
            f"batches: expected start <= {passed}, the batches there are, got {start=}"
        )
    for item in found:
        images = to_canonical(image_of(item, "batches"), levels, "batches")
        labels = labels_of(item, len(images))
        yield images, None if labels is None else torch.tensor(labels)
