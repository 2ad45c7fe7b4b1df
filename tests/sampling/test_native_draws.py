"""The engine's draws from every distribution it knows, against the distribution's own `draw`."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import genfast
from genfast import _C as extension
from genfast.errors import InputError, NumericsError
from genfast.ops import philox_uniform
from genfast.sampling import sample_naive
from genfast.sampling.distributions import Bernoulli, Categorical, Gaussian, LogisticMixture
from genfast.sampling.native import NativeExecutor
from genfast.sampling.program import Buffer, Draw, Program, Read, Table
from tests.sampling import programs

CPU = torch.device("cpu")


def table(levels, encoded, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(levels, encoded, generator=generator, dtype=torch.float64)


# name: the distribution, and the colours of a pixel.
DRAWN = {
    "categorical": (Categorical(7, table(7, 2), start=3), 2),
    "bernoulli": (Bernoulli("signed", start=1), 1),
    "bernoulli rgb": (Bernoulli(table(2, 3)), 3),
    "mixture grey": (LogisticMixture(256, 5, 1), 1),
    "mixture of one": (LogisticMixture(2, 1, 1, values=None, start=1), 2),
    "mixture rgb": (LogisticMixture(256, 10), 3),
    "mixture of many levels": (LogisticMixture(65536, 3, values="unit"), 3),
    "mixture of three levels": (LogisticMixture(3, 17, values=table(3, 2)), 3),
    "mixture of six colours": (LogisticMixture(32, 2, lowest_log_scale=-2.5), 6),
    "gaussian": (Gaussian(start=-0.5), 1),
    "gaussian rgb": (Gaussian("log_variance"), 3),
}


@pytest.fixture(params=DRAWN)
def case(request):
    return DRAWN[request.param]


@pytest.fixture
def sharing():
    threads = torch.get_num_threads()
    yield extension.share_sampling
    extension.share_sampling(False)
    torch.set_num_threads(threads)


def count_of(distribution):
    """Symbols drawn together."""
    return getattr(distribution, "colours", 1)


def parameter_count(distribution):
    """Parameters of symbols drawn together."""
    if isinstance(distribution, LogisticMixture):
        return (10 if distribution.colours == 3 else 3) * distribution.mixtures
    return {Bernoulli: 1, Gaussian: 2}.get(type(distribution)) or distribution.levels


def given_parameters(distribution, colours, dtype, height=3, width=4, **bounds):
    """A program without a model: the parameters are the numbers of its one condition table."""
    count, per = count_of(distribution), parameter_count(distribution)
    groups = colours // count
    encoded = distribution.encoded
    draws = tuple(
        Draw(group * count, count, (Read(0, group * per, 1, per, table=True, **bounds),))
        for group in range(groups)
    )
    seen = Buffer("x", colours * encoded, height, width, 1, width)
    given = Table("parameters", groups * per, height, width, None, 0)
    return Program(colours, encoded, height, width, width, dtype, CPU, (seen,), (given,), (), draws)


def convolved(distribution, colours, dtype, height=4, width=5, seed=0):
    """A program whose parameters are a masked convolution of what is drawn."""
    count, per = count_of(distribution), parameter_count(distribution)
    groups, features = colours // count, colours * distribution.encoded
    conv = programs.settled(nn.Conv2d(features, groups * per, (2, 3)), seed, dtype)
    if distribution.dtype is None:
        conv.weight *= 0.2  # differences of rounding fade instead of growing
    make = programs.Maker(height, width, width, dtype)
    x, out = make.buffer(features, rows=2), make.buffer(groups * per, columns=1)
    offsets = [(0, 0, -1, -1), (0, 1, -1, 0), (0, 2, -1, 1), (1, 0, 0, -1)]
    make.conv(x, conv, offsets, out, False)
    draws = tuple(
        Draw(group * count, count, (Read(out, group * per, 1, per),)) for group in range(groups)
    )
    plain = make.program(out, per)
    return replace(plain, colours=colours, encoded=distribution.encoded, draws=draws)


def noise_of(program, distribution, n, seed=0):
    channels = program.colours // count_of(distribution) * distribution.noise_per_draw
    return philox_uniform((n, channels, program.height, program.width), seed=seed)


def empty(program, distribution, n):
    dtype = program.dtype if distribution.dtype is None else torch.int32
    return torch.full((n, program.colours, program.height, program.width), -1, dtype=dtype)


def drawn(executor, distribution, n, conditions=(), *, noise=None, seed=0, symbols=None, **options):
    """Everything from `sample`: symbols and log-probabilities."""
    program = executor.program
    noise = noise_of(program, distribution, n, seed) if noise is None else noise
    symbols = empty(program, distribution, n) if symbols is None else symbols.clone()
    log_probs = torch.zeros(n, dtype=torch.float64)
    run = executor.begin(n, conditions)
    while not run.done:
        run.sample(distribution, noise, symbols, log_probs=log_probs, **options)
    return symbols, log_probs


def stepped(
    executor, distribution, n, conditions=(), *, seed=0, temperature=1.0, symbols=None, mask=None
):
    """The same by the general protocol and the distribution's own methods."""
    program = executor.program
    noise = noise_of(program, distribution, n, seed)
    per_draw = distribution.noise_per_draw
    symbols = empty(program, distribution, n) if symbols is None else symbols.clone()
    mask = torch.zeros(symbols.shape, dtype=torch.bool) if mask is None else mask
    log_probs = torch.zeros(n, dtype=torch.float64)
    run = executor.begin(n, conditions)
    while not run.done:
        number, row, column = run.position
        draw = program.draws[number]
        site = (slice(None), slice(draw.first, draw.first + draw.count), row, column)
        parameters = run.parameters()
        new = torch.full_like(symbols[site], distribution.start)
        if run.has_parameters:
            uniforms = noise[:, number * per_draw : (number + 1) * per_draw, row, column]
            new = distribution.draw(parameters, uniforms, temperature).to(symbols.dtype)
        symbols[site] = torch.where(mask[site], symbols[site], new)
        if run.has_parameters:
            terms = distribution.log_prob(parameters, symbols[site])
            log_probs += terms.masked_fill(mask[site].all(dim=1), 0)
        run.supply(distribution.encode(symbols[site]))
    return symbols, log_probs


def agree(found, expected):
    if found[0].is_floating_point():
        # Two libraries' cosines: the last digit.
        precision = 1e-12 if found[0].dtype == torch.float64 else 1e-6
        torch.testing.assert_close(found[0], expected[0], rtol=precision, atol=precision)
    else:
        assert torch.equal(found[0], expected[0])
    precision = 1e-6 if found[0].dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found[1], expected[1], rtol=precision, atol=precision)


def wild(program, n, seed):
    """Parameters of a condition table, some of them of the size of hundreds."""
    generator = torch.Generator().manual_seed(seed)
    size = (n, program.height, program.width, program.tables[0].features)
    spread = torch.exp(3 * torch.randn(size[:3], generator=generator, dtype=torch.float64))
    numbers = torch.randn(size, generator=generator, dtype=torch.float64) * spread[..., None]
    # A scale of exp(700) is beyond float32, and not what is tested here.
    return [numbers.clamp(-60, 60).to(program.dtype)]


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


def test_threads_splits_and_simd_levels_give_the_same_bits(case, sharing):
    distribution, colours = case
    executor = NativeExecutor(convolved(distribution, colours, torch.float32, seed=1))
    noise = noise_of(executor.program, distribution, 19, seed=3)
    torch.set_num_threads(1)
    expected = drawn(executor, distribution, 19, noise=noise, temperature=0.8)
    for threads, share in [(2, False), (3, True), (8, True)]:
        torch.set_num_threads(threads)
        sharing(share)
        found = drawn(executor, distribution, 19, noise=noise, temperature=0.8, rows=3)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        part = noise[5:9].contiguous()
        few = drawn(executor, distribution, 4, noise=part, temperature=0.8)
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


NO_DISTRIBUTION = [
    ("categorical", 3, torch.nan),
    ("categorical", 0, torch.inf),
    ("bernoulli", 0, torch.nan),
    ("mixture rgb", 9, torch.nan),  # a logit
    ("mixture rgb", 4, torch.inf),
    ("mixture rgb", slice(0, 10), -torch.inf),
    ("mixture rgb", 99, torch.nan),  # the last coefficient, whichever component is drawn
    ("mixture grey", slice(5, 15), -torch.inf),  # a mean of -inf, and then scales of infinity
    ("gaussian", 0, torch.nan),
    ("gaussian", 1, torch.nan),
    ("gaussian", 0, torch.inf),
    ("gaussian", 1, torch.inf),
]


@pytest.mark.parametrize(("name", "where", "bad"), NO_DISTRIBUTION)
@pytest.mark.parametrize("threads", [1, 3])
def test_parameters_that_are_no_distribution_are_named(name, where, bad, threads, sharing):
    distribution, colours = DRAWN[name]
    program = given_parameters(distribution, colours, torch.float32)
    executor = NativeExecutor(program)
    given = torch.zeros(9, 3, 4, program.tables[0].features)
    given[4, 1, 2, where] = bad
    given[2, 2, 0, where] = bad  # later
    if name == "mixture grey":
        given[:, :, :, 10:15] = torch.inf
    noise = torch.full_like(noise_of(program, distribution, 9), 0.75)
    torch.set_num_threads(threads)
    sharing(threads > 1)
    match = "got NaN or infinity at image=4, channel=0, row=1, column=2"
    with pytest.raises(NumericsError, match=match):
        drawn(executor, distribution, 9, [given], noise=noise, rows=3)


def test_infinite_parameters_that_are_a_distribution():
    distribution = LogisticMixture(16, 2, 1)
    program = given_parameters(distribution, 1, torch.float64, height=1, width=6)
    executor = NativeExecutor(program)
    inf = torch.inf
    rows = [
        [0, -inf, 0.3, 0.9, -1, -1],  # a component that is never drawn
        [-inf, 0, inf, 0.1, -1, -2],
        [0, 0, inf, inf, -1, -1],  # means far above, far below
        [0, 0, -inf, -inf, 0, 0],
        [0, 0, 0.2, 0.2, -inf, -inf],  # scales at the lowest
        [0, 0, 0.2, 0.2, inf, inf],
    ]
    given = [torch.tensor(rows, dtype=torch.float64).expand(50, 1, 6, 6).contiguous()]
    found = drawn(executor, distribution, 50, given)[0]
    assert torch.equal(found, stepped(executor, distribution, 50, given)[0])
    assert found[:, 0, 0, 2].unique().tolist() == [15]
    assert found[:, 0, 0, 3].unique().tolist() == [0]
    assert found[:, 0, 0, 4].unique().tolist() == [9]
    assert found[:, 0, 0, 5].unique().tolist() == [0, 15]


@pytest.mark.parametrize(
    ("distribution", "change", "error", "message"),
    [
        (LogisticMixture(8, 2), {"noise": torch.zeros(2, 3, 3, 4)}, ValueError, "contiguous noise"),
        (LogisticMixture(8, 3), {}, RuntimeError, "draws of 3 symbols from 30 parameters"),
        (LogisticMixture(8, 2, 1), {"noise": torch.zeros(2, 6, 3, 4)}, RuntimeError, "6 param"),
        (LogisticMixture(8, 2, values=table(8, 2)), {}, ValueError, "contiguous values"),
        (LogisticMixture(8, 2), {"symbols": torch.zeros(2, 3, 3, 4)}, ValueError, "symbols"),
        (LogisticMixture(8, 2), {"known_mask": True}, ValueError, r"known symbols in 0 \.\. 7"),
        (Gaussian(), {"noise": torch.zeros(2, 6, 3, 4)}, ValueError, "contiguous symbols"),
        (LogisticMixture(8, 2), {"temperature": float("nan")}, ValueError, "temperature > 0"),
        (genfast.CustomDistribution(lambda p, u: u), {}, InputError, "that the engine draws from"),
    ],
)
def test_what_does_not_fit_is_refused(distribution, change, error, message):
    fitting = LogisticMixture(8, 2)
    program = given_parameters(fitting, 3, torch.float32)
    options = {"noise": noise_of(program, fitting, 2), "symbols": empty(program, fitting, 2)}
    if change.get("known_mask"):
        change = {"known_mask": torch.ones(2, 3, 3, 4, dtype=torch.bool)}
    with pytest.raises(error, match=message):
        drawn(NativeExecutor(program), distribution, 2, wild(program, 2, 0), **options | change)


@pytest.mark.parametrize(
    "make",
    [
        lambda: extension.SamplingDrawRule.categorical(0),
        lambda: extension.SamplingDrawRule.logistic_mixture(1, 2, 3, -7.0),
        lambda: extension.SamplingDrawRule.logistic_mixture(8, 0, 3, -7.0),
        lambda: extension.SamplingDrawRule.logistic_mixture(8, 1, 2, -7.0),
        lambda: extension.SamplingDrawRule.gaussian("variance"),
    ],
)
def test_descriptions_that_are_none_are_refused(make):
    with pytest.raises(ValueError, match="sampling: expected"):
        make()


class Net(nn.Module):
    """A masked convolution of 3 x 3."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        with torch.no_grad():
            self.conv.weight[:, :, 1, 1:] = 0
            self.conv.weight[:, :, 2] = 0

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize(
    ("distribution", "shape", "outputs"),
    [
        (Bernoulli(), (1, 4, 5), 1),
        (LogisticMixture(256, 4), (3, 4, 5), 40),
        (LogisticMixture(9, 2, 1), (1, 4, 5), 6),
        (Gaussian("std"), (1, 4, 5), 2),
        (Categorical(5, "unit"), (1, 4, 5), 5),
    ],
    ids=repr,
)
def test_a_sampler_lets_the_engine_draw(distribution, shape, outputs, monkeypatch):
    from genfast.sampling.native import NativeRun

    torch.manual_seed(4)
    model = Net(shape[0], outputs).double()
    if isinstance(distribution, Gaussian):
        model.conv.weight.data[1], model.conv.bias.data[1] = 0, 0.7  # a scale above 0
    sampler = genfast.compile_sampler(model, shape, distribution, executor="native")
    expected = sample_naive(
        model, 7, seed=5, temperature=0.9, event_shape=shape, distribution=distribution,
        return_log_prob=True,
    )  # fmt: skip

    def parameters(run):
        raise AssertionError("Python between two pixels")

    monkeypatch.setattr(NativeRun, "parameters", parameters)
    found = sampler.sample(7, seed=5, temperature=0.9, return_log_prob=True)
    assert found[0].dtype == expected[0].dtype
    agree(found, expected)
    # Half of a pixel's colours may be known.
    mask = torch.rand(7, *shape, generator=torch.Generator().manual_seed(0)) < 0.5
    options = {"seed": 6, "known": found[0], "known_mask": mask}
    again = sampler.sample(7, **options)
    same = sample_naive(model, 7, event_shape=shape, distribution=distribution, **options)
    torch.testing.assert_close(again, same, rtol=1e-9, atol=1e-9)


class Last(Categorical):
    """Draws in its own way."""

    def draw(self, parameters, uniforms, temperature=1.0, top_k=None, top_p=None):
        return torch.full((len(parameters), 1), self.levels - 1, dtype=self.dtype)


def test_a_derived_distribution_draws_in_its_own_way():
    torch.manual_seed(4)
    sampler = genfast.compile_sampler(Net(1, 5), (1, 3, 4), Last(5, "unit"), executor="native")
    assert sampler.sample(3, seed=0).unique().tolist() == [4]
