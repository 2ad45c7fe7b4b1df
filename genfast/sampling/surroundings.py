"""What is set around a call (autocast, inference mode, a default device), and running without."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

# The caller's default device, while the pipeline makes its own tensors on the CPU.
_CALLERS_DEVICE: ContextVar[torch.device | None] = ContextVar("callers_device", default=None)


class _FullPrecision:
    """Keeps convolutions and matrix products of a GPU from rounding float32 factors to TF32.

    By torch's own setting convolutions do, to three digits: a sampler would then differ from its
    model by a thousandth. The settings belong to the process, so the first block that is entered,
    of whatever thread, turns TF32 off and the last one that is left turns it on again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [each.fp32_precision for each in _precisions()]
                for each in _precisions():
                    each.fp32_precision = "ieee"

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for each, before in zip(_precisions(), self._before, strict=True):
                    each.fp32_precision = before


full_precision = _FullPrecision()


def _precisions() -> tuple[Any, ...]:
    """What of torch has a setting for products of float32 numbers on a GPU."""
    if torch.version.cuda is None:
        return ()
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Run a block as if nothing had been set around it.

    No gradients; no tensors that cannot be written to later, as inference mode makes them; no
    autocast; the CPU as the default device; and on a GPU float32 products of float32 numbers.
    """
    with ExitStack() as stack:
        stack.enter_context(full_precision)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        device = torch.get_default_device()
        if device.type != "cpu":
            stack.callback(_CALLERS_DEVICE.reset, _CALLERS_DEVICE.set(device))
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def callers_device() -> Iterator[None]:
    """Run the user's code in a block of `ordinary_tensors` with the user's default device."""
    device = _CALLERS_DEVICE.get()
    with ExitStack() as stack:
        if device is not None:
            stack.enter_context(device)
        yield
