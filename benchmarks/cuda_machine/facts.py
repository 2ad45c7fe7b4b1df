"""What a machine is: `python -m benchmarks.cuda_machine.facts DEVICE` prints it as JSON.

A process of its own, for torch may be missing and the GPU broken. It needs torch and not genfast:
the facts come before the build. With `--built` it tells instead whether the build serves DEVICE.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

# What building, testing and measuring import: module -> package.
_BUILD = {"torch": "torch", "setuptools": "setuptools", "pybind11": "pybind11", "pip": "pip"}
_OLDEST_SETUPTOOLS = 77
_RUN = {
    "numpy": "numpy", "safetensors": "safetensors", "typer": "typer", "tqdm": "tqdm",
    "PIL": "pillow", "matplotlib": "matplotlib", "jinja2": "jinja2", "sklearn": "scikit-learn",
    "soundfile": "soundfile", "scipy": "scipy", "mpmath": "mpmath", "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark", "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis", "triton": "triton", "tensorboard": "tensorboard",
}  # fmt: skip
_TOOLS = ("cmake", "ninja", "c++", "nvcc", "compute-sanitizer", "nvidia-smi")
_VERSIONS = ("torch", "triton", "numpy", "pytest", "pybind11")


def collect(device: str) -> dict[str, Any]:
    """Gather the facts, as JSON content.

    Returns:
        `problems` holds a sentence for everything without which nothing can be built, `missing`
        the packages that some tests need.
    """
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
    tools = {tool: shutil.which(tool, path=path) for tool in _TOOLS}
    facts: dict[str, Any] = {
        "device": device,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": _cores(),
        "tools": tools,
        "versions": {name: _version(name) for name in _VERSIONS}
        | {"cmake": _release(tools["cmake"], r"version ([0-9.]+)")},
        "missing": _missing(_RUN),
        "gpu": None,
        "driver": _driver(tools["nvidia-smi"]),
        "nvcc": _release(tools["nvcc"], r"release ([0-9.]+)"),
        "peaks": None,
    }
    problems = [f"the package {package} is not installed" for package in _missing(_BUILD)]
    setuptools = _version("setuptools")
    if setuptools is not None and int(setuptools.split(".")[0]) < _OLDEST_SETUPTOOLS:
        rule = f"setuptools {_OLDEST_SETUPTOOLS} or later reads pyproject.toml"
        problems.append(f"{rule}, here is {setuptools}")
    needed = ["cmake", "ninja", "c++", *(["nvcc"] if device == "cuda" else [])]
    problems += [f"the program {tool} is not on PATH" for tool in needed if tools[tool] is None]
    if importlib.util.find_spec("torch") is not None:
        problems += _look_at_torch(facts, device)
    return facts | {"problems": problems}


def _look_at_torch(facts: dict[str, Any], device: str) -> list[str]:
    import torch

    from benchmarks._peaks import measure_peaks

    if device == "cuda":
        built_with = torch.version.cuda
        if built_with is None:
            return [f"torch {torch.__version__} is a build without CUDA"]
        if facts["nvcc"] and facts["nvcc"].split(".")[0] != built_with.split(".")[0]:
            return [f"torch was built with CUDA {built_with}, nvcc is {facts['nvcc']}"]
        if not torch.cuda.is_available():
            return [f"torch {torch.__version__}, built with CUDA {built_with}, finds no GPU"]
        found = torch.cuda.get_device_properties(0)
        facts["gpu"] = {
            "name": found.name,
            "capability": f"{found.major}{found.minor}",
            "memory_gib": round(found.total_memory / 2**30, 1),
        }
    measured = measure_peaks(torch.device(device), 1.0 if device == "cuda" else 0.05)
    facts["peaks"] = {name: float(f"{value:.4g}") for name, value in measured.items()}
    return []


def built(device: str) -> tuple[str, bool]:
    """What `genfast info` tells, and whether the compiled code is in use and serves the device."""
    from genfast.info import collect as collect_info
    from genfast.info import render

    info = collect_info()
    good = info["extension"] is not None and info["extension"]["loaded"]
    if good and device == "cuda":
        good = bool(info["gpus"]) and info["gpus"][0]["served"] is True
    return render(info), good


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _missing(packages: dict[str, str]) -> list[str]:
    return [name for module, name in packages.items() if importlib.util.find_spec(module) is None]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(words: list[str]) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _driver(nvidia_smi: str | None) -> str | None:
    words = ["--query-gpu=driver_version,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"]
    return _output([nvidia_smi, *words]).strip() or None if nvidia_smi else None


def _release(tool: str | None, pattern: str) -> str | None:
    found = re.search(pattern, _output([tool, "--version"])) if tool else None
    return found.group(1) if found else None


def main() -> None:
    """Print the facts, or what was built."""
    parser = argparse.ArgumentParser(description="Tell what this machine is.")
    parser.add_argument("device", choices=("cuda", "cpu"))
    parser.add_argument("--built", action="store_true", help="look at the build of genfast instead")
    options = parser.parse_args()
    if options.built:
        text, good = built(options.device)
        print(text)
        sys.exit(0 if good else f"genfast: the build does not serve {options.device}")
    print(json.dumps(collect(options.device)))


if __name__ == "__main__":
    main()
