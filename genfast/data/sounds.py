"""Sounds in memory, and the fixed-length crops of them that a model is trained on."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genfast.data._loader import seed_of
from genfast.data.companding import encode
from genfast.data.dataset import as_tensor, canonical_labels
from genfast.errors import InputError

_HALF = 2**15


class SoundDataset(Dataset[tuple[Tensor, int]]):
    """Mono sounds of 16 bits in memory, with optional labels; items are `(samples [T], label)`.

    Args:
        sounds: one tensor or array `[T]` each, of any lengths from 1: int16, or floating point in
            -1 .. 1, of which the nearest of 65,536 steps is taken.
        labels: `[N]`, integers from 0, or None.
        sample_rate: in Hz, the same for all.
        name: what to call the dataset in logs.

    Attributes:
        samples: all sounds one after the other, int16 on the CPU.
        offsets: `[N + 1]` int64: sound i is `samples[offsets[i]:offsets[i + 1]]`.
        labels: `[N]` int64, or None.
        sample_rate: as given.
        name: as given.

    Raises:
        InputError: on a wrong shape or dtype, an empty sound, or a value out of range.
    """

    samples: Tensor
    offsets: Tensor
    labels: Tensor | None
    sample_rate: int
    name: str

    def __init__(
        self,
        sounds: Sequence[Tensor | npt.NDArray[Any]],
        labels: Tensor | npt.NDArray[np.integer] | Sequence[int] | None = None,
        sample_rate: int = 16000,
        name: str = "",
    ) -> None:
        if not isinstance(sample_rate, int) or sample_rate < 1:
            raise InputError(f"SoundDataset: expected sample_rate >= 1 Hz, got {sample_rate=}")
        parts = [_canonical(sound) for sound in sounds]
        self.samples = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int16)
        lengths = torch.tensor([0, *(len(part) for part in parts)])
        self.offsets = lengths.cumsum(0)
        self.labels = None if labels is None else canonical_labels(labels, len(parts))
        self.sample_rate = sample_rate
        self.name = name

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return `(samples [T], label)`; the label is -1 where there is none."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"SoundDataset: expected an index below {len(self)}, got {index}")
        index %= len(self)
        sound = self.samples[self.offsets[index] : self.offsets[index + 1]]
        return sound, -1 if self.labels is None else int(self.labels[index])

    def __repr__(self) -> str:
        seconds = len(self.samples) / self.sample_rate
        size = f"{len(self)} sounds, {seconds:.1f} s at {self.sample_rate} Hz"
        return f"SoundDataset({self.name!r}, {size})"

    def subset(self, indices: Sequence[int] | Tensor | npt.NDArray[np.integer]) -> "SoundDataset":
        """Return the sounds at `indices`, in that order, as a dataset of its own."""
        items = [self[int(index)] for index in indices]
        labels = None if self.labels is None else [label for _, label in items]
        return SoundDataset([sound for sound, _ in items], labels, self.sample_rate, self.name)


def crops(
    data: SoundDataset,
    length: int,
    batch_size: int,
    *,
    levels: int = 256,
    companding: str = "mu-law",
    seed: int,
    epoch: int,
    start: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the batches of one epoch: crops `[B, 1, length]` of levels, and their labels `[B]`.

    A sound of T samples gives ceil(T / length) crops. Shuffled, each begins anywhere where it lies
    inside the sound, so an epoch hears about as much as there is; else they follow one another.
    What is missing at the end is silence. Order and beginnings come from a private generator
    seeded by (seed, epoch): the global generator is neither read nor changed, and an interrupted
    epoch goes on with `start`.

    Args:
        data: the sounds.
        length: samples of a crop.
        batch_size: crops per batch.
        levels: number of levels of a sample.
        companding: "mu-law" or "linear", see `genfast.data.companding`.
        seed: seed of the run.
        epoch: number of the epoch.
        start: index of the first batch to yield.
        shuffle: False goes through the sounds in their order.
        drop_last: leave out a last batch smaller than `batch_size`.

    Raises:
        InputError: a number below 1, or `start` beyond the epoch.
    """
    for name, value in (("length", length), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"crops: expected {name} >= 1, got {name}={value}")
    number = count_crops(data, length)
    count = number // batch_size if drop_last else -(-number // batch_size)
    if not 0 <= start <= count:
        raise InputError(f"crops: expected start in 0 .. {count}, the batches, got {start=}")
    amplitudes = torch.arange(-_HALF, _HALF) / _HALF
    table = encode(amplitudes, levels, companding)
    of_sound, first = _windows(data, length, seed, epoch, shuffle)
    return _batches(data, length, batch_size, range(start, count), table, of_sound, first)


def count_crops(data: SoundDataset, length: int) -> int:
    """Return how many crops of this length an epoch has."""
    return int((-(-data.offsets.diff() // length)).sum())


def _windows(
    data: SoundDataset, length: int, seed: int, epoch: int, shuffle: bool
) -> tuple[Tensor, Tensor]:
    """Return the sound of each crop, and the crop's first sample as counted in all samples."""
    lengths = data.offsets.diff()
    counts = -(-lengths // length)
    of_sound = torch.arange(len(data)).repeat_interleave(counts)
    if not shuffle:
        before = (counts.cumsum(0) - counts)[of_sound]
        return of_sound, data.offsets[of_sound] + (torch.arange(len(of_sound)) - before) * length
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    of_sound = of_sound[torch.randperm(len(of_sound), generator=generator)]
    room = (lengths[of_sound] - length).clamp(min=0) + 1
    place = torch.rand(len(of_sound), dtype=torch.float64, generator=generator)
    return of_sound, data.offsets[of_sound] + (place * room).long().clamp(max=room - 1)


def _batches(
    data: SoundDataset,
    length: int,
    batch_size: int,
    indices: range,
    table: Tensor,
    of_sound: Tensor,
    first: Tensor,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    offsets = torch.arange(length)
    for index in indices:
        chosen = slice(index * batch_size, (index + 1) * batch_size)
        place = first[chosen, None] + offsets
        inside = place < data.offsets[of_sound[chosen] + 1][:, None]
        heard = data.samples[place.clamp(max=len(data.samples) - 1)].where(inside, 0)
        labels = None if data.labels is None else data.labels[of_sound[chosen]]
        yield table[heard.long() + _HALF][:, None], labels


def _canonical(sound: Tensor | npt.NDArray[Any]) -> Tensor:
    values = as_tensor(sound)
    if values.ndim != 1 or len(values) == 0:
        shape = list(values.shape)
        raise InputError(f"SoundDataset: expected sounds [T] of at least 1 sample, got {shape=}")
    if values.dtype == torch.int16:
        return values
    if not values.is_floating_point():
        raise InputError(f"SoundDataset: expected int16 or floats, got dtype={values.dtype}")
    if not bool((values.abs() <= 1).all()):  # false for NaN
        raise InputError("SoundDataset: expected floats in -1 .. 1, got a value that is not")
    return (values.double() * _HALF).round().clamp(-_HALF, _HALF - 1).to(torch.int16)
