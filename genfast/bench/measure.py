"""Seconds and bytes: the clock of `genfast bench`."""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of `runs` calls, the fastest and the slowest."""

    median: float
    fastest: float
    slowest: float
    runs: int

    def as_json(self) -> dict[str, Any]:
        """Return the fields, rounded to what a clock can tell."""
        return {
            name: value if isinstance(value, int) else float(f"{value:.6g}")
            for name, value in asdict(self).items()
        }


def time_together(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    least: int = 5,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time calls in turn, round after round, so that a noisy minute falls on all of them.

    Args:
        calls: name to a function without arguments; each is run once before.
        seconds: time to spend on all rounds, about.
        least: rounds to make however long they take.
        device: a GPU that is done with its work before a call has ended; by default the CPU.
    """

    def finish() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    for call in calls.values():
        call()
    finish()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    rounds = 0
    while rounds < least or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            finish()
            taken[name].append(time.perf_counter() - before)
        rounds += 1
    return {
        name: Timing(statistics.median(each), min(each), max(each), len(each))
        for name, each in taken.items()
    }


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Adds up the bytes of all storages that operations make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs or {}))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in inputs:
                self.total += leaf.untyped_storage().nbytes()
        return result


def activation_bytes(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Sum the bytes of everything that one forward pass computes; views count for nothing."""
    with torch.no_grad(), _Outputs() as outputs:
        model(*args, **kwargs)
    total: int = outputs.total
    return total


def peak_bytes(call: Callable[[], object], device: torch.device | None = None) -> int | None:
    """Return by how much memory grew at most during a call; None where nobody can tell.

    That is torch's own count on a GPU, and on the CPU the process as Linux sees it.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be taken for nothing
    try:
        reset.write_text("5")  # the high-water mark starts anew from what is resident now
        before = _kilobytes(status, "VmRSS")
        call()
        return (_kilobytes(status, "VmHWM") - before) * 1024
    except OSError:
        return None


def _kilobytes(status: Path, field: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def digits(value: float, count: int = 3) -> str:
    """Write a number with this many significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    places = max(0, count - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"
