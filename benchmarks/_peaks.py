"""What this machine does at most: the roof that rates of ops are held against.

Both are measured with PyTorch's own operations, on the device and with the threads that the ops are
timed with, so that they are reached and not read from a data sheet.
"""

import time
from collections.abc import Callable

import torch

# Far larger than any cache; large enough that a product runs at full speed.
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
_MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}


def synchronized_clock() -> float:
    """Seconds, read when everything that the GPU was told to do is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_peaks(
    device: torch.device, seconds: float = 1.0, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Copy bandwidth in GB/s, reading and writing counted, and matrix products in GFLOP/s.

    The fastest of many runs counts: a peak is what the machine does when nothing disturbs it.

    Args:
        device: The CPU, with torch's present number of threads, or a GPU.
        seconds: How long to measure each, about.
        dtype: Of the numbers copied and multiplied.
    """
    count = _COPY_BYTES[device.type] // dtype.itemsize
    source = torch.ones(count, device=device, dtype=dtype)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device, seconds)
    size = _MATMUL_SIZE[device.type]
    # Random: a GPU multiplies numbers that are all alike with less power, and so faster.
    factor = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(factor)
    matmul = _fastest(lambda: torch.mm(factor, factor, out=product), device, seconds)
    return {
        "copy_gb_per_s": 2 * source.nbytes / copy / 1e9,
        "matmul_gflop_per_s": 2 * size**3 / matmul / 1e9,
    }


def _fastest(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    clock = synchronized_clock if device.type == "cuda" else time.perf_counter
    call()
    fastest, start = float("inf"), clock()
    while clock() - start < seconds:
        before = clock()
        call()
        fastest = min(fastest, clock() - before)
    return fastest
