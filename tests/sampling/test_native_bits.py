"""The native executor's results are the same bits however the work is divided."""

from dataclasses import replace

import pytest
import torch

from genfast import _C as extension
from genfast.sampling.program import Buffer, Draw, Gemm, Pointwise, Program, Read, Step, Tap, When
from genfast.sampling.run.native import NativeExecutor
from tests.sampling import programs
from tests.sampling.random_programs import RandomProgram


@pytest.fixture(params=["gated", "plain", "wavenet", "recurrent", 0, 1, 2, 3, 4, 5, 6, 7], ids=str)
def case(request):
    """A float32 program, and what to begin and force it with: n -> (conditions, x)."""
    if isinstance(request.param, int):
        made = RandomProgram(request.param, torch.float32)
        return made.build(), lambda n: (made.conditions(n), made.inputs(n))
    sizes = {
        "gated": (2, 40, 20, 4, 9),
        "plain": (2, 16, 9, 5, 6),
        "wavenet": (33, 20, 8, 4, 2, 90),
        "recurrent": (70, 33, 4, 5),
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


def rectified(features):
    """A program whose wide product reads what a rectifier leaves, and numbers it did not see."""
    when = When(1, 8)
    generator = torch.Generator().manual_seed(3)
    first, second, third = (
        torch.randn(*size, generator=generator) for size in [(1, 50), (50, features), (1, features)]
    )
    here, before = Read(1, 0, 1, 50), Read(0, 0, 1, 1, dx=-1)
    instructions = (
        Gemm(1, 0, 50, when, (Tap(before, first),)),
        Pointwise(2, 0, 50, when, (here,), (), (Step("relu", (0,)),)),
        Gemm(3, 0, features, when, (Tap(replace(here, source=2), second), Tap(before, third))),
    )
    sizes = enumerate([1, 50, 50, features])
    buffers = tuple(Buffer(f"b{n}", size, 1, 8, 1, 8) for n, size in sizes)
    draws = (Draw(0, 1, (Read(3, 0, 1, features), Read(2, 0, 1, 50))),)
    return Program(
        1, 1, 1, 8, 8, torch.float32, torch.device("cpu"), buffers, (), instructions, draws
    )


@pytest.mark.parametrize("features", [128, 200, 300])
def test_inputs_that_are_zero_are_left_out_of_no_result(features):
    program = rectified(features)
    x = torch.randn(6, 1, 1, 8, generator=torch.Generator().manual_seed(1))
    x[0, 0, 0, 3], x[1, 0, 0, 2], x[2], x[3, 0, 0, 1] = torch.nan, torch.inf, 0, 1e38
    executor = NativeExecutor(program)
    (together,) = executor.begin(6).forced(x)
    for image in range(6):
        (alone,) = executor.begin(1).forced(x[image : image + 1])
        assert torch.equal(alone.nan_to_num(7), together[image : image + 1].nan_to_num(7))
        assert torch.equal(alone.isnan(), together[image : image + 1].isnan())
    # NaN goes through a rectifier, and nowhere else.
    assert together.isnan().any(dim=1)[0, 0].tolist() == [False] * 4 + [True] + [False] * 3
    weight, other = program.instructions[2].taps
    previous = torch.nn.functional.pad(x[4:, 0, 0, :-1], (1, 0)).double()[..., None]
    hidden = (previous @ program.instructions[0].taps[0].weight.double()).relu()
    expected = hidden @ weight.weight.double() + previous @ other.weight.double()
    torch.testing.assert_close(
        together[4:, :features, 0].double(), expected.mT, rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(together[4:, features:, 0].double(), hidden.mT, rtol=1e-5, atol=1e-5)


# Read by an instruction after a rectified product of 256 features, of which 2 has no negative ones.
AFTER_A_RECTIFIER = {
    "one feature": (Read(1, 0, 1, 256), Read(2, 255, 1, 1)),
    "the same": (Read(1, 0, 1, 256), Read(2, 0, 1, 256)),
    "in reverse": (Read(1, 0, 1, 256), Read(2, 255, -1, 256)),
    "the other half": (Read(1, 0, 1, 128), Read(2, 128, 1, 128)),
    "between halves": (Read(1, 0, 1, 128), Read(1, 128, 1, 128), Read(2, 64, 1, 128)),
}


@pytest.mark.parametrize("reads", AFTER_A_RECTIFIER.values(), ids=AFTER_A_RECTIFIER)
def test_what_a_rectifier_leaves_is_read_when_all_threads_are_there(reads, sharing):
    count, when = reads[0].count, When(1, 60)
    weight = torch.randn(1, 256, generator=torch.Generator().manual_seed(5))
    first = len(reads)
    steps = [Step("sub", (0, first - 1)), Step("mul", (first, 1))][: first - 1]
    instructions = (
        Gemm(1, 0, 256, when, (Tap(Read(0, 0, 1, 1, dx=-1), weight),)),
        Pointwise(2, 0, 256, when, (Read(1, 0, 1, 256),), (), (Step("relu", (0,)),)),
        Pointwise(3, 0, count, when, reads, (), tuple(steps)),
    )
    buffers = tuple(
        Buffer(f"b{n}", size, 1, 60, 1, 60) for n, size in enumerate([1, 256, 256, count])
    )
    draws = (Draw(0, 1, (Read(3, 0, 1, count), Read(2, 0, 1, 256))),)
    program = Program(
        1, 1, 1, 60, 60, torch.float32, torch.device("cpu"), buffers, (), instructions, draws
    )
    x = torch.randn(1, 1, 1, 60, generator=torch.Generator().manual_seed(6))
    executor = NativeExecutor(program)
    torch.set_num_threads(1)
    expected = executor.begin(1).forced(x)
    product = torch.nn.functional.pad(x[0, 0, 0, :-1], (1, 0))[:, None] * weight
    taken = [
        (product if read.source == 1 else product.relu())[
            :, [read.start + read.step * k for k in range(read.count)]
        ]
        for read in reads
    ]
    last = taken[0] - taken[-1]
    assert torch.equal(expected[0][0, :count, 0].mT, last * taken[1] if first == 3 else last)
    sharing(True)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for _ in range(8):
            assert equal(executor.begin(1).forced(x), expected), threads


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
            program = programs.recurrent(20, 9, 4, 5, dtype=dtype).program
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
