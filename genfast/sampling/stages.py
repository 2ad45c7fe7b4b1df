"""What a stage of compiling says of a model that it stumbles over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from genfast.errors import GenfastError, UnsupportedModelError


def first_line(error: BaseException) -> str:
    """The class of an error and what it says first."""
    text = str(error).strip()
    return type(error).__name__ + (f": {text.splitlines()[0]}" if text else "")


@contextmanager
def stage(rule: str | Callable[[], str]) -> Iterator[None]:
    """Turn what fails in a block and is no error of ours into one about the model.

    Nobody foresaw it, so it may well be a fault of this package; but the model can be sampled in
    another way.

    Args:
        rule: "<where>: expected <what>" that the block needs, or a function that gives it.

    Raises:
        UnsupportedModelError: instead of any other exception but an error of genfast, and memory
            that is not enough.
    """
    try:
        yield
    except (GenfastError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        expected = rule if isinstance(rule, str) else rule()
        raise UnsupportedModelError(f"{expected}, got {first_line(error)}") from error
