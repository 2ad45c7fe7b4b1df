"""What holds for every model: names, settings, checks, sampling, state."""

import json
from dataclasses import FrozenInstanceError, asdict

import pytest
import torch

from genfast.errors import InputError
from genfast.models import MODELS, GenerativeModel, create

SMALL = {
    "pixelcnn": {"channels": 6, "blocks": 1, "kernel_size": 3, "head_channels": 6},
    "autoencoder": {"channels": 4, "latent_dim": 3},
    "vae": {"channels": 4, "latent_dim": 3},
    "gan": {"channels": 4, "latent_dim": 3},
}


@pytest.fixture(params=sorted(MODELS))
def name(request):
    return request.param


def small(name, **fields):
    return create(name, **{"image_shape": (1, 5, 6), **SMALL[name], **fields})


def first_part(model):
    return model.parts(0)[0]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 7), (2, 5, 3)])
@pytest.mark.parametrize("levels", [2, 17, 256, 300])
def test_takes_and_gives_integer_images_of_any_shape_and_depth(name, shape, levels):
    model = small(name, image_shape=shape, levels=levels)
    dtype = torch.uint8 if levels <= 256 else torch.int32
    x = torch.randint(0, levels, (3, *shape)).to(dtype)
    losses = model.loss(x, first_part(model))
    assert all(value.shape == () for value in losses.values())
    losses["loss"].backward()
    if name == "pixelcnn" and levels > 17:
        return
    drawn = model.sample(2)
    assert drawn.shape == (2, *shape)
    assert drawn.dtype == dtype
    assert 0 <= drawn.min().item() <= drawn.max().item() < levels
    if name in ("autoencoder", "vae"):
        assert model.reconstruct(x).dtype == dtype
        assert model.interpolate(x, x, steps=2).shape == (3, 2, *shape)


def test_same_seed_same_sample(name):
    model = small(name, levels=256)

    def draw(seed):
        return model.sample(4, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    torch.manual_seed(3)
    globally = model.sample(4)
    torch.manual_seed(3)
    assert torch.equal(globally, model.sample(4))


def test_sampling_restores_modes_and_changes_no_state(name):
    model = small(name, levels=5).train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    inside = []
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: inside.append(module.training))
    drawn = model.sample(4)
    assert inside
    assert not any(inside)
    assert not drawn.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_state_dict_carries_everything_to_a_fresh_model(name):
    model, other = small(name, levels=5), small(name, levels=5)
    model.loss(torch.randint(0, 5, (4, 1, 5, 6), dtype=torch.uint8), first_part(model))
    other.load_state_dict(model.state_dict())

    def draw(each):
        return each.sample(3, generator=torch.Generator().manual_seed(0))

    assert torch.equal(draw(model), draw(other))


def test_settings_survive_json_and_are_frozen(name):
    config_class, model_class = MODELS[name]
    config = config_class(image_shape=(3, 16, 12), levels=256)
    again = config_class(**json.loads(json.dumps(asdict(config))))
    assert again == config
    assert isinstance(again.image_shape, tuple)
    assert isinstance(model_class(again), GenerativeModel)
    with pytest.raises(FrozenInstanceError):
        config.levels = 3


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, 5, 5, dtype=torch.uint8), r"images \[N, 1, 5, 6\], got shape"),
        (torch.zeros(1, 5, 6, dtype=torch.uint8), r"images \[N, 1, 5, 6\], got shape"),
        (torch.zeros(2, 1, 5, 6), "integer levels, got dtype=torch.float32"),
        (torch.full((2, 1, 5, 6), 17), r"levels in 0 \.\. 16"),
        (torch.full((2, 1, 5, 6), -1), r"levels in 0 \.\. 16"),
    ],
)
def test_refuses_what_is_not_a_batch_of_its_images(name, x, message):
    model = small(name)
    with pytest.raises(InputError, match=message):
        model.loss(x, first_part(model))


def test_refuses_unknown_parts_and_empty_samples(name):
    model = small(name)
    with pytest.raises(InputError, match="part in"):
        model.loss(torch.zeros(2, 1, 5, 6, dtype=torch.uint8), "critic")
    with pytest.raises(InputError, match="part in"):
        model.parameters_of("critic")
    with pytest.raises(InputError, match="n >= 1"):
        model.sample(0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("pixelcnn", {"image_shape": (8, 8)}, "image_shape"),
        ("vae", {"image_shape": (1, 0, 8)}, "image_shape"),
        ("gan", {"image_shape": (1, 8.0, 8)}, "image_shape"),
        ("pixelcnn", {"levels": 1}, "levels in 2"),
        ("vae", {"levels": 65537}, "levels in 2"),
        ("gan", {"levels": True}, "levels in 2"),
        ("pixelcnn", {"kernel_size": 4}, "odd kernel_size"),
        ("pixelcnn", {"blocks": -1}, "blocks to be an integer >= 0"),
        ("pixelcnn", {"channels": 0}, "channels to be an integer >= 1"),
        ("pixelcnn", {"image_shape": (3, 4, 4), "channels": 32}, "multiple of the 3 colours"),
        ("pixelcnn", {"image_shape": (3, 4, 4), "head_channels": 32}, "multiple of the 3 colours"),
        ("autoencoder", {"architecture": "resnet"}, "architecture in"),
        ("autoencoder", {"latent_dim": 0}, "latent_dim"),
        ("autoencoder", {"hidden": (16, 0)}, "hidden"),
        ("autoencoder", {"hidden": 16}, "hidden"),
        ("autoencoder", {"noise_std": -0.1}, "noise_std"),
        ("vae", {"decoder": "laplace"}, "decoder in"),
        ("vae", {"std": "none"}, "std in"),
        ("vae", {"std": 0.0}, "std in"),
        ("vae", {"beta": float("nan")}, "beta in"),
        ("vae", {"beta": float("inf")}, "beta in"),
        ("gan", {"loss": "relativistic"}, "loss in"),
        ("gan", {"critic_steps": 0}, "critic_steps"),
        ("gan", {"gradient_penalty": -1.0}, "gradient_penalty"),
        ("gan", {"r1": "much"}, "r1 in"),
        ("gan", {"label_smoothing": 0.6}, "label_smoothing"),
        ("gan", {"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing only"),
    ],
)
def test_refuses_bad_settings(name, fields, message):
    with pytest.raises(InputError, match=message):
        create(name, **fields)


def test_create_lists_the_valid_names():
    with pytest.raises(InputError, match=r"pixelcnn, autoencoder, vae, gan.*got name='pixelrnn'"):
        create("pixelrnn")
    with pytest.raises(InputError, match=r"image_shape, levels, latent_dim.* unknown='depth'"):
        create("gan", depth=3)


def test_loss_under_autocast_is_close_and_kept_in_float32(name):
    model = small(name, levels=256)
    x = torch.randint(0, 256, (8, 1, 5, 6), dtype=torch.uint8)
    part = first_part(model)
    torch.manual_seed(1)
    exact = model.loss(x, part)["loss"]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.loss(x, part)["loss"]
    mixed.backward()
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0.02, atol=0)


def test_a_pixelcnn_may_have_no_residual_blocks():
    model = create(
        "pixelcnn", image_shape=(1, 4, 4), levels=3, channels=2, blocks=0, head_channels=4
    )
    assert model.log_prob(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)).shape == (2,)
