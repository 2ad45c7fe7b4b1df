"""Seeds for counter-based randomness.

Every random op of genfast draws from a Philox4x32-10 stream addressed by (seed, offset): element e
of the stream is the same number on every device, for every thread count and every split of a batch.
This module turns what users hold (nothing, a `torch.Generator`, or a number) into a seed tensor.
"""

from numbers import Integral
from typing import Any

import torch

from genfast.errors import InputError

_LARGEST_SEED = 2**63 - 1


def as_seed(op: str, seed: int | None, generator: torch.Generator | None) -> torch.Tensor:
    """Returns the seed of one call as an int64 tensor [1].

    A given `seed` is used as it is. Otherwise one is drawn from `generator`, or from torch's
    default CPU generator, so that `torch.manual_seed` decides the noise on every device. A seed
    drawn from a CUDA generator stays on its device: nothing waits for it, and a CUDA graph replays
    with new ones.

    Raises:
        InputError: if both are given, or `seed` is no integer in [0, 2**63).
    """
    check_generator(op, generator)
    if seed is None:
        device = "cpu" if generator is None else generator.device
        return torch.randint(_LARGEST_SEED, (1,), generator=generator, device=device)
    if generator is not None:
        raise InputError(f"{op}: expected seed or generator, got both")
    return torch.tensor([check_seed(op, seed)], dtype=torch.int64)


def check_seed(op: str, seed: Any) -> int:
    """Refuses what is no integer in [0, 2**63); NumPy's integers are welcome."""
    # The type first: a compiled graph knows it, and need not look at a class of numbers.
    is_integer = type(seed) is int or (isinstance(seed, Integral) and not isinstance(seed, bool))
    if not (is_integer and 0 <= seed <= _LARGEST_SEED):
        what = "seed" if is_integer else "an integer seed"
        raise InputError(f"{op}: expected {what} in [0, 2**63), got seed={seed!r}")
    return int(seed)


def check_generator(op: str, generator: Any) -> None:
    """Refuses what is neither None nor a generator of torch."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"{op}: expected a torch.Generator, got generator={generator!r}")


def check_offset(op: str, offset: int, count: int) -> None:
    """Refuses a stream position below zero, or so high that `count` elements do not fit behind."""
    if offset < 0:
        raise InputError(f"{op}: expected offset >= 0, got offset={offset}")
    if offset > _LARGEST_SEED - count:
        raise InputError(f"{op}: expected offset + {count} elements < 2**63, got offset={offset}")
