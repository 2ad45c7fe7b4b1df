"""What is set around a call (autocast, inference mode, a default device), and running without."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
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
        self._restore = _nothing

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._restore = _without_tf32()

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore()


def _nothing() -> None:
    """What there is to restore where there is no GPU."""


full_precision = _FullPrecision()


def _without_tf32() -> Callable[[], None]:
    """Turn TF32 off; returns what turns it on again where it was on.

    torch has an older and a newer name for each setting, and refuses to read the older one after
    the newer one was set: so the older ones are used, unless the user has set the newer ones.
    """
    if torch.version.cuda is None:
        return _nothing
    backends: Any = torch.backends
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the older names
        try:
            convolutions, products = backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
            _ = backends.cuda.matmul.allow_tf32
        except RuntimeError:
            settings = backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul
            before = [each.fp32_precision for each in settings]
            for each in settings:
                each.fp32_precision = "ieee"
            return lambda: _restore_newer(settings, before)
        backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    return lambda: _restore_older(convolutions, products)


def _restore_newer(settings: Sequence[Any], before: Sequence[str]) -> None:
    for each, value in zip(settings, before, strict=True):
        each.fp32_precision = value


def _restore_older(convolutions: bool, products: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


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
