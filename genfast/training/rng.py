"""The global random states of Python, NumPy and torch: seeded, saved, restored."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and CUDA)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the random states, as tensors and JSON content."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"cuda.{index}": state for index, state in enumerate(states)}
    numbers = {
        "python": {"version": version, "gauss": gauss},
        "numpy": {"kind": kind, "position": position, "has_gauss": has_gauss, "gauss": cached},
    }
    return tensors, numbers


def set_state(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put back what `get_state` returned; CUDA states as far as these devices exist."""
    python, numpy = numbers["python"], numbers["numpy"]
    random.setstate((python["version"], tuple(tensors["python"].tolist()), python["gauss"]))
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(
        (numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["gauss"])
    )
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda.{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)


@contextmanager
def private(seed: int) -> Iterator[None]:
    """Run a block on random states of its own, seeded; the caller's come back after it."""
    tensors, numbers = get_state()
    try:
        seed_all(seed)
        yield
    finally:
        set_state(tensors, numbers)


def derive(seed: int, *path: int) -> int:
    """Return a seed in [0, 2**63) for one purpose of a run."""
    words = np.random.SeedSequence([seed, *path]).generate_state(2, np.uint64)
    return int(words[0] >> np.uint64(1))
