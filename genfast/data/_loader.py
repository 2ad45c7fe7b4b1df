"""Going through somebody else's DataLoader without disturbing anybody's random numbers."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from genfast.data.dataset import ImageDataset
from genfast.errors import InputError


def seed_of(seed: int, epoch: int) -> int:
    """Return 64 bits that (seed, epoch) decide; neighbouring pairs give unrelated ones."""
    mask = 2**64 - 1
    state = np.random.SeedSequence((seed & mask, epoch & mask)).generate_state(1, np.uint64)
    return int(state[0])


class _Source(NamedTuple):
    """A random number generator that others share: how to save and to load its state."""

    get: Callable[[], Any]
    put: Callable[[Any], object]


class _PrivateRandom:
    """Lends the global generators states of our own while a loader runs, then restores theirs."""

    def __init__(self, generators: list[torch.Generator], seed: int) -> None:
        self._sources = [_Source(g.get_state, g.set_state) for g in generators]
        self._states: list[Any] = [
            torch.Generator(g.device).manual_seed(seed).get_state() for g in generators
        ]
        self._sources += [
            _Source(random.getstate, random.setstate),
            _Source(np.random.get_state, np.random.set_state),
        ]
        self._states += [
            random.Random(seed).getstate(),
            np.random.RandomState(seed % 2**32).get_state(),
        ]

    @contextmanager
    def lent(self) -> Iterator[None]:
        theirs = self._swap(self._states)
        try:
            yield
        finally:
            self._states = self._swap(theirs)

    def _swap(self, states: list[Any]) -> list[Any]:
        before = [source.get() for source in self._sources]
        for source, state in zip(self._sources, states, strict=True):
            source.put(state)
        return before


def loader_batches(loader: DataLoader[Any], seed: int, epoch: int) -> Iterator[Any]:
    """Yield the loader's batches, the same ones for the same (seed, epoch).

    A DataLoader draws from torch's global generator or from one of its own: for a seed each time
    it is iterated, and for the order. Transforms draw from torch, NumPy or the standard library.
    All of these draws are made from states that (seed, epoch) decides, and the generators are left
    as they were. `set_epoch` of a sampler is called.
    """
    samplers: list[Any] = [loader.sampler, getattr(loader, "batch_sampler", None)]
    for sampler in samplers:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
    own = [getattr(owner, "generator", None) for owner in (loader, *samplers)]
    unique = {id(g): g for g in [torch.default_generator, *own] if isinstance(g, torch.Generator)}
    private = _PrivateRandom(list(unique.values()), seed_of(seed, epoch))
    with private.lent():
        iterator = iter(loader)
    while True:
        with private.lent():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def own_levels(data: Any) -> int | None:
    """Return the grey levels of the ImageDataset inside a DataLoader or Subset, if there is one."""
    while isinstance(data, (DataLoader, Subset)):
        data = data.dataset
    return data.levels if isinstance(data, ImageDataset) else None


def image_of(item: Any, where: str) -> Tensor | np.ndarray[Any, Any]:
    """Return the image part of an item or batch: x itself, or the first of (x, ...)."""
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, (Tensor, np.ndarray)):
        return item
    if type(item).__module__.startswith("PIL."):
        array = np.asarray(item)
        return np.moveaxis(array, 2, 0) if array.ndim == 3 else array
    kind = type(item).__name__
    raise InputError(f"{where}: expected items to be images or (image, label), got {kind}")
