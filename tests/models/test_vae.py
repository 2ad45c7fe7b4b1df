"""VAE: its bound against exact likelihoods, its decoders, and that it learns."""

import math

import pytest
import torch
from torch.distributions import Normal

from genfast.errors import InputError
from genfast.models import VAE, VAEConfig
from tests.sampling.enumerated import all_images


def small(**options):
    return VAE(VAEConfig(**{"latent_dim": 3, "hidden": (16,), "channels": 4, **options}))


def images(n=12, levels=17, shape=(1, 8, 8)):
    return torch.randint(0, levels, (n, *shape), dtype=torch.uint8)


def trained(data, steps=150, **options):
    model = small(architecture="dense", latent_dim=2, **options).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(data)["loss"].backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def importance_sampled_log_prob(model, x, conditional, draws=2000):
    """Estimate log p(x) as the log-mean of p(x | z) p(z) / q(z | x) over z from q(z | x)."""
    mu, logvar = model.encode(x)
    q, prior = Normal(mu, (logvar / 2).exp()), Normal(torch.zeros_like(mu), 1)
    z = q.sample((draws,))
    weights = (prior.log_prob(z) - q.log_prob(z)).sum(dim=2)
    weights += conditional(x.repeat(draws, 1, 1, 1), z.flatten(0, 1)).view(draws, -1)
    return weights.logsumexp(dim=0) - math.log(draws)


def exact_gaussian_bins(model, x, z):
    """Return log of the decoder's probability of the bins of x, integrated over u exactly."""
    levels, normal = model.config.levels, Normal(model.decode(z), model.log_std.exp())
    low, high = x.double() / levels, (x.double() + 1) / levels
    mass = (normal.cdf(high) - normal.cdf(low)).clamp_min(1e-300)
    return mass.log().flatten(1).sum(dim=1)


@pytest.mark.parametrize(
    ("levels", "options"),
    [(2, {"decoder": "bernoulli"}), (3, {"decoder": "gaussian"}), (3, {"std": "pixel"})],
)
def test_elbo_is_below_the_log_likelihood_and_the_likelihoods_sum_to_one_at_most(levels, options):
    shape = (1, 1, 3)
    every = all_images(shape, levels)
    data = every[torch.tensor([0, 0, 0, 5, 5, len(every) - 1])]
    model = trained(data, image_shape=shape, levels=levels, **options)
    bernoulli = model.config.decoder == "bernoulli"
    conditional = (
        model.conditional_log_prob if bernoulli else (lambda x, z: exact_gaussian_bins(model, x, z))
    )
    log_prob = importance_sampled_log_prob(model, every, conditional)
    total = log_prob.exp().sum().item()
    assert total == pytest.approx(1, abs=0.02) if bernoulli else total < 1.02
    elbo = model.elbo(every.repeat(300, 1, 1, 1)).view(300, -1).mean(dim=0).detach()
    seen = torch.tensor([0, 5, len(every) - 1])
    assert (elbo <= log_prob + 0.05).all()
    gap = (log_prob - elbo)[seen]
    assert gap.max() < 3
    assert model.elbo(data, samples=50).mean() > -3 * math.log(levels)


def test_gaussian_bound_counts_the_width_of_the_bins():
    model = small(std=0.2).double()
    x, z = images(4), torch.randn(4, 3, dtype=torch.float64)
    many = model.conditional_log_prob(x.repeat(500, 1, 1, 1), z.repeat(500, 1))
    draws = many.view(500, 4).detach()
    exact = exact_gaussian_bins(model, x, z).detach()
    assert (draws.mean(dim=0) < exact).all()
    # The mean over u loses only what the density bends inside a bin.
    torch.testing.assert_close(draws.mean(dim=0), exact, rtol=0, atol=1.5)
    torch.testing.assert_close(draws.exp().mean(dim=0).log(), exact, rtol=0, atol=3.0)


@pytest.mark.parametrize("architecture", ["dense", "conv"])
@pytest.mark.parametrize("options", [{}, {"std": "pixel"}, {"std": 0.3}, {"decoder": "bernoulli"}])
def test_one_step_lowers_the_loss(architecture, options):
    model, x = small(architecture=architecture, **options), images(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.manual_seed(1)
    before = model.loss(x)["loss"]
    before.backward()
    optimizer.step()
    torch.manual_seed(1)
    assert model.loss(x)["loss"] < before


def test_loss_is_the_negative_elbo_with_beta_on_the_kl():
    model, x = small(beta=3.0), images(500)
    result = model.loss(x)
    parts = result["reconstruction"] + 3 * result["kl"]
    torch.testing.assert_close(result["loss"].detach(), parts)
    mu, logvar = model.encode(x)
    kl = torch.distributions.kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(result["kl"], kl.sum(dim=1).mean().detach())
    elbo = -(result["reconstruction"] + result["kl"])
    torch.testing.assert_close(model.elbo(x, 4).mean().detach(), elbo, rtol=0.01, atol=0)


def test_free_bits_change_the_loss_and_neither_the_reported_kl_nor_the_elbo():
    torch.manual_seed(2)
    plain, x = small(beta=2.0), images(64)
    free = small(beta=2.0, free_bits=0.002)
    free.load_state_dict(plain.state_dict())
    torch.manual_seed(1)
    without = plain.loss(x)
    torch.manual_seed(1)
    result = free.loss(x)
    torch.testing.assert_close(result["kl"], without["kl"])
    torch.testing.assert_close(result["reconstruction"], without["reconstruction"])
    mu, logvar = free.encode(x)
    terms = torch.distributions.kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    assert 0 < (terms < 0.002).sum() < terms.numel()
    counted = terms.clamp_min(0.002).sum(dim=1).mean()
    torch.testing.assert_close(result["kl_with_free_bits"], counted.detach())
    torch.testing.assert_close(result["loss"], result["reconstruction"] + 2 * counted)
    one, other = (m.elbo(x, 2, generator=torch.Generator().manual_seed(1)) for m in (plain, free))
    assert torch.equal(one, other)


def test_refuses_bad_free_bits():
    for free_bits in (-0.1, float("inf"), float("nan")):
        with pytest.raises(InputError, match="free_bits in 0"):
            VAEConfig(free_bits=free_bits)


def test_bits_per_dim_is_the_elbo_in_other_units_and_repeatable():
    model, x = small(), images()
    bits = model.bits_per_dim(x, 2, generator=torch.Generator().manual_seed(1))
    elbo = model.elbo(x, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(bits, -elbo / (64 * math.log(2)))


def test_a_shared_std_is_one_parameter_and_a_fixed_one_is_none():
    assert small(std="shared").log_std.shape == ()
    assert small(std="pixel").log_std.shape == (1, 8, 8)
    fixed = small(std=0.25)
    assert fixed.log_std.exp().item() == pytest.approx(0.25)
    assert "log_std" not in dict(fixed.named_parameters())


def test_soft_targets_have_a_loss_but_no_likelihood():
    model, x = small(decoder="bernoulli"), images()
    assert torch.isfinite(model.loss(x)["loss"])
    with pytest.raises(InputError, match=r"soft targets.* levels=17"):
        model.bits_per_dim(x)
    with pytest.raises(InputError, match="soft targets"):
        model.elbo(x)


@pytest.mark.parametrize("options", [{}, {"decoder": "bernoulli"}])
def test_levels_of_the_decoders_mean_undo_the_scaling(options):
    model = small(**options)
    x = torch.arange(17, dtype=torch.uint8).view(17, 1, 1, 1)
    assert torch.equal(model._levels(model._centre(x)), x)


def test_reconstruction_and_interpolation_use_the_mean_of_the_posterior():
    model, a, b = small(), images(3), images(3)
    path = model.interpolate(a, b, steps=4)
    assert path.shape == (3, 4, 1, 8, 8)
    assert torch.equal(path[:, 0], model.reconstruct(a))
    assert torch.equal(path[:, -1], model.reconstruct(b))
    expected = (model.decode(model.encode(a)[0]) * 17).floor().to(torch.uint8)
    assert torch.equal(model.reconstruct(a), expected)


def test_refuses_bad_counts():
    model, x = small(), images()
    with pytest.raises(InputError, match="samples >= 1"):
        model.elbo(x, 0)
    with pytest.raises(InputError, match="steps >= 1"):
        model.interpolate(x, x, steps=0)
