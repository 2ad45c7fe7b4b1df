"""On what, and with which versions, figures were measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from genfast._version import __version__


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores this process may use, threads it does use, accelerator if one is used."""
    return {
        "processor": _processor(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    import matplotlib
    import numpy
    import sklearn

    return {
        "genfast": __version__,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "NumPy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
        "Matplotlib": matplotlib.__version__,
    }


def _processor() -> str:
    """The processor's own name where the system tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
