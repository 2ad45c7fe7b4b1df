"""What is set around a call (autocast, inference mode, a default device), and running without."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch

# The caller's default device, while the pipeline makes its own tensors on the CPU.
_CALLERS_DEVICE: ContextVar[torch.device | None] = ContextVar("callers_device", default=None)


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Run a block as if nothing had been set around it.

    No gradients; no tensors that cannot be written to later, as inference mode makes them; no
    autocast; and the CPU as the default device.
    """
    with ExitStack() as stack:
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
