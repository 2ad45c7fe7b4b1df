"""Autoencoder: reconstruction, denoising, and the Gaussian of codes that it samples from."""

import pytest
import torch

from genfast.models import Autoencoder, AutoencoderConfig


def small(**options):
    return Autoencoder(AutoencoderConfig(latent_dim=3, hidden=(16,), channels=4, **options))


def images(n=12, shape=(1, 8, 8)):
    return torch.randint(0, 17, (n, *shape), dtype=torch.uint8)


@pytest.mark.parametrize("architecture", ["dense", "conv"])
def test_loss_is_the_squared_error_of_the_decoded_code_and_a_step_lowers_it(architecture):
    model, x = small(architecture=architecture), images()
    target = x.float() / 16
    error = (model.decode(model.encode(x)) - target).square().flatten(1).sum(dim=1).mean()
    result = model.loss(x)
    torch.testing.assert_close(result["loss"], error)
    torch.testing.assert_close(result["mean_squared_error"], error.detach() / 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    result["loss"].backward()
    optimizer.step()
    assert model.loss(x)["loss"] < result["loss"]


def test_denoising_hides_part_of_the_input_and_compares_with_the_clean_image():
    clean, noisy = small(), small(noise_std=0.5)
    noisy.load_state_dict(clean.state_dict())
    seen = []
    noisy.encoder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    x = images(50)
    target = x.float() / 16
    loss = noisy.loss(x)["loss"]
    rebuilt = noisy.decode(clean.encoder(seen[0]))
    torch.testing.assert_close(loss, (rebuilt - target).square().sum() / 50)
    noise = seen[0] - target
    assert noise.std().item() == pytest.approx(0.5, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert torch.equal(noisy.reconstruct(x), clean.reconstruct(x))


def test_reconstruct_rounds_what_the_decoder_gives():
    model, x = small(), images()
    expected = (model.decode(model.encode(x)) * 16).round().to(torch.uint8)
    assert torch.equal(model.reconstruct(x), expected)


def test_interpolation_runs_from_one_reconstruction_to_the_other():
    model, a, b = small(), images(3), images(3)
    path = model.interpolate(a, b, steps=5)
    assert path.shape == (3, 5, 1, 8, 8)
    assert path.dtype == torch.uint8
    assert torch.equal(path[:, 0], model.reconstruct(a))
    assert torch.equal(path[:, -1], model.reconstruct(b))
    middle = model.decode((model.encode(a) + model.encode(b)) / 2)
    assert torch.equal(path[:, 2], (middle * 16).round().to(torch.uint8))


def test_running_mean_and_covariance_are_those_of_all_codes_seen():
    model = small()
    batches = [images(n) for n in (20, 20, 20)]
    for batch in batches:
        model.loss(batch)
    codes = torch.cat([model.encode(batch) for batch in batches]).detach()
    torch.testing.assert_close(model.latent_mean, codes.mean(dim=0))
    expected = torch.cov(codes.T, correction=0)
    torch.testing.assert_close(model.latent_covariance, expected, rtol=1e-4, atol=1e-6)


def test_evaluation_leaves_the_codes_gaussian_alone():
    model = small().eval()
    model.loss(images())
    assert model.latent_batches == 0
    assert torch.equal(model.latent_covariance, torch.eye(3))


def test_samples_decode_the_codes_gaussian(monkeypatch):
    model = small()
    factor = torch.tensor([[1.0, 0, 0], [2, 0.5, 0], [0, 0, 0]])
    model.latent_mean.copy_(torch.tensor([3.0, -1, 0.5]))
    model.latent_covariance.copy_(factor @ factor.T)
    codes = []
    monkeypatch.setattr(model, "decode", lambda z: codes.append(z) or torch.zeros(len(z), 1, 8, 8))
    model.sample(20_000, generator=torch.Generator().manual_seed(0))
    (z,) = codes
    torch.testing.assert_close(z.mean(dim=0), model.latent_mean, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(z.T), model.latent_covariance, rtol=0.05, atol=0.05)
