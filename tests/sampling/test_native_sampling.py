"""The native executor's own drawing against the definition: one pixel at a time in PyTorch."""

import pytest
import torch

from genfast import _C as extension
from genfast.errors import NumericsError
from genfast.ops import philox_uniform
from genfast.sampling.distributions import Categorical
from genfast.sampling.distributions.categorical import invert_cdf
from genfast.sampling.run.native import NativeExecutor
from tests.sampling import programs
from tests.sampling.hand_planned import masked_stack


def drawn(
    executor,
    n,
    values,
    *,
    rows=1,
    seed=0,
    noise=None,
    known=None,
    known_mask=None,
    start=0,
    **options,
):
    """Everything from `sample`: symbols and log-probabilities."""
    program = executor.program
    size = (n, program.colours, program.height, program.width)
    noise = philox_uniform(size, seed=seed) if noise is None else noise
    symbols = torch.full(size, -1, dtype=torch.int32) if known is None else known.int()
    log_probs = torch.zeros(n, dtype=torch.float64)
    distribution = Categorical(len(values), values, start=start)
    options = {"log_probs": log_probs, "known_mask": known_mask, "rows": rows, **options}
    run = executor.begin(n)
    while not run.done:
        run.sample(distribution, noise, symbols, **options)
    return symbols, log_probs


def stepped(executor, n, values, *, seed=0, temperature=1.0, known=None, known_mask=None, start=0):
    """The same by the general protocol."""
    program = executor.program
    size = (n, program.colours, program.height, program.width)
    noise = philox_uniform(size, seed=seed)
    symbols = torch.full(size, -1, dtype=torch.int32)
    log_probs = torch.zeros(n, dtype=torch.float64)
    run = executor.begin(n)
    while not run.done:
        number, row, column = run.position
        draw = program.draws[number]
        logits = run.parameters().view(n, draw.count, -1)
        chosen = []
        for k in range(draw.count):
            site = (slice(None), draw.first + k, row, column)
            symbol = torch.full((n,), start)
            if run.has_parameters:
                symbol = invert_cdf(logits[:, k] / temperature, noise[site])
            given = torch.zeros(n, dtype=torch.bool) if known is None else known_mask[site]
            symbol = symbol if known is None else torch.where(given, known[site], symbol)
            if run.has_parameters:
                log_prob = logits[:, k].double().log_softmax(1).gather(1, symbol[:, None])[:, 0]
                log_probs += torch.where(given, 0, log_prob)
            symbols[site] = symbol.int()
            chosen.append(values.view(len(values), -1)[symbol])
        run.supply(torch.cat(chosen, 1))
    return symbols, log_probs


def cases():
    yield "gated", programs.gated(2, 20, 6, 5, 4).program, 6
    yield "plain", programs.plain(1, 8, 256, 4, 6).program, 256
    yield "wavenet", programs.wavenet(8, 9, 17, 4, 1, 50, 8).program, 17
    yield "colours", masked_stack(3, 3, 1, 4, 5).program, None
    yield "codes", masked_stack(4, 2, 3, 4, 3).program, None


@pytest.fixture(params=list(cases()), ids=lambda case: case[0])
def case(request):
    _, program, K = request.param
    if K is None:
        K = sum(read.count for read in program.draws[0].reads)
    shape = (K,) if program.encoded == 1 else (K, program.encoded)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return NativeExecutor(program), values.to(program.dtype)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_symbols_and_log_probs_follow_the_definition(case, temperature):
    executor, values = case
    for n, rows in [(1, 1), (5, 2), (9, 100)]:
        found = drawn(executor, n, values, rows=rows, seed=n, temperature=temperature)
        expected = stepped(executor, n, values, seed=n, temperature=temperature)
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-10)
        assert len(found[0].unique()) > 1


def test_known_symbols_are_kept_and_not_counted(case):
    executor, values = case
    program = executor.program
    size = (4, program.colours, program.height, program.width)
    generator = torch.Generator().manual_seed(2)
    known = torch.randint(0, len(values), size, generator=generator)
    mask = torch.rand(size, generator=generator) < 0.5
    known[~mask] = -7
    options = {"known": known, "known_mask": mask}
    found = drawn(executor, 4, values, **options)
    expected = stepped(executor, 4, values, **options)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[0][mask], known[mask].int())
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-10)
    nothing = drawn(executor, 4, values, known=found[0].long(), known_mask=torch.ones_like(mask))
    assert torch.equal(nothing[0], found[0])
    assert nothing[1].abs().max() == 0


def test_threads_and_batches_draw_the_same_images(case):
    executor, values = case
    program = executor.program
    noise = philox_uniform((11, program.colours, program.height, program.width), seed=3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = drawn(executor, 11, values, noise=noise)
        for threads, share in [(2, False), (3, True), (8, True)]:
            torch.set_num_threads(threads)
            extension.share_sampling(share)
            found = drawn(executor, 11, values, noise=noise, rows=2)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
            few = drawn(executor, 4, values, noise=noise[:4].contiguous())
            assert torch.equal(few[0], expected[0][:4])
    finally:
        extension.share_sampling(False)
        torch.set_num_threads(before)


def test_the_start_symbol_stands_where_nothing_predicts():
    program = programs.wavenet(8, 9, 17, 2, 1, 20, 4).program
    from dataclasses import replace

    draw = program.draws[0]
    late = replace(draw, reads=(replace(draw.reads[0], left=0, dx=-1),))
    buffers = tuple(replace(b, columns=max(b.columns, 2)) for b in program.buffers)
    executor = NativeExecutor(replace(program, draws=(late,), buffers=buffers))
    values = torch.linspace(-1, 1, 17)
    assert not executor.begin(3).has_parameters
    found = drawn(executor, 3, values, start=11)
    expected = stepped(executor, 3, values, start=11)
    assert found[0][:, 0, 0, 0].tolist() == [11] * 3
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_parameters_that_are_no_distribution_are_named(threads):
    executor = NativeExecutor(programs.plain(1, 8, 6, 4, 5).program)
    values = torch.linspace(-1, 1, 6, dtype=torch.float64)
    known = torch.zeros(5, 1, 4, 5, dtype=torch.int64)
    mask = torch.zeros_like(known, dtype=torch.bool)
    known[3, 0, 1, 2], mask[3, 0, 1, 2] = 5, True
    values[5] = 1e300  # infinite to a model in float32
    known[mask.logical_not()] = 0
    noise = torch.zeros(5, 1, 4, 5)  # draws the first symbol everywhere
    before = torch.get_num_threads()
    extension.share_sampling(threads > 1)
    torch.set_num_threads(threads)
    try:
        match = (
            "expected finite parameters, got NaN or infinity at image=3, channel=0, row=1, column=3"
        )
        with pytest.raises(NumericsError, match=match):
            drawn(executor, 5, values, noise=noise, known=known, known_mask=mask)
    finally:
        extension.share_sampling(False)
        torch.set_num_threads(before)


def test_uniforms_at_the_ends_give_the_first_and_last_possible_symbol():
    executor = NativeExecutor(programs.plain(1, 8, 6, 3, 3).program)
    values = torch.linspace(-1, 1, 6)
    low = drawn(executor, 2, values, noise=torch.zeros(2, 1, 3, 3))[0]
    high = drawn(executor, 2, values, noise=torch.full((2, 1, 3, 3), 1 - 2**-24))[0]
    assert low.unique().tolist() == [0]
    assert high.unique().tolist() == [5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature > 0"),
        ({"rows": 0}, "rows >= 1"),
        ({"start": 6}, "start < 6"),
        ({"noise": torch.zeros(2, 1, 3, 4)}, "contiguous noise"),
        ({"noise": torch.zeros(2, 1, 3, 3, dtype=torch.float64)}, "contiguous noise"),
        ({"known": torch.zeros(2, 1, 3, 4)}, "contiguous symbols"),
        ({"known_mask": torch.ones(2, 1, 3, 3)}, "contiguous known_mask"),
        ({"log_probs": torch.zeros(2)}, "contiguous log_probs"),
        (
            {
                "known": torch.full((2, 1, 3, 3), 6),
                "known_mask": torch.ones(2, 1, 3, 3, dtype=torch.bool),
            },
            "known symbols in 0 .. 5",
        ),
    ],
)
def test_bad_arguments_are_refused(change, message):
    executor = NativeExecutor(programs.plain(1, 8, 6, 3, 3).program)
    with pytest.raises(ValueError, match=message):
        drawn(executor, 2, torch.linspace(-1, 1, 6), **change)
