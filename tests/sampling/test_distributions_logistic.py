"""The discretized mixture of logistics: its numbers, its gradients, and that draws follow it."""

import itertools
import math

import mpmath
import pytest
import torch

from genfast.errors import InputError
from genfast.nn import (
    discretized_logistic_log_prob,
    logistic_mixture_log_prob,
    logistic_mixture_nll,
)
from genfast.sampling.distributions import LogisticMixture
from tests.sampling.test_distributions import p_value, uniforms


def stress(count, seed=0):
    """Bins with means in [-1, 1] and log-scales in [-7, 3]: the published formula errs by nats."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(0, 256, (count,), generator=generator)
    mean = torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1
    log_scale = torch.rand(count, generator=generator, dtype=torch.float64) * 10 - 7
    return level, mean.float().double(), log_scale.float().double()


def exact_log_prob(level, mean, log_scale, levels=256):
    """With 60 digits."""
    if 2 * level / (levels - 1) - 1 > mean:
        # The upper tail is the mirror image of the lower one, whose digits are not lost beside 1.
        level, mean = levels - 1 - level, -mean
    with mpmath.workdps(60):
        scale = mpmath.exp(mpmath.mpf(log_scale))
        x = 2 * mpmath.mpf(level) / (levels - 1) - 1
        half = mpmath.mpf(1) / (levels - 1)

        def cdf(at):
            return 1 / (1 + mpmath.exp(-(at - mpmath.mpf(mean)) / scale))

        upper = mpmath.mpf(1) if level == levels - 1 else cdf(x + half)
        lower = mpmath.mpf(0) if level == 0 else cdf(x - half)
        return float(mpmath.log(upper - lower))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_exact_to_the_last_digits_where_the_published_formula_is_not(dtype, bound):
    level, mean, log_scale = stress(400)
    rows = zip(level.tolist(), mean.tolist(), log_scale.tolist(), strict=True)
    expected = torch.tensor([exact_log_prob(*row) for row in rows], dtype=torch.float64)
    assert torch.isfinite(expected).all()
    found = discretized_logistic_log_prob(level, mean.to(dtype), log_scale.to(dtype)).double()
    # Where log P is nearly 0 the error counts absolutely: nothing is relative to zero.
    error = (found - expected).abs() / expected.abs().clamp(min=0.1)
    assert error.max() < bound
    published = discretized_logistic_log_prob(level, mean, log_scale, formula="reference")
    assert (published - expected).abs().max() > 0.1


def test_reference_formula_is_the_published_one():
    level, mean, log_scale = stress(500, seed=1)
    x = 2 * level.double() / 255 - 1
    plus = torch.sigmoid((x - mean + 1 / 255) * torch.exp(-log_scale))
    minus = torch.sigmoid((x - mean - 1 / 255) * torch.exp(-log_scale))
    middle = (x - mean) * torch.exp(-log_scale)
    density = middle - log_scale - 2 * torch.nn.functional.softplus(middle) - math.log(127.5)
    expected = torch.where(plus - minus > 1e-5, torch.log((plus - minus).clamp(min=1e-12)), density)
    expected = torch.where(x > 0.999, torch.log1p(-minus), expected)
    expected = torch.where(x < -0.999, torch.log(plus), expected)
    found = discretized_logistic_log_prob(level, mean, log_scale, formula="reference")
    far = torch.isinf(expected)  # log(1 - 1) of the published edge
    torch.testing.assert_close(found[~far], expected[~far], rtol=1e-6, atol=1e-6)
    assert far.double().mean() < 0.02


@pytest.mark.parametrize("levels", [2, 3, 256, 65536])
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, -2.0, 0.0, 5.0, 30.0])
def test_the_bins_share_all_probability(levels, log_scale):
    for mean in (-1.7, -0.3, 0.0, 0.9999):
        log_prob = discretized_logistic_log_prob(
            torch.arange(levels), torch.tensor(mean, dtype=torch.float64),
            torch.tensor(log_scale, dtype=torch.float64), levels=levels,
        )  # fmt: skip
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_symmetric_under_reflection():
    level, mean, log_scale = stress(200, seed=2)
    one = discretized_logistic_log_prob(level, mean, log_scale)
    other = discretized_logistic_log_prob(255 - level, -mean, log_scale)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_finite_with_finite_gradients_far_out(dtype):
    mean = torch.tensor([-1e4, -3.0, 0.0, 0.5, 1e4])
    log_scale = torch.tensor([-30.0, -7.0, 0.0, 12.0, 30.0])
    grid = torch.cartesian_prod(mean, log_scale).to(dtype)
    parameters = torch.cat((torch.zeros(25, 1, dtype=dtype), grid), dim=1).requires_grad_()
    for level in (0, 1, 128, 255):
        nll = logistic_mixture_nll(parameters, torch.full((25, 1), level), lowest_log_scale=-30.0)
        (gradient,) = torch.autograd.grad(nll.sum(), parameters)
        assert torch.isfinite(nll).all()
        assert torch.isfinite(gradient).all() or dtype == torch.float16
        assert not torch.isnan(gradient).any()


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(3)
    parameters = torch.randn(2, 20, 2, generator=generator, dtype=torch.float64)
    level = torch.randint(0, 8, (2, 3, 2), generator=generator)
    assert torch.autograd.gradcheck(
        lambda p: logistic_mixture_nll(p, level, levels=8), parameters.requires_grad_()
    )


def by_hand(parameters, pixel, levels, mixtures):
    """Probability of an RGB pixel, component by component, from the published order."""
    logits = parameters[:mixtures]
    weights = [math.exp(a) / sum(math.exp(b) for b in logits) for a in logits]
    x = [2 * k / (levels - 1) - 1 for k in pixel]
    total = 0.0
    for m in range(mixtures):
        part = [parameters[mixtures + c * 3 * mixtures :] for c in range(3)]
        mean = [part[c][m] for c in range(3)]
        scale = [math.exp(max(part[c][mixtures + m], -7)) for c in range(3)]
        tanh = [math.tanh(part[c][2 * mixtures + m]) for c in range(3)]
        mean[1] += tanh[0] * x[0]
        mean[2] += tanh[1] * x[0] + tanh[2] * x[1]
        probability = 1.0
        for c in range(3):
            at = [(x[c] + sign / (levels - 1) - mean[c]) / scale[c] for sign in (1, -1)]
            upper = 1.0 if pixel[c] == levels - 1 else 1 / (1 + math.exp(-at[0]))
            lower = 0.0 if pixel[c] == 0 else 1 / (1 + math.exp(-at[1]))
            probability *= upper - lower
        total += weights[m] * probability
    return total


def test_colours_of_a_pixel_in_the_published_order():
    levels, mixtures = 4, 3
    generator = torch.Generator().manual_seed(4)
    parameters = torch.randn(10 * mixtures, generator=generator, dtype=torch.float64)
    pixels = torch.tensor(list(itertools.product(range(levels), repeat=3)))
    found = logistic_mixture_log_prob(parameters.expand(64, -1), pixels, levels=levels).exp()
    expected = [by_hand(parameters.tolist(), pixel, levels, mixtures) for pixel in pixels.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    distribution = LogisticMixture(levels, mixtures)
    torch.testing.assert_close(
        distribution.log_prob(parameters.expand(64, -1).float(), pixels).exp(), found,
        rtol=1e-5, atol=1e-7,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_of_three_colours_are_as_frequent_as_their_probabilities(temperature):
    levels, mixtures, n = 3, 2, 40_000
    generator = torch.Generator().manual_seed(5)
    parameters = torch.randn(10 * mixtures, generator=generator, dtype=torch.float64)
    distribution = LogisticMixture(levels, mixtures)
    drawn = distribution.draw(
        parameters.expand(n, -1), torch.rand(n, 4, generator=generator), temperature
    )
    assert drawn.dtype == torch.uint8
    index = (drawn.long() * torch.tensor([9, 3, 1])).sum(dim=1)
    pixels = torch.tensor(list(itertools.product(range(levels), repeat=3)))
    tempered = parameters.clone()
    tempered[:mixtures] /= temperature
    for colour in range(3):
        first = mixtures + colour * 3 * mixtures + mixtures
        tempered[first : first + mixtures] += math.log(temperature)
    expected = distribution.log_prob(tempered.expand(27, -1), pixels).exp()
    assert p_value(index, expected) > 1e-3
    if temperature != 1.0:
        plain = distribution.log_prob(parameters.expand(27, -1), pixels).exp()
        assert p_value(index, plain) < 1e-6


def test_draws_of_one_colour_are_as_frequent_as_their_probabilities():
    levels, mixtures, n = 16, 3, 30_000
    parameters = torch.tensor(
        [[0.5, -1.0, 0.0, -0.8, 0.4, 1.2, -3.0, -1.0, -2.0]], dtype=torch.float64
    )
    distribution = LogisticMixture(levels, mixtures, colours=1)
    drawn = distribution.draw(parameters.expand(n, -1), uniforms(n, 2, seed=6))
    expected = distribution.log_prob(parameters.expand(levels, -1), torch.arange(levels)[:, None])
    assert p_value(drawn[:, 0].long(), expected.exp()) > 1e-3


def test_the_ends_of_the_uniforms_give_the_outermost_levels():
    distribution = LogisticMixture(256, 1, colours=1)
    parameters = torch.tensor([[0.0, 0.0, 0.0]]).expand(2, 3)
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])
    assert distribution.draw(parameters, ends).tolist() == [[0], [255]]


def test_a_mean_far_outside_and_a_tiny_scale_give_the_edge():
    distribution = LogisticMixture(256, 1, colours=1)
    parameters = torch.tensor([[0.0, 50.0, -40.0], [0.0, -50.0, -40.0]])
    assert distribution.draw(parameters, torch.full((2, 2), 0.5)).tolist() == [[255], [0]]


@pytest.mark.parametrize(
    ("parameters", "symbols", "options", "message"),
    [
        ((2, 6, 4), (2, 2, 4), {}, r"levels \[N, 1, \.\.\.\]"),
        ((2, 7, 4), (2, 1, 4), {}, r"3 \* mixtures"),
        ((2, 6, 5), (2, 1, 4), {}, r"beside levels \[2, 1, 4\]"),
        ((2, 0, 4), (2, 1, 4), {}, "mixtures"),
        ((2, 6, 4), (2, 1, 4), {"formula": "fast"}, "formula in"),
        ((2, 6, 4), (2, 1, 4), {"levels": 1}, "an integer in 2"),
    ],
)
def test_refuses_what_does_not_fit(parameters, symbols, options, message):
    with pytest.raises(InputError, match=message):
        logistic_mixture_nll(
            torch.zeros(parameters), torch.zeros(symbols, dtype=torch.int64), **options
        )
    with pytest.raises(InputError, match="integer levels"):
        logistic_mixture_nll(torch.zeros(2, 6), torch.zeros(2, 1))
