"""The naive sampler: it draws from the model's distribution, and keeps what is known."""

import pytest
import torch
from torch import nn

from genfast.errors import InputError
from genfast.sampling import sample_naive
from genfast.sampling.naive.sample import invert_cdf
from tests.sampling.enumerated import all_images, index_of, p_value, tiny_pixelcnn

SHAPES = [((1, 2, 2), 3), ((2, 1, 2), 3), ((3, 2, 1), 2)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("shape", "levels"), SHAPES)
def test_draws_each_image_as_often_as_its_probability_says(shape, levels):
    model = tiny_pixelcnn(shape, levels)
    images = all_images(shape, levels)
    probabilities = model.log_prob(images).exp().detach()
    assert probabilities.max() > 3 / len(images)
    drawn = sample_naive(model, 20_000, seeded(1))
    assert p_value(drawn, probabilities, levels) > 1e-3
    assert p_value(drawn, torch.full_like(probabilities, 1 / len(images)), levels) < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits_of_every_conditional(temperature):
    shape, levels = (1, 2, 2), 3
    model = tiny_pixelcnn(shape, levels)
    images = all_images(shape, levels)
    log_probs = (model(images) / temperature).log_softmax(dim=1)
    chosen = log_probs.gather(1, images[:, None].long())
    probabilities = chosen.flatten(1).sum(dim=1).exp().detach()
    drawn = sample_naive(model, 20_000, seeded(2), temperature=temperature)
    assert p_value(drawn, probabilities, levels) > 1e-3
    assert p_value(drawn, model.log_prob(images).exp().detach(), levels) < 1e-6


def test_completing_the_first_pixels_draws_from_the_conditional_distribution():
    shape, levels = (1, 2, 2), 3
    model = tiny_pixelcnn(shape, levels)
    images = all_images(shape, levels)
    known = torch.tensor([[2, 1], [-1, -1]])
    fits = (images[:, 0, 0] == torch.tensor([2, 1])).all(dim=1)
    joint = model.log_prob(images).exp().detach() * fits
    drawn = sample_naive(model, 10_000, seeded(3), known=known)
    assert p_value(drawn, joint / joint.sum(), levels) > 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_known_pixels_stay_and_unknown_ones_do_not(dtype):
    shape, levels = (3, 3, 4), 4
    model = tiny_pixelcnn(shape, levels)
    generator = seeded(4)
    known = torch.randint(0, levels, (50, *shape), generator=generator).to(dtype)
    mask = torch.rand(50, 1, 3, 4, generator=generator) < 0.5
    drawn = sample_naive(model, 50, generator, known=known, known_mask=mask)
    everywhere = mask.expand_as(known)
    assert torch.equal(drawn[everywhere], known[everywhere].to(torch.uint8))
    assert not torch.equal(drawn[~everywhere], known[~everywhere].to(torch.uint8))


def test_negative_levels_mark_what_to_draw_as_a_mask_does():
    model = tiny_pixelcnn((1, 3, 3), 4)
    known = torch.randint(0, 4, (5, 1, 3, 3))
    mask = torch.rand(5, 1, 3, 3) < 0.5
    by_sign = sample_naive(model, 5, seeded(5), known=torch.where(mask, known, -1))
    by_mask = sample_naive(model, 5, seeded(5), known=known, known_mask=mask)
    assert torch.equal(by_sign, by_mask)


def test_the_seed_decides_the_images():
    model = tiny_pixelcnn((1, 3, 3), 4)
    first = sample_naive(model, 8, seeded(6))
    assert torch.equal(first, sample_naive(model, 8, seeded(6)))
    assert not torch.equal(first, sample_naive(model, 8, seeded(7)))
    assert torch.equal(first[:3], sample_naive(model, 3, seeded(6)))
    torch.manual_seed(8)
    by_global_seed = sample_naive(model, 8)
    torch.manual_seed(8)
    assert torch.equal(by_global_seed, sample_naive(model, 8))


def test_a_generator_leaves_the_global_one_alone():
    model = tiny_pixelcnn((1, 2, 2), 3)
    before = torch.get_rng_state()
    sample_naive(model, 2, seeded(9))
    assert torch.equal(before, torch.get_rng_state())


def test_modes_and_gradients_are_as_before():
    model = tiny_pixelcnn((1, 2, 2), 3).train()
    model.blocks.eval()
    model.add_module("dropout", nn.Dropout())
    modes = [module.training for module in model.modules()]
    inside = []
    model.head.register_forward_hook(lambda module, args, output: inside.append(module.training))
    drawn = sample_naive(model, 2, seeded(9))
    assert len(inside) >= 4
    assert not any(inside)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert not drawn.requires_grad
    assert drawn.dtype == torch.uint8


def test_more_than_256_levels_come_as_int32():
    drawn = sample_naive(tiny_pixelcnn((1, 1, 2), 300), 3, seeded(1))
    assert drawn.dtype == torch.int32
    assert index_of(drawn, 300).shape == (3,)


def test_progress_bar_counts_pixels(capsys):
    sample_naive(tiny_pixelcnn((1, 2, 3), 2), 1, progress=True)
    assert "6/6" in capsys.readouterr().err


def test_inverse_cdf_at_the_ends_and_around_impossible_levels():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    uniform = torch.tensor([0.0, 0.49, 0.5, 0.75, 1 - 2**-24])
    drawn = invert_cdf(logits.expand(5, 5), uniform)
    assert drawn.tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n >= 1"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"known_mask": torch.ones(2, 2, dtype=torch.bool)}, "known= with"),
        ({"known": torch.zeros(2, 2, dtype=torch.int64)}, "negative values"),
        ({"known": torch.zeros(2, 2)}, "integer levels"),
        ({"known": torch.full((2, 3), -1)}, r"broadcasts to \[2, 1, 2, 2\]"),
        ({"known": torch.tensor([[3, -1], [0, 0]])}, r"known: expected symbols in 0 \.\. 2"),
        ({"known": torch.full((2, 2), -1), "known_mask": torch.ones(2, 2) > 0}, "known: expected"),
        ({"known": torch.full((2, 2), -1), "known_mask": torch.ones(2, 2)}, "a bool mask"),
    ],
)
def test_refuses_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        sample_naive(tiny_pixelcnn((1, 2, 2), 3), **{"n": 2, **options})
