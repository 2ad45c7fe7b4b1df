"""Timing one op, side by side: plain PyTorch, the same compiled, and ours.

Correctness comes first: a case whose result is wrong is not timed. The unit is forward and backward
together, or a whole training step. Ratios between the rows of one group mean something; times of
different runs do not.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from genfast.bench.measure import peak_bytes

IMPLEMENTATIONS = ("eager", "compiled", "genfast")


@dataclass(frozen=True)
class Case:
    """One size of one op, taken from a real model.

    Attributes:
        inputs: Tensors that the op is called with; those that require gradients get them.
        bytes_moved: The least traffic of forward and backward: what must be read and written, once;
            as float32, whatever the dtype.
        flops: Multiplications and additions of forward and backward.
    """

    inputs: tuple[torch.Tensor, ...]
    bytes_moved: int
    flops: int = 0


def forward_backward(
    function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A step without arguments: the scalar `function(*inputs)` and its gradients."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]

    def step() -> tuple[torch.Tensor, ...]:
        loss = function(*inputs)
        return (loss, *torch.autograd.grad(loss, wanted))

    return step


def assert_same(plain: tuple[torch.Tensor, ...], ours: tuple[torch.Tensor, ...]) -> None:
    """Raise AssertionError unless results agree, to roundings of sums over all of their terms.

    A scalar may be what is left where large terms cancel: it is held to the largest of all results.
    """
    largest = [each.float().abs().max().item() if each.numel() else 0.0 for each in ours]
    for a, b, mine in zip(plain, ours, largest, strict=True):
        allowed = 1e-4 * (max(largest) if b.dim() == 0 else mine)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=allowed, check_dtype=False)


def time_case(
    benchmark: BenchmarkFixture,
    implementation: str,
    case: Case,
    *,
    eager: Callable[..., torch.Tensor],
    genfast: Callable[..., torch.Tensor],
    check: Callable[[], None],
    compared: tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] | None = None,
) -> None:
    """Checks, then times one implementation of one case.

    What is timed is compared, too: the scalars and gradients of plain PyTorch, as it is or
    compiled, with ours.

    Args:
        benchmark: The fixture of pytest-benchmark.
        implementation: One of IMPLEMENTATIONS.
        case: The size.
        eager: What a good engineer writes in plain PyTorch, returning a scalar.
        genfast: The same through our op.
        check: Raises AssertionError when our op is wrong on this case.
        compared: `eager` and `genfast` on the same noise, where each draws its own.
    """
    plain, ours = compared or (eager, genfast)

    def check_all() -> None:
        check()
        given = case.inputs
        wanted = forward_backward(ours, given)()
        assert_same(forward_backward(plain, given)(), wanted)
        if implementation == "compiled":
            torch.compiler.reset()
            assert_same(forward_backward(torch.compile(plain), given)(), wanted)

    makers = {
        "eager": lambda: forward_backward(eager, case.inputs),
        "compiled": lambda: forward_backward(torch.compile(eager), case.inputs),
        "genfast": lambda: forward_backward(genfast, case.inputs),
    }
    device = case.inputs[0].device
    time_steps(
        benchmark,
        implementation,
        makers,
        check=check_all,
        device=device,
        bytes_moved=case.bytes_moved,
        flops=case.flops,
    )


def time_steps(
    benchmark: BenchmarkFixture,
    implementation: str,
    makers: Mapping[str, Callable[[], Callable[[], object]]],
    *,
    check: Callable[[], None],
    device: torch.device,
    bytes_moved: int = 0,
    flops: int = 0,
) -> None:
    """Checks, then times one implementation of anything that is a step without arguments.

    Args:
        benchmark: The fixture of pytest-benchmark.
        implementation: One of IMPLEMENTATIONS.
        makers: For each of them what makes its step; only the one that is timed is called.
        check: Raises AssertionError when they do not do the same.
        device: Where the steps run.
        bytes_moved: As in `Case`; 0 where nobody counts them.
        flops: Likewise.
    """
    dtype = torch.get_default_dtype()
    with tolerances_of(dtype):
        check()
    torch.set_default_dtype(torch.float32)
    torch.compiler.reset()  # else this is a new shape of the case before, compiled for any shape
    # The mode behind a default device would cost each of eager's many calls some microseconds.
    torch.set_default_device(None)
    step = makers[implementation]()
    step()
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["torch"] = torch.__version__
    benchmark.extra_info["bytes_moved"] = bytes_moved * dtype.itemsize // 4
    benchmark.extra_info["flops"] = flops
    benchmark.extra_info["peak_bytes"] = peak_bytes(step, device)
    for _ in range(3):  # the last line gave all free memory back: it is fetched again here
        step()
    benchmark(step)


@contextmanager
def tolerances_of(dtype: torch.dtype) -> Iterator[None]:
    """In it `torch.testing.assert_close` allows for roundings of the dtype.

    The checks of the cases name tolerances of float32. At a half type plain PyTorch rounds between
    its operations and we do not: results then differ by a few roundings, of elements and of terms
    of their sums, and losses in their dtype.
    """
    if dtype == torch.float32:
        yield
        return
    exact = torch.testing.assert_close
    few = 8 * torch.finfo(dtype).eps

    def close(actual: torch.Tensor, expected: torch.Tensor, **tolerances: Any) -> None:
        largest = expected.float().abs().max().item()
        exact(actual.float(), expected.float(), rtol=few, atol=few * largest)

    with mock.patch.object(torch.testing, "assert_close", close):
        yield


def needs_float32() -> None:
    """Skip a case of an op that has float32 alone."""
    if torch.get_default_dtype() != torch.float32:
        pytest.skip("the op is float32 only")


def in_turn(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Cases of all ops in turn, so that a run that is cut short has some of each, small and large.

    Implementations of a case stay together: their ratio should not see the machine change.
    """
    cases: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        parameters.pop("implementation", None)
        cases.setdefault(str(item.path), {}).setdefault(repr(parameters), []).append(item)
    mixed = [random.Random(0).sample(list(of_op.values()), len(of_op)) for of_op in cases.values()]
    rounds = itertools.zip_longest(*mixed, fillvalue=[])
    return [item for turn in rounds for case in turn for item in case]
