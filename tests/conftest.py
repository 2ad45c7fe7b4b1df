"""Shared by every test: which device Triton kernels run on, and a fixed seed."""

import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Read by Triton when it is first imported: without a GPU its kernels run under the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Results are compared: float32 on a GPU must not mean TF32, and one input has one result.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch has newer names for these
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.deterministic = True


def pytest_configure() -> None:
    # Whoever starts tests in the background may leave Ctrl-C ignored, for child processes too.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """What takes a GPU by itself takes the CPU, here and in other processes, in unmarked tests.

    They compare bits, which a GPU does not promise, and bring models that know no other device.
    """
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("gpu") is None and torch.cuda.is_available():
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return (yield)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device an op runs on; a missing GPU skips."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def simd_level(request: pytest.FixtureRequest) -> str:
    """Each SIMD level in turn; one that the processor lacks skips."""
    from genfast import _C

    before = _C.simd_level()
    if not _C.set_simd_level(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _C.set_simd_level(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    """Several thread counts of torch; restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
