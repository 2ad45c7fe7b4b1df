"""The loss and noise layers, the gradient penalties, and evaluation mode."""

import pytest
import torch
from torch import nn

from genfast.errors import InputError
from genfast.nn import GANLoss, Reparameterize, evaluating, gradient_penalty, r1_penalty
from genfast.ops import gan_loss, reparameterize

SEPARATE = ["minimax", "non_saturating", "least_squares", "wasserstein", "hinge"]
RELATIVISTIC = ["relativistic", "relativistic_average"]
KINDS = [*SEPARATE, *RELATIVISTIC]


@pytest.mark.parametrize("kind", KINDS)
def test_gan_loss_layer_is_the_op_for_the_player_named_by_its_arguments(kind):
    real, fake = torch.randn(7), torch.randn(7)
    loss = GANLoss(kind)
    expected = gan_loss(real=real, fake=fake, kind=kind, role="discriminator")
    torch.testing.assert_close(loss(real=real, fake=fake), expected)
    given = {"real": real, "fake": fake} if loss.relativistic else {"fake": fake}
    expected = gan_loss(**given, kind=kind, role="generator")
    torch.testing.assert_close(loss(**given, role="generator"), expected)
    if not loss.relativistic:
        torch.testing.assert_close(loss(fake=fake), expected)


def test_gan_loss_layer_asks_for_real_logits_where_the_generator_needs_them():
    fake = torch.randn(4)
    for kind in RELATIVISTIC:
        assert GANLoss(kind).relativistic
        with pytest.raises(InputError, match=f"expected real and fake for kind='{kind}'"):
            GANLoss(kind)(fake=fake)
    with pytest.raises(InputError, match="expected no real logits for the generator"):
        GANLoss("hinge")(fake=fake, real=fake, role="generator")
    with pytest.raises(InputError, match="expected role one of"):
        GANLoss("hinge")(fake=fake, real=fake, role="critic")


@pytest.mark.parametrize("kind", KINDS)
def test_players_pull_in_opposite_directions(kind):
    fake = torch.full((4,), 0.5, requires_grad=True)
    real = torch.zeros(4) if kind in RELATIVISTIC else None
    (up,) = torch.autograd.grad(GANLoss(kind)(fake=fake, real=real, role="generator"), fake)
    (down,) = torch.autograd.grad(GANLoss(kind)(real=torch.zeros(4), fake=fake), fake)
    assert (up < 0).all()
    assert (down > 0).all()


def test_gan_loss_layer_passes_label_smoothing_to_the_discriminator_only():
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    smooth, hard = GANLoss("least_squares", label_smoothing=0.1), GANLoss("least_squares")
    assert smooth(real=real, fake=fake) != hard(real=real, fake=fake)
    assert smooth(fake=fake) == hard(fake=fake)


def test_gan_loss_layer_takes_keywords_only_and_known_kinds_only():
    with pytest.raises(TypeError):
        GANLoss()(torch.zeros(2), torch.zeros(2))
    with pytest.raises(InputError, match="kind in"):
        GANLoss("vanilla")


def test_reparameterize_layer_is_the_op():
    mu, logvar = torch.randn(4, 3), torch.randn(4, 3)
    z, kl = Reparameterize()(mu, logvar, generator=torch.Generator().manual_seed(3))
    expected = reparameterize(mu, logvar, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close((z, kl), expected)
    weights = {"beta": 0.5, "free_bits": 0.4}
    layer = Reparameterize(**weights)
    assert repr(layer) == "Reparameterize(beta=0.5, free_bits=0.4)"
    ours = layer(mu, logvar, generator=torch.Generator().manual_seed(3))
    expected = reparameterize(mu, logvar, generator=torch.Generator().manual_seed(3), **weights)
    torch.testing.assert_close(ours, expected)
    with pytest.raises(InputError, match=r"Reparameterize: expected a finite free_bits >= 0, got"):
        Reparameterize(free_bits=-0.1)
    with pytest.raises(InputError, match=r"Reparameterize: expected a finite beta >= 0, got"):
        Reparameterize(beta=float("nan"))


class Linear(nn.Module):
    """A discriminator whose gradient is its weight everywhere."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 0.0, -4.0, 0.0]).view(1, 2, 2))

    def forward(self, x):
        return (x * self.weight).flatten(1).sum(dim=1)


def test_penalties_of_a_linear_discriminator_and_their_gradients():
    linear = Linear()
    real, fake = torch.randn(6, 1, 2, 2), torch.randn(6, 1, 2, 2)
    penalty = gradient_penalty(linear, real, fake)
    torch.testing.assert_close(penalty, torch.tensor(16.0))
    (gradient,) = torch.autograd.grad(penalty, linear.weight)
    torch.testing.assert_close(gradient, 2 * (5 - 1) * linear.weight.detach() / 5)
    penalty = r1_penalty(linear, real)
    torch.testing.assert_close(penalty, torch.tensor(25.0))
    (gradient,) = torch.autograd.grad(penalty, linear.weight)
    torch.testing.assert_close(gradient, 2 * linear.weight.detach())


def test_gradient_penalty_is_taken_between_real_and_generated_images():
    seen = []

    def discriminator(x):
        seen.append(x.detach())
        return x.square().flatten(1).sum(dim=1)

    real, fake = torch.zeros(200, 1, 2, 2), torch.ones(200, 1, 2, 2)
    gradient_penalty(discriminator, real, fake)
    t = seen[0].flatten(1)
    assert torch.equal(t, t[:, :1].expand_as(t))
    assert 0 < t.min() < 0.1
    assert 0.9 < t.max() < 1


def test_penalties_are_finite_where_the_gradient_vanishes_and_work_without_grad_mode():
    linear = Linear()
    nn.init.zeros_(linear.weight)
    x = torch.randn(3, 1, 2, 2)
    gradient_penalty(linear, x, x).backward()
    assert torch.isfinite(linear.weight.grad).all()
    with torch.no_grad():
        assert r1_penalty(linear, x) == 0
        assert gradient_penalty(linear, x, x) == 1


def test_evaluating_gives_every_submodule_its_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1][0].eval()
    modes = [module.training for module in model.modules()]

    def fail():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
