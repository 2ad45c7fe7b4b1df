"""GAN: any image size, one player's gradients at a time, penalties, and that both learn."""

import pytest
import torch

from genfast.errors import InputError
from genfast.models import GAN, GANConfig
from genfast.nn import gradient_penalty
from genfast.ops import gan_loss

RELATIVISTIC = ["relativistic", "relativistic_average"]
KINDS = ["minimax", "non_saturating", "least_squares", "wasserstein", "hinge", *RELATIVISTIC]


def small(**options):
    return GAN(GANConfig(**{"latent_dim": 4, "channels": 4, **options}))


def images(n=16, levels=17, shape=(1, 8, 8)):
    return torch.randint(0, levels, (n, *shape), dtype=torch.uint8)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 8, 8),
        (1, 28, 28),
        (3, 32, 32),
        (3, 17, 23),
        (1, 1, 1),
        (2, 5, 9),
        (1, 64, 16),
        (3, 3, 40),
    ],
)
def test_adapts_to_any_image_size(shape):
    model = small(image_shape=shape)
    fake = model.generator(torch.randn(2, 4))
    assert fake.shape == (2, *shape)
    assert model.discriminator(fake).shape == (2,)
    smallest = model.generator.layers[1].unflattened_size[1:]
    assert min(smallest) <= 4
    drawn = model.sample(3)
    assert drawn.shape == (3, *shape)


def test_generated_levels_cover_the_grey_scale():
    model = small()
    model.generator.forward = lambda z: torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)
    assert model.sample(3).flatten().tolist() == [0, 8, 16]
    scaled = model._scale(torch.tensor([[[[0, 8, 16]]]], dtype=torch.uint8))
    assert scaled.flatten().tolist() == [-1, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_has_gradients_for_its_own_player_only(kind):
    model, x = small(loss=kind, r1=1.0), images()
    for part, other in (("discriminator", "generator"), ("generator", "discriminator")):
        model.zero_grad()
        model.loss(x, part)["loss"].backward()
        assert all(p.grad.abs().sum() > 0 for p in model.parameters_of(part) if p.dim() > 1)
        assert all(p.grad is None for p in model.parameters_of(other))
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["discriminator", "generator"])
def test_one_step_lowers_the_players_loss(kind, part):
    model, x = small(loss=kind), images(64)
    optimizer = torch.optim.SGD(model.parameters_of(part), lr=1e-3)
    torch.manual_seed(1)
    before = model.loss(x, part)["loss"]
    before.backward()
    optimizer.step()
    torch.manual_seed(1)
    assert model.loss(x, part)["loss"] < before


@pytest.mark.parametrize("kind", RELATIVISTIC)
def test_relativistic_generator_is_compared_with_the_images_given(kind):
    model, x = small(loss=kind, label_smoothing=0.1), images(8)
    torch.manual_seed(1)
    result = model.loss(x, "generator")["loss"]
    torch.manual_seed(1)
    fake = model.generator(model._normal(8, 4))
    real_logits, fake_logits = model.discriminator(model._scale(x)), model.discriminator(fake)
    expected = gan_loss(real=real_logits, fake=fake_logits, kind=kind, role="generator")
    torch.testing.assert_close(result, expected)


def test_parts_follow_critic_steps():
    both, alone = ("discriminator", "generator"), ("discriminator",)
    assert [small().parts(step) for step in range(2)] == [both, both]
    model = small(critic_steps=3)
    assert [model.parts(step) for step in range(6)] == [alone, alone, both] * 2


def test_players_share_no_parameter_and_leave_none_out():
    model = small()
    ids = [id(p) for part in ("discriminator", "generator") for p in model.parameters_of(part)]
    assert sorted(ids) == sorted(map(id, model.parameters()))


def test_penalties_enter_the_loss_with_their_weights():
    plain, x = small(loss="hinge"), images()
    weighted = small(loss="hinge", gradient_penalty=2.0, r1=3.0)
    weighted.load_state_dict(plain.state_dict())
    torch.manual_seed(1)
    without = plain.loss(x, "discriminator")
    torch.manual_seed(1)
    result = weighted.loss(x, "discriminator")
    expected = without["loss"] + 2 * result["gradient_penalty"] + 1.5 * result["r1_penalty"]
    torch.testing.assert_close(result["loss"], expected)
    assert "gradient_penalty" not in without


def test_wasserstein_has_a_gradient_penalty_unless_told_otherwise():
    assert GANConfig(loss="wasserstein").gradient_penalty == 10
    assert GANConfig(loss="wasserstein", gradient_penalty=0.0).gradient_penalty == 0
    assert GANConfig().gradient_penalty == 0


def test_gradient_penalty_has_right_gradients_through_the_discriminator():
    model = small(channels=2, image_shape=(1, 5, 5)).double()
    real = model._scale(images(2, shape=(1, 5, 5)))
    fake = torch.rand_like(real)

    def penalty(weight):
        torch.manual_seed(0)
        weights = {"layers.0.weight": weight}

        def discriminator(x):
            return torch.func.functional_call(model.discriminator, weights, (x,))

        return gradient_penalty(discriminator, real, fake)

    weight = model.discriminator.layers[0].weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(penalty, weight)


def test_discriminator_judges_each_image_by_itself():
    model, x = small(), images(6)
    scaled = model._scale(x)
    torch.testing.assert_close(model.discriminator(scaled)[:2], model.discriminator(scaled[:2]))


def test_interpolation_keeps_the_ends_and_the_length_of_the_latents(monkeypatch):
    model = small()
    start = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    end = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    seen = []
    monkeypatch.setattr(
        model, "_generate", lambda z: seen.append(z) or torch.zeros(len(z), 1, 8, 8)
    )
    assert model.interpolate(start, end, steps=5).shape == (3, 5, 1, 8, 8)
    z = seen[0].view(3, 5, 4)
    torch.testing.assert_close(z[:, 0], start)
    torch.testing.assert_close(z[:, -1], end)
    torch.testing.assert_close(z.norm(dim=2), torch.ones(3, 5))


def test_interpolation_draws_its_own_ends():
    model = small()
    path = model.interpolate(2, steps=3, generator=torch.Generator().manual_seed(1))
    again = model.interpolate(2, steps=3, generator=torch.Generator().manual_seed(1))
    assert path.shape == (2, 3, 1, 8, 8)
    assert torch.equal(path, again)
    with pytest.raises(InputError, match=r"latents \[N, 4\]"):
        model.interpolate(torch.zeros(2, 5))


def test_the_whole_model_has_no_single_loss():
    with pytest.raises(InputError, match="part in"):
        small().loss(images(), "model")
    with pytest.raises(InputError, match="part in"):
        small().parameters_of("model")
