"""How the process of a command keeps memory."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt in glibc's malloc.h
_KEPT, _LARGEST = 1 << 30, 1 << 25  # bytes; glibc takes no more than 2^25 for the second


def keep_freed_memory() -> bool:
    """Ask glibc to keep up to a gigabyte of what is freed, and tell whether it will.

    A training step frees its tensors and asks for the same ones again. Given back in between, they
    come as fresh pages, each a fault, which a small network's step on a CPU feels.
    Elsewhere, and where the environment says how malloc is to behave, nothing changes.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  another libc's mallopt is another function
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library None
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
