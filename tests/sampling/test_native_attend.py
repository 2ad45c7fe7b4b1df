"""Attention in the native executor: the same bits however it is done, and what it refuses."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from genfast import _C as extension
from genfast.sampling.program import (
    Attend,
    Buffer,
    Draw,
    Gemm,
    Pointwise,
    Program,
    Read,
    Step,
    Table,
    Tap,
    When,
)
from genfast.sampling.run.native import NativeExecutor
from genfast.sampling.run.reference import ReferenceExecutor
from tests.sampling.random_attention import RandomAttention
from tests.sampling.test_attend import attention


def transformer(heads, depth, width, height, columns, dtype, *, shared=True, split=1, step=1):
    """One layer over the pixels before: keys and values in `split` reads of every `step`-th."""
    generator = torch.Generator().manual_seed(heads)

    def numbers(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    sizes = {"q": heads * depth, "k": heads * depth, "v": heads * width}
    stored = sum(sizes.values()) * step
    when = When(height, columns)
    before = Read(0, 0, 1, 1, dx=-1, right=columns)
    above = Read(0, 0, 1, 1, dy=-1, bottom=height)
    taps = tuple(Tap(read, numbers(1, stored)) for read in (before, above))
    seen = height * columns
    bias = numbers(seen, 1 if shared else heads, seen) * 0.3
    bias.masked_fill_((torch.ones(seen, seen).triu(1) > 0)[:, None], -math.inf)
    bias = bias.view(1, height, columns, -1)

    def reads(start, count):
        """`count` features from a start, in pieces of nearly the same size."""
        cuts = [start + count * piece // split for piece in range(split + 1)]
        return tuple(Read(1, a * step, step, b - a) for a, b in pairwise(cuts) if b > a)

    q, k, v = (
        reads(start, count)
        for start, count in zip((0, sizes["q"], 2 * sizes["q"]), sizes.values(), strict=True)
    )
    seen_bias = Read(0, 0, 1, bias.shape[3], table=True)
    instructions = (
        Gemm(1, 0, stored, when, taps, numbers(stored)),
        Attend(2, 0, when, q, k, v, seen_bias, heads, height, columns, depth**-0.5),
    )
    buffers = (
        Buffer("x", 1, height, columns, height, columns),
        Buffer("qkv", stored, height, columns, height, columns),
        Buffer("y", heads * width, height, columns, 1, 1),
    )
    return Program(
        1, 1, height, columns, columns, dtype, torch.device("cpu"), buffers,
        (Table("bias", bias.shape[3], height, columns, bias),), instructions,
        (Draw(0, 1, (Read(2, 0, 1, heads * width),)),),
    )  # fmt: skip


CASES = {
    "one head": (1, 40, 40, 4, 7),
    "odd": (5, 3, 9, 1, 61),
    "tall": (3, 17, 8, 23, 2),
    "wide": (12, 32, 32, 6, 6),
}
LAYOUTS = {
    "whole": {},
    "own biases": {"shared": False},
    "in two": {"split": 2},
    "in five": {"split": 5},
    "every other": {"step": 2},
    "every other, in three": {"step": 2, "split": 3, "shared": False},
}


def image(n, height, columns, dtype):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 1, height, columns, generator=generator, dtype=dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-12)])
def test_reference(case, layout, dtype, tolerance):
    program = transformer(*CASES[case], dtype, **LAYOUTS[layout])
    x = image(3, program.height, program.width, dtype)
    (found,) = NativeExecutor(program).begin(3).forced(x)
    double = transformer(*CASES[case], torch.float64, **LAYOUTS[layout])
    if dtype == torch.float32:
        # The same numbers as they are rounded.
        double = rounded(double)
    (expected,) = ReferenceExecutor(double).begin(3).forced(x.double())
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def rounded(program):
    """A float64 program with the weights that it would have in float32."""
    gemm, attend = program.instructions
    taps = tuple(replace(tap, weight=tap.weight.float().double()) for tap in gemm.taps)
    gemm = replace(gemm, taps=taps, bias=gemm.bias.float().double())
    table = replace(program.tables[0], data=program.tables[0].data.float().double())
    return replace(program, instructions=(gemm, attend), tables=(table,))


@pytest.fixture
def sharing():
    threads = torch.get_num_threads()
    yield extension.share_sampling
    extension.share_sampling(False)
    torch.set_num_threads(threads)


def programs(dtype):
    """Programs, and what to begin and force them with for n images."""
    for case, layout in [("wide", "whole"), ("odd", "own biases"), ("tall", "in five")]:
        program = transformer(*CASES[case], dtype, **LAYOUTS[layout])
        yield program, (lambda n: ()), lambda n, p=program: image(n, p.height, p.width, p.dtype)
    for seed in range(200, 205):
        made = RandomAttention(seed, dtype)
        yield made.build(), made.conditions, made.inputs


def equal(found, expected):
    return all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_on_all_threads_and_in_all_batches(dtype, sharing):
    for program, conditions, inputs in programs(dtype):
        executor = NativeExecutor(program)
        given, x = conditions(5), inputs(5)
        torch.set_num_threads(1)
        expected = executor.begin(5, given).forced(x)
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            for share in (False, True):
                sharing(share)
                assert equal(executor.begin(5, given).forced(x), expected), (threads, share)
                for begin, end in [(0, 1), (1, 5)]:
                    cut = [each[begin:end] if len(each) > 1 else each for each in given]
                    part = executor.begin(end - begin, cut).forced(x[begin:end])
                    assert equal(part, [each[begin:end] for each in expected]), (threads, share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_at_all_simd_levels(dtype):
    best = extension.simd_level()
    found = {}
    try:
        for level in ("baseline", "avx2", "avx512"):
            if extension.set_simd_level(level):
                found[level] = [
                    result
                    for program, conditions, inputs in programs(dtype)
                    for result in NativeExecutor(program).begin(3, conditions(3)).forced(inputs(3))
                ]
    finally:
        extension.set_simd_level(best)
    for level, results in found.items():
        assert equal(results, found["baseline"]), level


def test_images_see_what_their_own_biases_say():
    # The bias of an image is what a condition gives for it.
    program = transformer(2, 5, 6, 3, 3, torch.float64)
    (table,) = program.tables
    table = replace(table, data=None, condition=0)
    biases = torch.randn(4, 3, 3, 9, generator=torch.Generator().manual_seed(2)).double()
    later = (torch.ones(9, 9).triu(1) > 0).view(1, 3, 3, 9)
    biases = biases.masked_fill(later | (biases < -0.5), -math.inf)
    x = image(4, 3, 3, torch.float64)
    program = replace(program, tables=(table,))
    (found,) = NativeExecutor(program).begin(4, [biases]).forced(x)
    (expected,) = ReferenceExecutor(program).begin(4, [biases]).forced(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for k in range(4):
        (alone,) = NativeExecutor(program).begin(1, [biases[k : k + 1]]).forced(x[k : k + 1])
        assert torch.equal(alone, found[k : k + 1])


def test_keys_of_a_whole_span_are_there_before_any_is_read():
    # Instructions of a span that come one after the other: each position sees all of its row.
    when = When(4, 9, span=True)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 24, generator=generator, dtype=torch.float64)
    row = torch.arange(36) // 9
    bias = torch.zeros(36, 36).double().masked_fill(row[:, None] != row, -math.inf)
    above = Read(0, 0, 1, 1, dy=-1, bottom=4)
    half = Read(1, 0, 1, 24)
    instructions = (
        Gemm(1, 0, 24, when, (Tap(above, weight),), torch.randn(24).double()),
        Pointwise(2, 0, 24, when, (half,), (), (Step("tanh", (0,)),)),
        Attend(
            3, 0, when, (Read(2, 0, 1, 8),), (Read(2, 8, 1, 8),), (Read(2, 16, 1, 8),),
            Read(0, 0, 1, 36, table=True), 2, 4, 9, 0.5,
        ),
    )  # fmt: skip
    buffers = tuple(
        Buffer(f"b{n}", size, 4, 9, 2 if n else 4, 9) for n, size in enumerate([1, 24, 24, 8])
    )
    program = Program(
        1, 1, 4, 9, 9, torch.float64, torch.device("cpu"), buffers,
        (Table("bias", 36, 4, 9, bias.view(1, 4, 9, 36)),), instructions,
        (Draw(0, 1, (Read(3, 0, 1, 8),)),),
    )  # fmt: skip
    x = image(20, 4, 9, torch.float64)
    (found,) = NativeExecutor(program).begin(20).forced(x)
    (expected,) = ReferenceExecutor(program).begin(20).forced(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads >= 1"),
        ({"heads": 5}, "as many features for every head"),
        ({"height": 0}, "positions"),
        ({"width": 3}, r"a bias \[heads or 1, positions\]"),
        ({"queries": (Read(0, 0, 1, 6, table=True),)}, "as many queries as keys"),
        ({"keys": (Read(0, 11, 1, 6, table=True),)}, "as many queries as keys"),
        ({"values": (Read(0, 60, 1, 6, table=True),)}, "features of the source"),
        ({"values": (Read(7, 0, 1, 6, table=True),)}, "a source that exists"),
    ],
)
def test_refusals(change, message):
    program = attention(2, 4, 3, torch.zeros(12, 12, dtype=torch.float64), 3, 4)
    (attend,) = program.instructions
    with pytest.raises(ValueError, match=message):
        NativeExecutor(replace(program, instructions=(replace(attend, **change),)))
