"""Distributions: layouts, draws against probabilities, what the model sees, refusals."""

import math

import pytest
import torch
from scipy import stats

from genfast.errors import InputError
from genfast.sampling.distributions import (
    Bernoulli,
    Categorical,
    CustomDistribution,
    Distribution,
    Gaussian,
    LogisticMixture,
)
from genfast.sampling.distributions.categorical import truncate

ALL = [
    Categorical(5),
    Bernoulli(),
    LogisticMixture(8, mixtures=2, colours=1),
    LogisticMixture(8, mixtures=2, colours=3),
    Gaussian(),
    CustomDistribution(lambda parameters, uniforms: parameters[:, 0] + uniforms[:, 0]),
]


def uniforms(n, count, seed=0):
    """Stratified, so that fewer draws tell as much."""
    generator = torch.Generator().manual_seed(seed)
    columns = [
        (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        for _ in range(count)
    ]
    return torch.stack(columns, dim=1).clamp(max=1 - 2**-24)


def p_value(drawn, probabilities):
    """Chi-square of drawn indices against probabilities; rare cells are joined."""
    expected = probabilities * len(drawn)
    observed = torch.bincount(drawn, minlength=len(expected)).double()
    rare = expected < 5
    observed = torch.cat((observed[~rare], observed[rare].sum()[None]))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    used = expected > 0
    assert observed[~used].sum() == 0
    statistic = ((observed - expected)[used].square() / expected[used]).sum()
    return stats.chi2.sf(statistic.item(), max(int(used.sum()) - 1, 1))


@pytest.mark.parametrize("distribution", ALL, ids=repr)
def test_each_is_a_distribution(distribution):
    assert isinstance(distribution, Distribution)
    assert distribution.encoded >= 1


@pytest.mark.parametrize(
    ("sizes", "colours", "layout", "expected"),
    [
        ((4,), 1, None, [[0, 1, 2, 3]]),
        ((4, 1), 1, None, [[0, 1, 2, 3]]),
        ((1, 4), 1, None, [[0, 1, 2, 3]]),
        ((4, 2), 2, None, [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ((2, 4), 2, None, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ((2, 1, 4), 2, None, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ((8,), 2, "KC", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ((8,), 2, "CK", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ((2, 4), 2, "CK", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ],
)
def test_categorical_finds_its_logits(sizes, colours, layout, expected):
    draws = Categorical(4, layout=layout).draws(sizes, colours)
    assert draws == [(colour, 1, features) for colour, features in enumerate(expected)]


def test_as_many_levels_as_colours_needs_a_layout():
    with pytest.raises(InputError, match="layout='KC'"):
        Categorical(3).draws((3, 3), 3)
    assert Categorical(3, layout="KC").draws((3, 3), 3)[1] == (1, 1, [1, 4, 7])
    assert Categorical(3, layout="CK").draws((3, 3), 3)[1] == (1, 1, [3, 4, 5])


@pytest.mark.parametrize(
    ("distribution", "sizes", "colours", "expected"),
    [
        (Bernoulli(), (), 1, [(0, 1, [0])]),
        (Bernoulli(), (1,), 1, [(0, 1, [0])]),
        (Bernoulli(), (3,), 3, [(0, 1, [0]), (1, 1, [1]), (2, 1, [2])]),
        (Bernoulli(), (1, 3), 3, [(0, 1, [0]), (1, 1, [1]), (2, 1, [2])]),
        (Gaussian(), (2,), 1, [(0, 1, [0, 1])]),
        (Gaussian(), (2, 3), 3, [(0, 1, [0, 3]), (1, 1, [1, 4]), (2, 1, [2, 5])]),
        (Gaussian(layout="CK"), (4,), 2, [(0, 1, [0, 1]), (1, 1, [2, 3])]),
        (LogisticMixture(8, 2), (20,), 3, [(0, 3, list(range(20)))]),
        (LogisticMixture(8, 2), (20, 1), 3, [(0, 3, list(range(20)))]),
        (LogisticMixture(8, 1, colours=1), (3, 2), 2, [(0, 1, [0, 2, 4]), (1, 1, [1, 3, 5])]),
        (CustomDistribution(abs, each_colour=False), (2, 3), 2, [(0, 2, list(range(6)))]),
        (CustomDistribution(abs), (2, 3), 2, [(0, 1, [0, 1, 2]), (1, 1, [3, 4, 5])]),
    ],
)
def test_the_others_find_their_parameters(distribution, sizes, colours, expected):
    assert distribution.draws(sizes, colours) == expected


@pytest.mark.parametrize(
    ("distribution", "sizes", "colours", "message"),
    [
        (Categorical(4), (5,), 1, r"4 parameters for each of 1 colours.*axes \(5,\)"),
        (Categorical(4), (4, 2), 3, r"3 colours.*axes \(4, 2\)"),
        (Categorical(4, layout="KC"), (2, 4), 2, "layout='KC'"),
        (Categorical(4), (8,), 2, "layout='KC'"),
        (Bernoulli(), (2,), 1, r"axes \(2,\)"),
        (LogisticMixture(8, 2), (6,), 1, "pixels of 3 colours"),
        (LogisticMixture(8, 2), (19,), 3, r"20 parameters.*axes \(19,\)"),
        (LogisticMixture(8, 2, colours=1), (7,), 1, r"6 parameters"),
        (Gaussian(), (3,), 1, "2 parameters"),
        (CustomDistribution(abs), (5,), 2, "each of 2 colours"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(distribution, sizes, colours, message):
    with pytest.raises(InputError, match=message):
        distribution.draws(sizes, colours)


@pytest.mark.parametrize(
    ("values", "levels", "symbol", "seen"),
    [
        (None, 256, 7, [7]),
        ("unit", 256, 255, [1.0]),
        ("signed", 256, 0, [-1.0]),
        ("signed", 3, 1, [0.0]),
        (torch.tensor([3.5, -1.0]), 2, 1, [-1.0]),
        (torch.eye(4), 4, 2, [0, 0, 1, 0]),
        (torch.arange(10, 14), 4, 3, [13]),
        (None, 70_000, 69_999, [69_999]),
    ],
)
def test_what_the_model_sees(values, levels, symbol, seen):
    distribution = Categorical(levels, values)
    assert distribution.encoded == len(seen)
    encoded = distribution.encode(torch.tensor([[symbol, 0], [0, symbol]]))
    assert encoded.shape == (2, 2 * len(seen))
    assert encoded[0, : len(seen)].tolist() == seen
    assert encoded[1, len(seen) :].tolist() == seen
    whole = values is None or (isinstance(values, torch.Tensor) and values.dtype == torch.int64)
    assert encoded.dtype == (torch.int64 if whole else torch.float64)


def test_symbols_are_as_small_as_they_can_be():
    assert Categorical(256).dtype == torch.uint8
    assert Categorical(257).dtype == torch.int32
    assert LogisticMixture(65536, 2, 1).dtype == torch.int32
    assert Bernoulli().dtype == torch.uint8
    assert Gaussian().dtype is None


def test_categorical_draws_as_often_as_its_logits_say():
    logits = torch.randn(9, generator=torch.Generator().manual_seed(1)) * 2
    n = 30_000
    drawn = Categorical(9).draw(logits.expand(n, 9), torch.rand(n, 1))
    assert drawn.shape == (n, 1)
    assert p_value(drawn[:, 0].long(), logits.double().softmax(0)) > 1e-3
    warm = Categorical(9).draw(logits.expand(n, 9), torch.rand(n, 1), temperature=2.0)
    assert p_value(warm[:, 0].long(), (logits.double() / 2).softmax(0)) > 1e-3
    assert p_value(warm[:, 0].long(), logits.double().softmax(0)) < 1e-6


def brute_truncation(logits, top_k, top_p):
    """Kept levels, by sorting in plain Python."""
    order = sorted(range(len(logits)), key=lambda k: -logits[k])
    if top_k is not None:
        lowest = logits[order[min(top_k, len(order)) - 1]]
        order = [k for k in order if logits[k] >= lowest]
    total = sum(math.exp(logits[k]) for k in order)
    if top_p is None:
        return set(order)
    kept, reached = set(), 0.0
    for k in order:
        if reached >= top_p and kept:
            break
        kept.add(k)
        reached += math.exp(logits[k]) / total
    return kept


@pytest.mark.parametrize("top_k", [None, 1, 3, 50])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.4, 0.9, 1.0])
def test_truncation_against_sorting_in_python(top_k, top_p):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(40, 11, generator=generator, dtype=torch.float64) * 3
    cut = truncate(logits, top_k, top_p)
    for row, original in zip(cut, logits, strict=True):
        kept = brute_truncation(original.tolist(), top_k, top_p)
        assert set(torch.isfinite(row).nonzero()[:, 0].tolist()) == kept
        assert torch.equal(row[torch.isfinite(row)], original[torch.isfinite(row)])


def test_truncated_draws_stay_within_and_keep_their_proportions():
    logits = torch.tensor([2.0, 0.5, 1.5, -1.0, 0.0])
    n = 20_000
    drawn = Categorical(5).draw(logits.expand(n, 5), torch.rand(n, 1), top_k=3)[:, 0].long()
    expected = truncate(logits[None].double(), 3, None).softmax(1)[0]
    assert set(drawn.tolist()) == {0, 1, 2}
    assert p_value(drawn, expected) > 1e-3


def test_levels_tied_at_the_cut_all_stay():
    cut = truncate(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), 2, None)
    assert torch.isfinite(cut).tolist() == [[True, True, True, False]]


def test_categorical_log_prob_and_impossible_levels():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    distribution = Categorical(3)
    got = [distribution.log_prob(logits, torch.tensor([[k]])).item() for k in range(3)]
    total = math.log(1 + math.e)
    assert got == pytest.approx([-total, -math.inf, 1 - total])


def test_bernoulli_is_a_categorical_of_two():
    n = 5000
    logits = torch.randn(n, 1, dtype=torch.float64) * 3
    noise = torch.rand(n, 1)
    pairs = torch.cat((torch.zeros_like(logits), logits), dim=1)
    for temperature in (1.0, 0.5):
        one = Bernoulli().draw(logits, noise, temperature)
        assert torch.equal(one, Categorical(2).draw(pairs, noise, temperature))
    torch.testing.assert_close(
        Bernoulli().log_prob(logits, one), Categorical(2).log_prob(pairs, one)
    )
    certain = torch.tensor([[200.0], [-200.0]])
    assert Bernoulli().draw(certain, torch.full((2, 1), 0.5)).tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("scale", "parameter"),
    [("log_std", math.log(2.5)), ("std", 2.5), ("log_variance", 2 * math.log(2.5))],
)
def test_gaussian_draws_and_densities(scale, parameter):
    n = 20_000
    parameters = torch.tensor([[1.5, parameter]], dtype=torch.float64).expand(n, 2)
    distribution = Gaussian(scale)
    drawn = distribution.draw(parameters, torch.rand(n, 2))
    assert drawn.dtype == torch.float64
    assert stats.kstest(drawn[:, 0].numpy(), stats.norm(1.5, 2.5).cdf).pvalue > 1e-3
    cold = distribution.draw(parameters, torch.rand(n, 2), temperature=0.5)
    assert stats.kstest(cold[:, 0].numpy(), stats.norm(1.5, 1.25).cdf).pvalue > 1e-3
    x = torch.linspace(-20, 20, n, dtype=torch.float64)[:, None]
    expected = torch.distributions.Normal(1.5, 2.5).log_prob(x[:, 0])
    torch.testing.assert_close(distribution.log_prob(parameters, x), expected)


def test_gaussian_noise_is_finite_at_the_ends_of_the_uniforms():
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24], [0.0, 0.5]])
    drawn = Gaussian().draw(torch.zeros(3, 2), ends)
    assert torch.isfinite(drawn).all()
    assert drawn.abs().max() < 6


def test_custom_distribution_runs_the_users_function():
    def laplace(parameters, noise):
        centred = noise[:, :1] - 0.5
        tail = torch.sign(centred) * torch.log1p(-2 * centred.abs())
        return parameters[:, :1] - parameters[:, 1:] * tail

    distribution = CustomDistribution(
        laplace,
        log_prob=lambda p, x: -(x - p[:, :1]).abs()[:, 0] / p[:, 1] - torch.log(2 * p[:, 1]),
    )
    n = 20_000
    parameters = torch.tensor([[1.0, 0.5]], dtype=torch.float64).expand(n, 2)
    drawn = distribution.draw(parameters, torch.rand(n, 1))
    assert stats.kstest(drawn[:, 0].numpy(), stats.laplace(1.0, 0.5).cdf).pvalue > 1e-3
    expected = torch.distributions.Laplace(1.0, 0.5).log_prob(drawn[:, 0])
    torch.testing.assert_close(distribution.log_prob(parameters, drawn), expected)


def test_custom_levels_and_what_a_function_must_give():
    distribution = CustomDistribution(
        lambda parameters, noise: parameters.argmax(dim=1), noise=0, levels=3, values=torch.eye(3)
    )
    drawn = distribution.draw(torch.tensor([[0.0, 2.0, 1.0]]), torch.zeros(1, 0))
    assert drawn.tolist() == [[1]]
    assert drawn.dtype == torch.uint8
    assert distribution.encode(drawn).tolist() == [[0, 1, 0]]
    wrong = CustomDistribution(lambda parameters, noise: parameters[:1])
    with pytest.raises(InputError, match=r"symbols \[4, count\]"):
        wrong.draw(torch.zeros(4, 2), torch.zeros(4, 1))
    with pytest.raises(InputError, match="log_prob="):
        wrong.log_prob(torch.zeros(4, 2), torch.zeros(4, 1))
    with pytest.raises(InputError, match="temperature=1"):
        wrong.draw(torch.zeros(4, 2), torch.zeros(4, 1), temperature=0.5)


@pytest.mark.parametrize("distribution", ALL[1:], ids=repr)
@pytest.mark.parametrize("option", [{"top_k": 2}, {"top_p": 0.5}])
def test_only_categorical_takes_top_k_and_top_p(distribution, option):
    with pytest.raises(InputError, match="Categorical only"):
        distribution.draw(
            torch.zeros(2, 20), torch.full((2, distribution.noise_per_draw), 0.5), **option
        )


@pytest.mark.parametrize(
    ("distribution", "symbols", "message"),
    [
        (Categorical(4), torch.tensor([4]), r"0 \.\. 3, got 4 \.\. 4"),
        (Categorical(4), torch.tensor([-1, 2]), r"got -1 \.\. 2"),
        (Categorical(4), torch.tensor([1.0]), "integer symbols"),
        (Bernoulli(), torch.tensor([2]), r"0 \.\. 1"),
        (Bernoulli(), torch.tensor([True]), "integer symbols"),
        (LogisticMixture(8, 2), torch.tensor([8]), r"0 \.\. 7"),
        (Gaussian(), torch.tensor([1]), "floating-point"),
        (Gaussian(), torch.tensor([torch.nan]), "finite"),
        (CustomDistribution(abs), torch.tensor([torch.inf]), "finite"),
        (CustomDistribution(abs, levels=2), torch.tensor([2]), r"0 \.\. 1"),
    ],
)
def test_what_is_no_symbol_is_refused(distribution, symbols, message):
    with pytest.raises(InputError, match=message):
        distribution.check("here", symbols)


@pytest.mark.parametrize("distribution", ALL, ids=repr)
def test_no_symbols_are_all_right(distribution):
    distribution.check("here", torch.zeros(0, dtype=distribution.dtype or torch.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical(1), "levels >= 2"),
        (lambda: Categorical(True), "integer levels"),
        (lambda: Categorical(4, start=4), "start < 4"),
        (lambda: Categorical(4, values="wide"), "'unit', 'signed'"),
        (lambda: Categorical(4, values=torch.eye(3)), r"values \[4\] or \[4, D\]"),
        (lambda: Categorical(2, values=torch.tensor([0.0, torch.inf])), "finite values"),
        (lambda: Categorical(4, layout="ck").draws((4,), 1), "layout 'KC', 'CK'"),
        (lambda: LogisticMixture(colours=2), "colours 1 or 3"),
        (lambda: LogisticMixture(mixtures=0), "mixtures >= 1"),
        (lambda: LogisticMixture(8, start=8), r"0 \.\. 7"),
        (lambda: Gaussian("variance"), "scale in"),
        (lambda: CustomDistribution(3), "a callable"),
        (lambda: CustomDistribution(abs, values="unit"), "values= with levels="),
        (lambda: CustomDistribution(abs, noise=-1), "noise >= 0"),
        (lambda: Bernoulli(start=2), r"0 \.\. 1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
