"""Programs that draw from every distribution the engine knows, and the same draws in Python."""

from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from genfast import _C as extension
from genfast.ops import philox_uniform
from genfast.sampling.distributions import Bernoulli, Categorical, Gaussian, LogisticMixture
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


@contextmanager
def running_on(threads, share=False):
    """So many threads, with work for each of them however little there is."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        extension.share_sampling(share)
        yield
    finally:
        extension.share_sampling(False)
        torch.set_num_threads(before)


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
