"""What this installation is made of: `genfast info`, `python -m genfast.info`.

Everything is found out by asking, nothing is assumed, and no part that is missing or broken keeps
the rest from being told.
"""

import importlib
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genfast._version import __version__


def collect() -> dict[str, Any]:
    """Gather the facts, as JSON content.

    Returns:
        A dictionary with the keys `genfast` (version), `folder`, `python`, `system`, `torch` (None
        if it cannot be imported), `torch_error`, `triton` (version or None), `gpus`, `gpu_reason`
        (why there are none), `extension` (how it was built, or why it is not in use) and `ops`: op
        to device to `runs` and `reason`.
    """
    facts: dict[str, Any] = {
        "genfast": __version__,
        "folder": str(Path(__file__).resolve().parent),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "torch": None,
        "torch_error": None,
        "triton": _version_of("triton"),
        "gpus": [],
        "gpu_reason": "torch cannot be imported",
        "extension": None,
        "ops": {},
    }
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch is missing
        facts["torch_error"] = _one_line(error)
        return facts
    facts["torch"] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    facts["gpus"], facts["gpu_reason"] = _gpus()
    facts["extension"], facts["ops"] = _extension()
    for gpu in facts["gpus"]:
        archs = facts["extension"]["cuda_archs"]
        gpu["served"] = None if archs is None else _is_served(gpu["capability"], archs)
    return facts


def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    """List the GPUs that torch can use, or say why there is none."""
    import torch

    if torch.version.cuda is None:
        return [], "this torch is built without CUDA"
    with warnings.catch_warnings(record=True) as caught:  # torch warns about a driver it cannot use
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        return [], _one_line(caught[0].message) if caught else "torch finds no CUDA device"
    gpus = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": found.name,
                "capability": f"{found.major}.{found.minor}",
                "memory_gib": round(found.total_memory / 2**30, 1),
            }
        )
    return gpus, None


def _extension() -> tuple[dict[str, Any], dict[str, dict[str, dict[str, str]]]]:
    """Tell how the compiled code was built, whether it loads, and what each op runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is told here
        from genfast import _extension

    extension: dict[str, Any] = {
        "loaded": _extension.loaded(),
        "reason": None if _extension.LOAD_ERROR is None else _one_line(_extension.LOAD_ERROR),
        "torch": None,
        "compiler": None,
        "simd_level": None,
        "cuda": None,
        "cuda_archs": None,
    }
    if extension["loaded"]:
        native = importlib.import_module("genfast._C")
        extension |= {"simd_level": native.simd_level(), **native.build_info()}
    ops: dict[str, dict[str, dict[str, str]]] = {op: {} for op in _extension.OPS}
    for (op, device), found in _extension.IMPLEMENTATIONS.items():
        ops[op][device] = {"runs": found.name, "reason": found.reason}
    return extension, ops


def _is_served(capability: str, archs: str) -> bool:
    """Tell whether code built for some architectures, and PTX of the last, runs on a GPU."""
    major, minor = map(int, capability.split("."))
    built = [divmod(int(arch.rstrip("af")), 10) for arch in archs.split(",")]
    binary = any(major == arch[0] and minor >= arch[1] for arch in built)
    return binary or (major, minor) >= built[-1]


def render(facts: Mapping[str, Any]) -> str:
    """Lay the facts out for a person; plain text, fit for a bug report."""
    torch, extension = facts["torch"], facts["extension"]
    rows = [
        ("folder", facts["folder"]),
        ("Python", facts["python"]),
        ("system", facts["system"]),
        ("torch", _describe_torch(torch, facts["torch_error"])),
        ("Triton", facts["triton"] or "not installed"),
    ]
    for gpu in facts["gpus"] or [None]:
        rows.append(("GPU", _describe_gpu(gpu, facts["gpu_reason"])))
    lines = [f"genfast {facts['genfast']}", *_table(rows)]
    if extension is None:
        return "\n".join(lines)
    lines += ["", f"compiled extension: {'loaded' if extension['loaded'] else 'not in use'}"]
    if extension["loaded"]:
        rows = [
            ("built for", f"torch {extension['torch']}"),
            ("compiler", extension["compiler"]),
            ("SIMD level", f"{extension['simd_level']} (in use on this CPU)"),
            ("CUDA", _describe_cuda(extension["cuda"], extension["cuda_archs"])),
        ]
        lines += _table(rows)
    else:
        lines += [f"  {extension['reason']}"]
    rows_of_ops = [
        (op, device, found["runs"], found["reason"])
        for op, devices in facts["ops"].items()
        for device, found in devices.items()
    ]
    return "\n".join([*lines, "", *_table([("op", "device", "runs", "because"), *rows_of_ops])])


def _describe_torch(torch: Mapping[str, Any] | None, error: str | None) -> str:
    if torch is None:
        return f"cannot be imported: {error}"
    cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else "built without CUDA"
    return f"{torch['version']}, {cuda}, {torch['threads']} threads"


def _describe_gpu(gpu: Mapping[str, Any] | None, reason: str | None) -> str:
    if gpu is None:
        return f"none in use: {reason}"
    text = f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB"
    if gpu["served"] is False:
        text += "; the CUDA kernels are not built for it: rebuild with GENFAST_CUDA_ARCHS="
        text += gpu["capability"].replace(".", "")
    return text


def _describe_cuda(version: str | None, archs: str | None) -> str:
    if version is None or archs is None:
        return "not in this build"
    newest = archs.split(",")[-1]
    listed = archs.replace(",", ", ")
    return f"{version}, for compute capabilities {listed} and, as PTX, above {newest}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align columns; the last one runs on."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return ["  " + "  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def main() -> None:
    """Print the facts."""
    print(render(collect()))


if __name__ == "__main__":
    main()
