"""Where the engine's draws end: no distribution, no fitting argument, no call from the sampler."""

import pytest
import torch
from torch import nn

import genfast
from genfast import _C as extension
from genfast.errors import InputError, NumericsError
from genfast.sampling import sample_naive
from genfast.sampling.distributions import Bernoulli, Categorical, Gaussian, LogisticMixture
from genfast.sampling.run.native import NativeExecutor, NativeRun
from tests.sampling.drawing import (
    DRAWN,
    agree,
    drawn,
    empty,
    given_parameters,
    noise_of,
    running_on,
    stepped,
    table,
    wild,
)

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
def test_parameters_that_are_no_distribution_are_named(name, where, bad, threads):
    distribution, colours = DRAWN[name]
    program = given_parameters(distribution, colours, torch.float32)
    executor = NativeExecutor(program)
    given = torch.zeros(9, 3, 4, program.tables[0].features)
    given[4, 1, 2, where] = bad
    given[2, 2, 0, where] = bad  # later
    if name == "mixture grey":
        given[:, :, :, 10:15] = torch.inf
    noise = torch.full_like(noise_of(program, distribution, 9), 0.75)
    match = "got NaN or infinity at image=4, channel=0, row=1, column=2"
    with running_on(threads, threads > 1), pytest.raises(NumericsError, match=match):
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
