import math

import numpy as np
import pytest
import torch

from genfast.data import digits
from genfast.errors import InputError
from genfast.evaluation import CLASSIFIERS, two_sample_test
from genfast.evaluation.two_sample import accuracy_interval


@pytest.fixture(scope="module")
def images():
    return digits("all").images.numpy()


def halves(images, seed, size):
    order = np.random.default_rng(seed).permutation(len(images))
    return images[order[:size]], images[order[size : 2 * size]]


def noisy(images, std=2.0, seed=0):
    noise = np.random.default_rng(seed).normal(0, std, images.shape)
    return (images + noise).round().clip(0, 16)


@pytest.fixture(scope="module")
def same(images):
    pairs = [halves(images, seed, 100) for seed in range(120)]
    return [
        two_sample_test(real, other, classifier="knn", seed=seed)
        for seed, (real, other) in enumerate(pairs)
    ]


class TestSameDistribution:
    def test_interval_covers_one_half(self, same):
        covered = np.mean([each.low <= 0.5 <= each.high for each in same])
        # Nominal 0.95; 0.91 is two standard errors of 120 trials below it.
        assert covered >= 0.91

    def test_interval_is_not_needlessly_wide(self, same):
        spread = np.std([each.accuracy for each in same])
        width = np.mean([each.high - each.low for each in same])
        assert width <= 1.6 * 2 * 1.96 * spread

    def test_accuracy_and_auc_are_chance_on_average(self, same):
        assert np.mean([each.accuracy for each in same]) == pytest.approx(0.5, abs=0.015)
        assert np.mean([each.auc for each in same]) == pytest.approx(0.5, abs=0.015)

    def test_p_values_are_roughly_uniform_and_never_too_eager(self, same):
        values = np.array([each.p_value for each in same])
        assert np.mean(values <= 0.05) <= 0.09
        for quantile in (0.25, 0.5, 0.75):
            assert np.mean(values <= quantile) == pytest.approx(quantile, abs=0.15)

    @pytest.mark.parametrize("classifier", ["logistic", "forest", "mlp"])
    def test_holds_for_every_classifier(self, images, classifier):
        real, other = halves(images, 1, 150)
        result = two_sample_test(real, other, classifier=classifier)
        assert result.low <= 0.5 <= result.high
        assert result.p_value > 0.01


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_tells_clearly_different_images_apart(images, classifier):
    real, other = halves(images, 0, 150)
    result = two_sample_test(real, 16 - other, classifier=classifier)
    assert result.accuracy >= 0.99
    assert result.low >= 0.95
    assert result.auc >= 0.999
    assert result.p_value < 1e-12
    assert result.n == 300


def test_a_larger_difference_scores_higher(images):
    real, other = halves(images, 0, 300)
    scores = [two_sample_test(real, noisy(other, std)).accuracy for std in (0.5, 1.0, 2.0)]
    assert scores == sorted(scores)
    assert scores[0] > 0.6


def test_copies_of_the_other_side_score_below_chance(images):
    real, _ = halves(images, 0, 150)
    assert two_sample_test(real, real.copy(), classifier="forest").high < 0.5


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_is_symmetric_bit_for_bit(images, classifier):
    real, other = halves(images, 3, 60)
    other = noisy(other, 1.0)
    forward = two_sample_test(real, other, classifier=classifier, seed=5)
    assert two_sample_test(other, real, classifier=classifier, seed=5) == forward


def test_is_symmetric_with_sides_of_unequal_size(images):
    real, other = halves(images, 3, 90)
    forward = two_sample_test(real, other[:50], classifier="forest")
    assert two_sample_test(other[:50], real, classifier="forest") == forward
    assert forward.n == 100


def test_the_seed_decides_and_global_generators_stay(images):
    real, other = halves(images, 2, 60)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = two_sample_test(real, other, classifier="mlp", seed=1)
    assert two_sample_test(real, other, classifier="mlp", seed=1) == first
    assert two_sample_test(real, other, classifier="mlp", seed=2).folds != first.folds
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_takes_tensors_and_datasets(images):
    data = digits("test")
    other = torch.from_numpy(noisy(images[:297]))
    assert two_sample_test(data, other) == two_sample_test(data.images.numpy(), other.numpy())


@pytest.mark.parametrize("share", [0.0, 0.31, 0.5, 0.87, 1.0])
def test_interval_ends_where_the_score_test_starts_to_reject(share):
    low, high = accuracy_interval(share, 600, 5)
    size = 600 / (1 + 5 / 4)
    for end in {low, high} - {0.0, 1.0}:
        assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / size, rel=1e-4)
    assert 0 <= low <= share <= high <= 1


def test_interval_is_wider_than_the_binomial_one():
    low, high = accuracy_interval(0.5, 600, 5)
    assert high - low > 1.4 * 2 * 1.96 * math.sqrt(0.25 / 600)


class TestPermutations:
    def test_p_value_is_the_rank_among_permutations(self, images):
        real, other = halves(images, 0, 60)
        assert two_sample_test(real, 16 - other, permutations=19).p_value == 1 / 20

    def test_p_value_is_uniform_on_equal_distributions(self, images):
        values = [
            two_sample_test(
                *halves(images, s, 20), classifier="knn", folds=2, permutations=9
            ).p_value
            for s in range(30)
        ]
        assert set(values) <= {rank / 10 for rank in range(1, 11)}
        assert np.mean(np.array(values) <= 0.1) <= 0.3
        assert 0.35 <= np.mean(values) <= 0.75

    def test_leaves_all_else_as_it_is(self, images):
        real, other = halves(images, 0, 60)
        plain = two_sample_test(real, other)
        tested = two_sample_test(real, other, permutations=3)
        assert (tested.accuracy, tested.low, tested.auc) == (plain.accuracy, plain.low, plain.auc)


def with_value(value):
    bad = np.ones((40, 1, 8, 8))
    bad[3, 0, 2, 2] = value
    return bad


GOOD = np.random.default_rng(0).integers(0, 17, (40, 1, 8, 8))


@pytest.mark.parametrize(
    ("real", "generated", "options", "message"),
    [
        (
            GOOD,
            np.ones((40, 1, 8, 9)),
            {},
            r"one shape, got real=\(1, 8, 8\), generated=\(1, 8, 9\)",
        ),
        (GOOD, np.ones((40, 64)), {}, "one shape"),
        (GOOD[:19], GOOD, {}, r"real of shape \[N, ...\] with N >= 20, got real=\(19, 1, 8, 8\)"),
        (GOOD, GOOD[:0], {}, "generated of shape"),
        (GOOD, np.ones(40), {}, "generated of shape"),
        (GOOD, np.ones((40, 0)), {}, "generated of shape"),
        (GOOD, with_value(np.nan), {}, "finite generated, got 1 values"),
        (with_value(np.inf), GOOD, {}, "finite real"),
        (GOOD, "images", {}, "expected numbers, got generated of type str"),
        (
            GOOD,
            GOOD,
            {"classifier": "oracle"},
            "mlp, knn, got classifier='oracle'",
        ),
        (GOOD, GOOD, {"folds": 1}, "folds from 2 to 40, got folds=1"),
        (GOOD, GOOD, {"folds": 41}, "got folds=41"),
        (GOOD, GOOD, {"permutations": -1}, "got permutations=-1"),
    ],
)
def test_refuses_bad_input(real, generated, options, message):
    with pytest.raises(InputError, match=message):
        two_sample_test(real, generated, **options)
