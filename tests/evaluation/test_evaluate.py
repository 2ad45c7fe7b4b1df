import json
import math

import pytest
import torch

from genfast.data import ImageDataset, digits
from genfast.errors import InputError
from genfast.evaluation import evaluate, generate
from genfast.evaluation.evaluate import MAX_IMAGES, control, judge
from genfast.models import create
from tests.evaluation.families import FAMILIES, Bounded, Coder, Explicit, Implicit

QUICK = {"classifiers": ("logistic",), "sampling_batch": 4}


def blank(count, height, width, levels=17):
    return ImageDataset(torch.zeros(count, 1, height, width, dtype=torch.uint8), levels=levels)


@pytest.fixture(scope="module")
def test_images():
    return digits("test").subset(range(60))


def test_exact_likelihood_is_in_nats_and_bits(test_images):
    found = evaluate(Explicit(), test_images, **QUICK)["likelihood"]
    assert found["kind"] == "exact"
    assert found["nats"]["value"] == pytest.approx(-64 * math.log(17), rel=1e-5)
    assert found["bits_per_dim"]["value"] == pytest.approx(math.log2(17), rel=1e-5)
    assert found["bits_per_dim"]["standard_error"] == pytest.approx(0, abs=1e-5)
    assert found["latent_draws"] is None


def test_bound_is_named_a_bound_and_averaged_over_draws(test_images):
    found = evaluate(Bounded(), test_images, **QUICK)["likelihood"]
    assert found["kind"] == "lower bound"
    assert found["nats"]["value"] == pytest.approx(-100, abs=0.02)
    assert found["bits_per_dim"]["value"] == pytest.approx(100 / 64 / math.log(2), rel=1e-3)
    assert found["latent_draws"] > 1


def test_a_decoder_without_a_likelihood_has_none(test_images):
    model = create("vae", decoder="bernoulli", hidden=(8,), latent_dim=2)
    found = evaluate(model, test_images, **QUICK)
    assert found["likelihood"] is None
    assert found["properties"]["likelihood"] == "none"


@pytest.mark.parametrize("family", [Coder, Bounded])
def test_reconstruction_where_there_is_a_decoder(test_images, family):
    error = evaluate(family(), test_images, **QUICK)["reconstruction"]
    assert 0 < error["mse"] < 1
    assert error["rmse_levels"] == pytest.approx(16 * math.sqrt(error["mse"]))


@pytest.mark.parametrize("family", [Explicit, Implicit])
def test_no_reconstruction_where_there_is_none(test_images, family):
    assert evaluate(family(), test_images, **QUICK)["reconstruction"] is None


@pytest.mark.parametrize("family", FAMILIES.values())
def test_is_json_and_repeatable_but_for_the_times(test_images, family):
    torch.manual_seed(0)
    model = family()
    first, second = (evaluate(model, test_images, **QUICK) for _ in range(2))
    for result in (first, second):
        for place in (result["sampling"], result["properties"]):
            for key in ("seconds_per_batch", "seconds_per_image", "repetitions"):
                place.pop(key, None)
    assert first == second
    json.dumps(first, allow_nan=False)


def test_judges_given_samples(test_images):
    other = digits("train").images[:60]
    same = evaluate(Implicit(), test_images, generated=other, **QUICK)
    dark = evaluate(Implicit(), test_images, generated=torch.zeros_like(other), **QUICK)
    assert same["two_sample"]["logistic"]["low"] < 0.55
    assert same["sharpness"]["ratio"] == pytest.approx(1, abs=0.2)
    assert dark["two_sample"]["logistic"]["accuracy"] > 0.95
    assert dark["sharpness"]["ratio"] == 0


def test_real_models_of_every_family(test_images):
    small = {
        "pixelcnn": {"channels": 4, "blocks": 1, "head_channels": 4},
        "gated_pixelcnn": {"channels": 4, "layers": 1, "head_channels": 4},
        "pixelcnn_plus_plus": {"filters": 3, "resnets": 1, "mixtures": 2},
    }
    for name in (*small, "autoencoder", "vae", "gan"):
        model = create(name, **small.get(name, {})).train()
        result = evaluate(model, test_images, **QUICK)
        assert all(layer.training for layer in model.modules())
        traits = result["properties"]
        passes = None if name in small else 1  # these are compiled
        expected = {
            "autoencoder": ("none", "none", 16),
            "vae": ("explicit", "lower bound", 16),
            "gan": ("implicit", "none", 32),
        }.get(name, ("explicit", "exact", None))
        assert (traits["density"], traits["likelihood"], traits["latent"]) == expected
        assert traits["forward_passes"] == passes
        assert result["sampling"]["parameters"] > 0


def test_bits_of_a_real_bound_are_those_of_its_model(test_images):
    model = create("vae").eval()
    found = evaluate(model, test_images, **QUICK)["likelihood"]["bits_per_dim"]
    with torch.no_grad():
        bits = float(model.bits_per_dim(test_images.images, samples=16).mean())
    assert found["value"] == pytest.approx(bits, rel=1e-2)


def test_images_too_small_for_the_laplacian_have_no_sharpness():
    class Line(Implicit):
        def sample(self, n, *, generator=None):
            return super().sample(n, generator=generator).view(n, 1, 1, 64)

    model = Line()
    object.__setattr__(model.config, "image_shape", (1, 1, 64))
    line = ImageDataset(digits("test").images[:40].view(40, 1, 1, 64), levels=17)
    assert evaluate(model, line, **QUICK)["sharpness"]["ratio"] is None


def test_generate_draws_in_batches_and_repeats(test_images):
    class Recorder(Implicit):
        sizes = ()

        def sample(self, n, *, generator=None):
            self.sizes = (*self.sizes, n)
            return super().sample(n, generator=generator)

    model = Recorder()
    images = generate(model, 10, seed=1, batch_size=4)
    assert model.sizes == (4, 4, 2)
    assert torch.equal(images, generate(model, 10, seed=1, batch_size=4))
    assert not torch.equal(images, generate(model, 10, seed=2, batch_size=4))


def test_a_long_sorted_test_set_is_judged_by_a_fair_share():
    levels = torch.arange(3000).view(-1, 1, 1, 1).expand(-1, 1, 3, 3) * 17 // 3000
    swapped = levels.flip(0)
    result = judge(levels, swapped, ("forest",))["forest"]
    assert result["n"] == 2 * MAX_IMAGES
    assert result["accuracy"] < 0.6


def test_control_compares_real_with_real(test_images):
    train = digits("train")
    found = control(train, digits("test"))
    assert found["two_sample"]["forest"]["low"] <= 0.5 <= found["two_sample"]["forest"]["high"]
    assert found["sharpness"]["ratio"] == pytest.approx(1, abs=0.1)
    assert found["bits_per_dim_uniform"] == pytest.approx(math.log2(17))
    assert found["bits_per_dim_histogram"] < found["bits_per_dim_uniform"]
    mean = train.images.double().mean(0)
    mse = float(((digits("test").images - mean) / 16).square().mean())
    assert found["mean_image"]["mse"] == pytest.approx(mse)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            ImageDataset(torch.zeros(30, 1, 8, 9, dtype=torch.uint8), levels=17),
            r"\(1, 8, 9\) and 17",
        ),
        (ImageDataset(torch.zeros(30, 1, 8, 8, dtype=torch.uint8)), r"\(1, 8, 8\) and 256"),
        (ImageDataset(torch.zeros(19, 1, 8, 8, dtype=torch.uint8), levels=17), "20 test images"),
    ],
)
def test_refuses_images_of_another_kind(images, message):
    with pytest.raises(InputError, match=message):
        evaluate(Explicit(), images)


def test_a_model_with_classes_is_judged_given_the_labels(test_images):
    model = create("gated_pixelcnn", channels=4, layers=1, head_channels=4, classes=10).eval()
    with torch.no_grad():
        expected = float(model.bits_per_dim(test_images.images, test_images.labels).mean())
    bits = evaluate(model, test_images, **QUICK)["likelihood"]["bits_per_dim"]
    assert bits["value"] == pytest.approx(expected, rel=1e-5)
    unlabelled = ImageDataset(test_images.images, levels=test_images.levels)
    assert evaluate(model, unlabelled, **QUICK)["likelihood"] is None


def test_a_model_of_sounds_is_refused(test_images):
    with pytest.raises(InputError, match="a model of images, got WaveNet, a model of sounds"):
        evaluate(create("wavenet", layers=1), test_images)
