"""The native executor's results are the same bits however the work is divided."""

import pytest
import torch

from genfast import _C as extension
from genfast.sampling.native import NativeExecutor
from tests.sampling import programs
from tests.sampling.random_programs import RandomProgram


@pytest.fixture(params=["gated", "plain", "wavenet", 0, 1, 2, 3, 4, 5, 6, 7], ids=str)
def case(request):
    """A float32 program, and what to begin and force it with: n -> (conditions, x)."""
    if isinstance(request.param, int):
        made = RandomProgram(request.param, torch.float32)
        return made.build(), lambda n: (made.conditions(n), made.inputs(n))
    sizes = {
        "gated": (2, 40, 20, 4, 9),
        "plain": (2, 16, 9, 5, 6),
        "wavenet": (33, 20, 8, 4, 2, 90),
    }
    program = getattr(programs, request.param)(*sizes[request.param]).program

    def data(n):
        generator = torch.Generator().manual_seed(7)
        return (), torch.randn(n, 1, program.height, program.width, generator=generator)

    return program, data


@pytest.fixture
def sharing():
    threads = torch.get_num_threads()
    yield extension.share_sampling
    extension.share_sampling(False)
    torch.set_num_threads(threads)


def forced(program, n, data):
    conditions, x = data(n)
    return NativeExecutor(program).begin(n, conditions).forced(x)


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("n", [1, 7])
def test_threads(case, sharing, n):
    program, data = case
    torch.set_num_threads(1)
    expected = forced(program, n, data)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        for share in (False, True):
            sharing(share)
            assert equal(forced(program, n, data), expected), (threads, share)


def test_batch_splits(case):
    program, data = case
    conditions, x = data(30)
    executor = NativeExecutor(program)
    whole = executor.begin(30, conditions).forced(x)
    for begin, end in [(0, 1), (1, 3), (3, 12), (12, 30)]:
        cut = [each[begin:end] if len(each) > 1 else each for each in conditions]
        part = executor.begin(end - begin, cut).forced(x[begin:end])
        assert equal(part, [each[begin:end] for each in whole])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 5])
def test_simd_levels(n, dtype):
    best = extension.simd_level()
    found = {}
    try:
        for level in ("baseline", "avx2", "avx512"):
            if not extension.set_simd_level(level):
                continue
            results = []
            for name in ("gated", "plain"):
                program = getattr(programs, name)(2, 20, 9, 4, 5, dtype=dtype).program
                x = torch.linspace(-1, 1, n * 20, dtype=dtype).view(n, 1, 4, 5)
                results += NativeExecutor(program).begin(n).forced(x)
            for seed in range(10, 40):
                made = RandomProgram(seed, dtype)
                run = NativeExecutor(made.build()).begin(n, made.conditions(n))
                results += run.forced(made.inputs(n))
            found[level] = results
    finally:
        extension.set_simd_level(best)
    assert "baseline" in found
    for level, results in found.items():
        assert equal(results, found["baseline"]), level
