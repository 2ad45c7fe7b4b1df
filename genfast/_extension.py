"""The one place where genfast meets its compiled code.

Importing this module loads `genfast._C` and, where a Triton kernel holds a dispatcher key, the
package `genfast.kernels.triton`. Both only register operators with torch; no symbol crosses. What
became of it stands in `LOAD_ERROR` and `IMPLEMENTATIONS`, and `genfast info` prints it.
"""

import importlib
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import forward_ad

from genfast.errors import BuildError, BuildMismatchError, NotBuiltError

OPS = (
    "masked_conv2d",
    "causal_conv1d",
    "gated_activation",
    "reparameterize",
    "gan_loss",
    "logistic_mixture_nll",
    "categorical_nll",
    "philox",
)

# Ops that are made of others on CUDA, and of which.
_COMPOSED = {"causal_conv1d": "convolutions of torch and gated_activation"}

# The dispatcher operator that stands for an op when its name differs.
_OPERATORS = {"philox": "philox_fill"}

# What the module has beside operators: the newest ones, to recognise an older build.
_FUNCTIONS = ("SamplingBuilderFloat", "hash_bits")

# Operators beside those of OPS, for the same reason.
_OTHER_OPERATORS = ("masked_conv2d_activation", "_masked_conv2d_reorder")

_HERE = Path(__file__).resolve().parent
_REBUILD = "pip install --no-build-isolation -e . (in a checkout: make build)"


@dataclass(frozen=True)
class Implementation:
    """Which code runs an op on a device.

    Attributes:
        name: "cpu" (C++), "cuda", "triton" or "reference" (plain PyTorch).
        reason: Why this one, in a few words.
    """

    name: str
    reason: str


def _release(version: str) -> str:
    """The version without its build label: "2.13.0+cpu" -> "2.13.0"."""
    return version.split("+")[0]


def _load() -> BuildError | None:
    """Loads the compiled extension; returns what went wrong instead of raising it."""
    if not any(_HERE.glob("_C.*")):
        return NotBuiltError(
            f"genfast: expected a compiled extension in {_HERE}, found none. Build it: {_REBUILD}"
        )
    try:
        built_for = json.loads((_HERE / "_build_info.json").read_text())["torch"]
    except (OSError, ValueError, KeyError):
        built_for = "an unknown torch"
    if _release(built_for) != _release(torch.__version__):
        return BuildMismatchError(
            f"genfast: the extension was built for torch {built_for}, this is torch "
            f"{torch.__version__}. Rebuild it: {_REBUILD}"
        )
    try:
        extension = importlib.import_module("genfast._C")
    except ImportError as error:
        return BuildMismatchError(
            f"genfast: the extension built for torch {built_for} does not load beside torch "
            f"{torch.__version__}: {error}. Rebuild it: {_REBUILD}"
        )
    missing = [op for op in OPS if not hasattr(torch.ops.genfast, _operator(op))]
    missing += [name for name in _OTHER_OPERATORS if not hasattr(torch.ops.genfast, name)]
    missing += [name for name in _FUNCTIONS if not hasattr(extension, name)]
    if missing:
        return BuildMismatchError(
            f"genfast: the extension is older than the package, it lacks {', '.join(missing)}. "
            f"Rebuild it: {_REBUILD}"
        )
    return None


def _operator(op: str) -> str:
    return _OPERATORS.get(op, op)


def _has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"genfast::{_operator(op)}", key)


def _implementations(error: BuildError | None) -> dict[tuple[str, str], Implementation]:
    """Finds out, for each op and device, which code runs."""
    if error is not None:
        built = "not built" if isinstance(error, NotBuiltError) else "built for something else"
        reference = Implementation("reference", f"the extension is {built}")
        return {(op, device): reference for op in OPS for device in ("cpu", "cuda")}
    table = {(op, "cpu"): Implementation("cpu", "compiled C++") for op in OPS}
    native = {op for op in OPS if _has_kernel(op, "CUDA")}
    for op in native:
        table[op, "cuda"] = Implementation("cuda", "compiled by nvcc")
    # torch.version.cuda costs nothing; asking for a device would start the CUDA driver.
    if torch.version.cuda is not None and native | set(_COMPOSED) != set(OPS):
        if importlib.util.find_spec("triton") is None:
            missing = "no CUDA kernel in this build, and Triton is not installed"
        else:
            importlib.import_module("genfast.kernels.triton")
            missing = "no CUDA kernel in this build, and no Triton kernel for this op"
    else:
        missing = "no CUDA kernel in this build"
    for op in OPS:
        if (op, "cuda") not in table:
            table[op, "cuda"] = (
                Implementation("triton", "no CUDA kernel in this build")
                if _has_kernel(op, "CUDA")
                else Implementation("reference", _COMPOSED.get(op, missing))
            )
    return table


LOAD_ERROR: BuildError | None = _load()
IMPLEMENTATIONS = _implementations(LOAD_ERROR)

# Which device types of each op go through the dispatcher; everything else takes the reference.
_KERNEL_DEVICES = {
    op: frozenset(
        device for device in ("cpu", "cuda") if IMPLEMENTATIONS[op, device].name != "reference"
    )
    for op in OPS
}

if LOAD_ERROR is not None:
    warnings.warn(f"{LOAD_ERROR} Until then the slower references run.", stacklevel=3)
elif wanted := os.environ.get("GENFAST_SIMD"):
    _level = importlib.import_module("genfast._C").simd_level()
    if _level != wanted:
        warnings.warn(
            "genfast: expected GENFAST_SIMD=baseline, avx2 or avx512 and a processor that has it, "
            f"got GENFAST_SIMD={wanted}; {_level} is in use.",
            stacklevel=3,
        )


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether `op` runs a kernel of ours on `device`, here (else: its plain PyTorch reference).

    Under the transforms of torch.func and in forward-mode differentiation the reference runs: the
    kernels carry no tangents and know no batches.
    """
    return (
        device.type in _KERNEL_DEVICES[op]
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


@contextmanager
def references() -> Iterator[None]:
    """Meanwhile every op runs as its plain PyTorch reference, in all threads: for comparisons."""
    kernels = dict(_KERNEL_DEVICES)
    _KERNEL_DEVICES.update(dict.fromkeys(OPS, frozenset()))
    try:
        yield
    finally:
        _KERNEL_DEVICES.update(kernels)


def loaded() -> bool:
    """Whether the compiled extension is in use."""
    return LOAD_ERROR is None
