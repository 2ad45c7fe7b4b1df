"""The engine's draws from every distribution it knows, against the distribution's own `draw`."""

from dataclasses import replace

import pytest
import torch

from genfast import _C as extension
from genfast.sampling.program import Draw, Read
from genfast.sampling.run.native import NativeExecutor
from tests.sampling.drawing import (
    DRAWN,
    agree,
    convolved,
    drawn,
    empty,
    given_parameters,
    noise_of,
    running_on,
    stepped,
    wild,
)


@pytest.fixture(params=DRAWN)
def case(request):
    return DRAWN[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_symbols_are_those_of_the_distribution(case, dtype, temperature):
    distribution, colours = case
    program = given_parameters(distribution, colours, dtype, height=5, width=7)
    executor = NativeExecutor(program)
    for n, seed in [(1, 4), (60, 5)]:
        given = wild(program, n, seed)
        options = {"seed": seed, "temperature": temperature}
        found = drawn(executor, distribution, n, given, **options)
        agree(found, stepped(executor, distribution, n, given, **options))
    assert len(found[0].unique()) > 1


def test_symbols_follow_what_was_drawn_before(case):
    distribution, colours = case
    executor = NativeExecutor(convolved(distribution, colours, torch.float64))
    found = drawn(executor, distribution, 9, seed=2, rows=3)
    agree(found, stepped(executor, distribution, 9, seed=2))
    assert len(found[0].flatten(1).unique(dim=0)) > 1


def test_known_symbols_are_kept_and_not_counted(case):
    distribution, colours = case
    program = convolved(distribution, colours, torch.float64)
    executor = NativeExecutor(program)
    source = drawn(executor, distribution, 6, seed=8)[0]
    generator = torch.Generator().manual_seed(9)
    mask = torch.rand(source.shape, generator=generator) < 0.5
    symbols = torch.where(mask, source, -7)
    found = drawn(executor, distribution, 6, seed=3, symbols=symbols, known_mask=mask)
    agree(found, stepped(executor, distribution, 6, seed=3, symbols=symbols, mask=mask))
    assert torch.equal(found[0][mask], source[mask])
    everywhere = torch.ones_like(mask)
    nothing = drawn(executor, distribution, 6, symbols=source, known_mask=everywhere)
    assert torch.equal(nothing[0], source)
    assert nothing[1].abs().max() == 0


def test_the_start_symbol_stands_where_nothing_predicts(case):
    distribution, colours = case
    program = given_parameters(distribution, colours, torch.float64, left=2, top=1)
    executor = NativeExecutor(program)
    given = wild(program, 3, 6)
    found = drawn(executor, distribution, 3, given)
    agree(found, stepped(executor, distribution, 3, given))
    assert (found[0][:, :, 0] == distribution.start).all()
    assert (found[0][:, :, :, :2] == distribution.start).all()


def test_threads_splits_and_simd_levels_give_the_same_bits(case):
    distribution, colours = case
    executor = NativeExecutor(convolved(distribution, colours, torch.float32, seed=1))
    noise = noise_of(executor.program, distribution, 19, seed=3)
    part = noise[5:9].contiguous()
    with running_on(1):
        expected = drawn(executor, distribution, 19, noise=noise, temperature=0.8)
    for threads, share in [(2, False), (3, True), (8, True)]:
        with running_on(threads, share):
            found = drawn(executor, distribution, 19, noise=noise, temperature=0.8, rows=3)
            few = drawn(executor, distribution, 4, noise=part, temperature=0.8)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert torch.equal(few[0], expected[0][5:9])
        assert torch.equal(few[1], expected[1][5:9])
    best = extension.simd_level()
    try:
        for level in ("baseline", "avx2", "avx512"):
            if extension.set_simd_level(level):
                other = NativeExecutor(executor.program)
                found = drawn(other, distribution, 19, noise=noise, temperature=0.8)
                assert torch.equal(found[0], expected[0])
                assert torch.equal(found[1], expected[1])
    finally:
        extension.set_simd_level(best)


def test_without_log_probabilities_the_symbols_are_the_same(case):
    distribution, colours = case
    executor = NativeExecutor(convolved(distribution, colours, torch.float32))
    symbols = empty(executor.program, distribution, 3)
    run = executor.begin(3)
    while not run.done:
        run.sample(distribution, noise_of(executor.program, distribution, 3), symbols)
    assert torch.equal(symbols, drawn(executor, distribution, 3)[0])


@pytest.mark.parametrize("name", ["categorical", "bernoulli rgb", "mixture of six colours"])
def test_a_draw_of_more_symbols_is_several_side_by_side(name):
    distribution, colours = DRAWN[name]
    apart = given_parameters(distribution, colours, torch.float64)
    features = apart.tables[0].features
    joined = replace(apart, draws=(Draw(0, colours, (Read(0, 0, 1, features, table=True),)),))
    given = wild(apart, 5, 2)
    found = drawn(NativeExecutor(joined), distribution, 5, given)
    expected = drawn(NativeExecutor(apart), distribution, 5, given)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("bits", [0, 1, 2**23, 2**24 - 1])
def test_uniforms_at_their_ends(case, bits):
    distribution, colours = case
    program = given_parameters(distribution, colours, torch.float64)
    executor = NativeExecutor(program)
    noise = torch.full_like(noise_of(program, distribution, 4), bits * 2**-24)
    given = wild(program, 4, 1)
    found = drawn(executor, distribution, 4, given, noise=noise)[0]
    for draw, part in zip(program.draws, given[0].chunk(len(program.draws), 3), strict=True):
        per_draw = noise[:, : distribution.noise_per_draw].permute(0, 2, 3, 1).flatten(0, 2)
        expected = distribution.draw(part.flatten(0, 2), per_draw)
        expected = expected.view(4, program.height, program.width, -1).permute(0, 3, 1, 2)
        mine = found[:, draw.first : draw.first + draw.count]
        torch.testing.assert_close(mine, expected.to(mine.dtype), rtol=1e-12, atol=1e-12)
