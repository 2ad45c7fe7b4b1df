"""What holds for every model: names, settings, checks, sampling, state."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
import torch

from genfast.errors import InputError
from genfast.models import MODELS, GenerativeModel, create

SMALL = {
    "pixelcnn": {"channels": 6, "blocks": 1, "kernel_size": 3, "head_channels": 6},
    "gated_pixelcnn": {"channels": 6, "layers": 2, "kernel_size": 3, "head_channels": 6},
    "pixelcnn_plus_plus": {"filters": 4, "resnets": 1, "mixtures": 2, "dropout": 0.0},
    "wavenet": {"residual_channels": 4, "gate_channels": 4, "skip_channels": 4, "layers": 3},
    "autoencoder": {"channels": 4, "latent_dim": 3},
    "vae": {"channels": 4, "latent_dim": 3},
    "gan": {"channels": 4, "latent_dim": 3},
}
AUTOREGRESSIVE = ("pixelcnn", "gated_pixelcnn", "pixelcnn_plus_plus", "wavenet")
# Shapes that each model takes; the first is the one most tests use.
SHAPES = {
    "pixelcnn_plus_plus": [(1, 4, 8), (3, 8, 4), (1, 4, 4)],
    "wavenet": [(1, 30), (1, 1), (1, 17)],
}
IMAGES = [(1, 5, 6), (3, 4, 7), (2, 5, 3)]


@pytest.fixture(params=sorted(MODELS))
def name(request):
    return request.param


def shapes(name):
    return SHAPES.get(name, IMAGES)


def small(name, shape=None, **fields):
    shape = shape or shapes(name)[0]
    sized = {"length": shape[1]} if name == "wavenet" else {"image_shape": shape}
    return create(name, **{"levels": 17, **sized, **SMALL[name], **fields})


def events(name, levels, n=4, shape=None):
    x = torch.randint(0, levels, (n, *(shape or shapes(name)[0])))
    return x.to(torch.uint8 if levels <= 256 else torch.int32)


def first_part(model):
    return model.parts(0)[0]


@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name in sorted(MODELS) for shape in shapes(name)]
)
@pytest.mark.parametrize("levels", [2, 17, 256, 300])
def test_takes_and_gives_integers_of_any_shape_and_depth(name, shape, levels):
    model = small(name, shape, levels=levels)
    assert model.event_shape == shape
    x = events(name, levels, 3, shape)
    losses = model.loss(x, first_part(model))
    assert all(value.shape == () for value in losses.values())
    losses["loss"].backward()
    drawn = model.sample(2)
    assert drawn.shape == (2, *shape)
    assert drawn.dtype == x.dtype
    assert 0 <= drawn.min().item() <= drawn.max().item() < levels
    if name in ("autoencoder", "vae"):
        assert model.reconstruct(x).dtype == x.dtype
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
    model.loss(events(name, 5), first_part(model))
    other.load_state_dict(model.state_dict())

    def draw(each):
        return each.sample(3, generator=torch.Generator().manual_seed(0))

    assert torch.equal(draw(model), draw(other))


def test_settings_survive_json_and_are_frozen(name):
    config_class, model_class = MODELS[name]
    shape = {"length": 99} if name == "wavenet" else {"image_shape": (3, 16, 12)}
    config = config_class(**shape, levels=256)
    again = config_class(**json.loads(json.dumps(asdict(config))))
    assert again == config
    assert name == "wavenet" or isinstance(again.image_shape, tuple)
    assert isinstance(model_class(again), GenerativeModel)
    with pytest.raises(FrozenInstanceError):
        config.levels = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[..., :-1, :-1], r"(images|sounds) \[N, .*\], got shape"),
        (lambda x: x[0], r"(images|sounds) \[N, .*\], got shape"),
        (lambda x: x.float(), "integer levels, got dtype=torch.float32"),
        (lambda x: x * 0 + 17, r"levels in 0 \.\. 16"),
        (lambda x: x.int() * 0 - 1, r"levels in 0 \.\. 16"),
    ],
)
def test_refuses_what_is_not_a_batch_of_its_own(name, change, message):
    model = small(name)
    with pytest.raises(InputError, match=message):
        model.loss(change(events(name, 17, 2)), first_part(model))


def test_refuses_unknown_parts(name):
    model = small(name)
    with pytest.raises(InputError, match="part in"):
        model.loss(events(name, 17), "critic")
    with pytest.raises(InputError, match="part in"):
        model.parameters_of("critic")


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "3", None])
def test_refuses_to_draw_what_is_no_number_of_images(name, n):
    with pytest.raises(InputError, match=f"n >= 1, got n={n!r}"):
        small(name).sample(n)


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
        ("gan", {"loss": "earth_mover"}, "loss in"),
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
    known = "pixelcnn, gated_pixelcnn, pixelcnn_plus_plus, wavenet, autoencoder, vae, gan"
    with pytest.raises(InputError, match=f"{known}.*got name='pixelrnn'"):
        create("pixelrnn")
    with pytest.raises(InputError, match=r"image_shape, levels, latent_dim.* unknown='depth'"):
        create("gan", depth=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_takes_the_dtype_of_its_weights(name, dtype):
    model, x = small(name, levels=5).to(dtype), events(name, 5)
    for part in model.parts(0):
        loss = model.loss(x, part)["loss"]
        loss.backward()
        assert loss.isfinite()
    assert model.sample(2).dtype == torch.uint8


def test_loss_under_autocast_is_close_and_kept_in_float32(name):
    model = small(name, levels=256)
    x = events(name, 256, 8)
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


def test_losses_compile_to_one_graph(name):
    model, x = small(name, levels=5), events(name, 5)
    part = first_part(model)
    seen = torch.compile(lambda x: model.loss(x, part)["loss"], backend="eager", fullgraph=True)
    torch.manual_seed(1)
    compiled = seen(x)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled, model.loss(x, part)["loss"])


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_compiled_and_naive_samples_are_the_same(name):
    model = small(name, levels=5).double()
    for temperature in (1.0, 0.7):
        options = {"seed": 3, "temperature": temperature, "return_log_prob": True}
        compiled, log_prob = model.sample(5, **options)
        naive, expected = model.sample(5, **options, method="naive")
        assert torch.equal(compiled, naive)
        torch.testing.assert_close(log_prob, expected)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().log_prob(compiled), log_prob)


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_the_kept_sampler_is_used_again_and_notices_other_weights(name):
    model = small(name, levels=5).double()
    model.sample(2, seed=1)
    (kept,) = model.kept_samplers.values()
    before = model.sample(9, seed=1)
    assert list(model.kept_samplers.values()) == [kept]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    after = model.sample(9, seed=1)
    assert torch.equal(after, model.sample(9, seed=1, method="naive"))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_the_kept_sampler_is_part_of_no_copy(name):
    model = small(name, levels=5)
    keys = set(model.state_dict())
    drawn = model.sample(3, seed=1)
    assert set(model.state_dict()) == keys
    assert "kept_samplers" not in model.__getstate__()
    again = copy.deepcopy(model)
    assert not again.kept_samplers
    assert torch.equal(again.sample(3, seed=1), drawn)
    if name != "pixelcnn_plus_plus":  # torch's weight norm is made of classes that do not pickle
        content = pickle.dumps(model)
        assert len(content) < 2 * len(pickle.dumps(model.state_dict())) + 100_000
        loaded = pickle.loads(content)
        assert not loaded.kept_samplers
        assert torch.equal(loaded.sample(3, seed=1), drawn)


@pytest.mark.parametrize("name", ["gated_pixelcnn", "pixelcnn_plus_plus", "wavenet"])
def test_labels_may_be_a_list_or_an_array(name):
    model = small(name, levels=5, classes=3)
    expected = model.sample(2, seed=1, labels=torch.tensor([2, 0]))
    for labels in ([2, 0], np.array([2, 0])):
        drawn = model.sample(2, seed=1, labels=labels)
        assert torch.equal(drawn, expected)
        wanted = model.log_prob(drawn, torch.tensor([2, 0]))
        assert torch.equal(model.log_prob(drawn, labels), wanted)
        losses = model.loss(drawn, labels=labels), model.loss(drawn, "model", labels)
        assert torch.equal(losses[0]["loss"], -wanted.mean())
        assert torch.equal(losses[0]["bits_per_dim"], losses[1]["bits_per_dim"])
    for labels in ("a", [0, 3], [1, [2]]):
        with pytest.raises(InputError, match="labels"):
            model.sample(2, labels=labels)


@pytest.mark.parametrize("name", ["autoencoder", "vae", "gan"])
def test_convolutions_lie_channels_last(name):
    """Also after weights were loaded that do not, which keep their values."""
    model, other = small(name), small(name)
    weights = {key: t.contiguous() for key, t in other.state_dict().items()}
    model.load_state_dict(weights)
    for each in (model, copy.deepcopy(model)):
        for key, t in each.state_dict().items():
            assert torch.equal(t, weights[key])
            assert t.dim() != 4 or t.is_contiguous(memory_format=torch.channels_last)
