import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from genfast.data import digits
from genfast.errors import InputError
from genfast.evaluation import reconstruction_error, sharpness
from genfast.evaluation.metrics import Estimate, histogram_bits_per_dim, seeded, shuffled
from tests.evaluation.families import Coder, Explicit


@pytest.fixture(scope="module")
def images():
    return digits("test").images


def blurred(images, std):
    smooth = gaussian_filter(images.numpy().astype(float), (0, 0, std, std))
    return torch.from_numpy(smooth.round().astype(np.uint8))


class TestSharpness:
    @pytest.mark.parametrize("level", [0, 7, 16])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_constant_images_score_zero(self, level, channels):
        images = torch.full((4, channels, 8, 8), level, dtype=torch.uint8)
        assert sharpness(images, 17) == 0.0

    def test_more_blur_scores_lower(self, images):
        scores = [sharpness(images, 17)]
        scores += [sharpness(blurred(images, std), 17) for std in (0.4, 0.8, 1.6)]
        assert scores == sorted(scores, reverse=True)
        assert scores[3] < 0.1 * scores[0]

    def test_noise_scores_higher(self, images):
        noise = torch.randint(-4, 5, images.shape, generator=torch.Generator().manual_seed(0))
        noisy = (images + noise).clamp(0, 16)
        assert sharpness(noisy, 17) > 1.1 * sharpness(images, 17)

    def test_is_the_variance_of_the_laplacian(self):
        image = torch.zeros(1, 1, 4, 4)
        image[0, 0, 1, 1] = 10
        # Responses inside: -4 at the point, 1 at its two inner neighbours, 0 opposite, times 1/10.
        expected = np.var(np.array([-4, 1, 1, 0]) * 10 / 10)
        assert sharpness(image, 11) == pytest.approx(expected)

    def test_does_not_depend_on_the_number_of_levels_or_images(self, images):
        assert sharpness(images * 2, 33) == pytest.approx(sharpness(images, 17))
        assert sharpness(images.repeat(2, 1, 1, 1), 17) == pytest.approx(sharpness(images, 17))

    @pytest.mark.parametrize(
        ("images", "levels", "message"),
        [
            (torch.zeros(2, 1, 2, 8), 17, r"H, W >= 3, got images=\(2, 1, 2, 8\)"),
            (torch.zeros(0, 1, 8, 8), 17, "N, C >= 1"),
            (torch.zeros(1, 8, 8), 17, r"\[N, C, H, W\]"),
            (torch.full((1, 1, 8, 8), math.nan), 17, "finite"),
            (torch.zeros(1, 1, 8, 8), 1, "levels >= 2, got levels=1"),
        ],
    )
    def test_refuses_bad_input(self, images, levels, message):
        with pytest.raises(InputError, match=message):
            sharpness(images, levels)


class TestReconstructionError:
    class Off(Coder):
        """Reconstructs every image two levels too dark."""

        def reconstruct(self, x):
            assert len(x) <= 100
            return (x.int() - 2).clamp(0).byte()

    def test_measures_a_known_error(self):
        images = torch.full((250, 1, 8, 8), 9, dtype=torch.uint8)
        error = reconstruction_error(self.Off(), images, batch_size=100)
        assert error.rmse_levels == pytest.approx(2)
        assert error.mse == pytest.approx((2 / 16) ** 2)
        assert error.mse_standard_error == pytest.approx(0, abs=1e-12)

    def test_refuses_what_cannot_reconstruct(self, images):
        with pytest.raises(InputError, match=r"reconstruct\(x\), got Explicit"):
            reconstruction_error(Explicit(), images)

    def test_refuses_no_images(self, images):
        with pytest.raises(InputError, match="N >= 1"):
            reconstruction_error(Coder(), images[:0])


class TestHistogram:
    def test_is_the_entropy_where_train_and_test_agree(self):
        # Each of 4 levels once per pixel: with one added to every count, still uniform.
        images = torch.arange(4).view(4, 1, 1, 1).expand(4, 1, 3, 3)
        assert histogram_bits_per_dim(images, images, 4) == pytest.approx(2.0)

    def test_counts_each_pixel_by_itself_and_adds_one(self):
        train = torch.tensor([[0, 1], [0, 1], [0, 0]]).view(3, 1, 1, 2)
        test = torch.tensor([[0, 1]]).view(1, 1, 1, 2)
        expected = -(math.log2(4 / 5) + math.log2(3 / 5)) / 2
        assert histogram_bits_per_dim(train, test, 2) == pytest.approx(expected)

    def test_lies_below_chance_on_the_digits(self, images):
        assert histogram_bits_per_dim(digits("train").images, images, 17) < math.log2(17) - 1


def test_estimate_is_the_mean_and_its_standard_error():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    estimate = Estimate.of(values).scaled(-2)
    assert estimate.value == -8
    assert estimate.standard_error == pytest.approx(2 * float(np.std(values.numpy(), ddof=1)) / 2)
    assert Estimate.of(values[:1]) == Estimate(1.0, 0.0)


def test_seeded_gives_the_global_generator_back():
    before = torch.get_rng_state()
    with seeded(3, torch.device("cpu")) as generator:
        first = (torch.rand(2), torch.rand(2, generator=generator))
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(3, torch.device("cpu")) as generator:
        second = (torch.rand(2), torch.rand(2, generator=generator))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_shuffled_is_a_permutation_that_the_seed_decides(images):
    assert torch.equal(shuffled(images, 1), shuffled(images, 1))
    assert not torch.equal(shuffled(images, 1), shuffled(images, 2))
    assert torch.equal(shuffled(images, 1).sum(0, dtype=torch.int64), images.sum(0))
