"""WaveNet: what it sees, its probabilities, its conditioning, and that it learns."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from genfast.errors import InputError
from genfast.models import WaveNet, WaveNetConfig
from genfast.models.wavenet import CausalConv1d
from tests.models.influence import enlarge, influences, train
from tests.sampling.enumerated import all_images, index_of, p_value


def small(**fields):
    return WaveNet(
        WaveNetConfig(
            **{
                "length": 30,
                "levels": 7,
                "residual_channels": 6,
                "gate_channels": 5,
                "skip_channels": 8,
                "head_channels": 16,
                "layers": 4,
                "cycle": 3,
                "mixtures": 2,
                **fields,
            }
        )
    )


def sounds(n=2, length=30, levels=7):
    return torch.randint(0, levels, (n, 1, length), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("layers", "cycle", "kernel", "field"),
    [(4, 3, 2, 1 + 1 + (1 + 2 + 4 + 1)), (1, 10, 2, 3), (3, 10, 3, 1 + 2 + 2 * 7), (2, 1, 2, 4)],
)
@pytest.mark.parametrize("output", ["softmax", "logistic"])
def test_sees_exactly_the_samples_of_its_receptive_field(layers, cycle, kernel, field, output):
    model = small(layers=layers, cycle=cycle, kernel_size=kernel, input="value", output=output)
    model.double()
    assert model.receptive_field == field
    sites = [(0, place) if output == "softmax" else (place,) for place in range(30)]
    found = influences(model, sounds(1)[0], sites)[:, 0] != 0
    for place, seen in enumerate(found):
        expected = torch.zeros(30, dtype=torch.bool)
        expected[max(0, place - field) : place] = True
        assert torch.equal(seen, expected), place


@pytest.mark.parametrize("kind", ["one-hot", "embedding", "value"])
def test_a_sample_changes_later_distributions_only(kind):
    model = small(input=kind).double()
    x = sounds(1).long()
    before = model(x)[0, :, 0]
    for place in (0, 7, 29):
        changed = x.clone()
        changed[0, 0, place] = (changed[0, 0, place] + 3) % 7
        moved = (model(changed)[0, :, 0] != before).any(dim=0)
        expected = torch.zeros(30, dtype=torch.bool)
        expected[place + 1 : place + 1 + model.receptive_field] = True
        assert torch.equal(moved, expected)


def test_the_first_sample_sees_nothing_not_a_level():
    for kind in ("one-hot", "embedding", "value"):
        model = small(input=kind).eval()
        first = model(sounds(5))[..., 0]
        torch.testing.assert_close(first, first[:1].expand_as(first))
        x = torch.zeros(1, 1, 4, dtype=torch.uint8)
        assert not torch.allclose(model(x)[..., 0], model(x)[..., 3])


@pytest.mark.parametrize("kind", ["one-hot", "embedding", "value"])
@pytest.mark.parametrize("output", ["softmax", "logistic"])
def test_probabilities_of_all_sounds_sum_to_one(kind, output):
    model = enlarge(small(levels=4, input=kind, output=output, classes=2))
    every = all_images((1, 5), 4)
    for label in (0, 1):
        log_prob = model.log_prob(every, torch.full((len(every),), label))
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert log_prob.max() - log_prob.min() > 1


def test_log_prob_adds_the_chosen_log_probabilities_of_any_length():
    model = enlarge(small())
    for length in (1, 3, 44):
        x = sounds(3, length)
        log_probs = model(x).log_softmax(dim=1)
        chosen = log_probs.gather(1, x.long()[:, None]).sum(dim=(1, 2, 3))
        torch.testing.assert_close(model.log_prob(x), chosen)
        torch.testing.assert_close(model.bits_per_dim(x), -chosen / (length * math.log(2)))
        torch.testing.assert_close(model.loss(x)["loss"], -chosen.mean())


def test_a_layer_is_that_of_figure_4():
    model = small(classes=2, features=3).double()
    layer = model.layers[1]
    x, h = torch.randn(2, 6, 20).double(), torch.randn(2, 3, 20).double()
    labels = torch.tensor([1, 0])
    stream, skip = layer(x, labels, h)
    padded = F.pad(x, (2, 0))
    weight = layer.dilated.weight
    gates = layer.dilated.bias[:, None] + weight[..., 0] @ padded[..., :20] + weight[..., 1] @ x
    gates = gates + layer.of_label.weight[labels][:, :, None] + layer.of_features.weight[..., 0] @ h
    z = gates[:, :5].tanh() * gates[:, 5:].sigmoid()
    torch.testing.assert_close(stream, x + F.conv1d(z, layer.residual.weight, layer.residual.bias))
    torch.testing.assert_close(skip, F.conv1d(z, layer.skip.weight, layer.skip.bias))
    assert [each.dilated.dilation for each in model.layers] == [(1,), (2,), (4,), (1,)]
    assert model.layers[-1].residual is None


@pytest.mark.parametrize(
    "fields", [{}, {"output": "logistic", "levels": 65536, "input": "value"}, {"input": "value"}]
)
def test_training_lowers_the_loss(fields):
    model = small(**fields)
    time = torch.arange(60) / 60
    phase = torch.arange(8)[:, None] / 8
    wave = (torch.sin(2 * math.pi * (5 * time + phase)) + 1) / 2
    x = (wave * (model.config.levels - 1)).round().to(model.level_dtype)[:, None]
    before, after = train(model, 60, lambda: model.loss(x)["loss"], 1e-2)
    assert after < 0.85 * before


def test_a_label_is_a_bias_of_each_gate_of_its_own_sound():
    model = small(classes=3)
    x = sounds(3)
    first, second = (model(x, torch.tensor(labels)) for labels in ([0, 1, 2], [0, 2, 2]))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[2], second[2])
    assert (first[1] != second[1]).all()


@pytest.mark.parametrize("upsampling", ["repeat", "transposed"])
def test_a_frame_changes_its_own_samples_and_what_follows(upsampling):
    model = small(features=2, hop=8, upsampling=upsampling).double()
    x, frames = sounds(2), torch.randn(2, 2, 4).double()
    before = model(x, features=frames)
    changed = frames.clone()
    changed[0, :, 1] += 1
    moved = (model(x, features=changed) != before).any(dim=1)[:, 0]
    expected = torch.zeros(30, dtype=torch.bool)
    # Frame 1 is samples 8 to 15; the dilated layers after the first hand it on by 2 + 4 + 1.
    expected[8 : 16 + 7] = True
    assert torch.equal(moved[0], expected)
    assert not moved[1].any()


def test_repeated_frames_are_constant_conditioning():
    model = small(features=2, hop=8, classes=2)
    x, labels = sounds(2), torch.tensor([0, 1])
    frames = torch.randn(2, 2, 1).expand(2, 2, 4)
    fine = small(features=2, hop=1, classes=2)
    fine.load_state_dict(model.state_dict())
    expected = fine(x, labels, frames[:, :, :1].expand(2, 2, 30))
    torch.testing.assert_close(model(x, labels, frames), expected)


@pytest.mark.parametrize("output", ["softmax", "logistic"])
@pytest.mark.parametrize("kind", ["one-hot", "embedding", "value"])
def test_samples_follow_the_probabilities(output, kind):
    model = enlarge(small(length=4, levels=3, output=output, input=kind, classes=2))
    every = all_images((1, 4), 3)
    labels = torch.ones(4000, dtype=torch.int64)
    drawn, log_prob = model.sample(4000, seed=5, labels=labels, return_log_prob=True)
    assert drawn.shape == (4000, 1, 4)
    table = model.log_prob(every, labels[: len(every)]).detach()
    assert p_value(drawn, table.exp(), 3) > 1e-3
    torch.testing.assert_close(log_prob, table[index_of(drawn, 3)])


def test_samplers_of_a_few_lengths_are_kept_and_each_notices_other_weights():
    model = enlarge(small(length=4)).double()
    for length in (4, 9, 5, np.int64(9)):
        model.sample(2, seed=1, length=length)
    assert list(model.kept_samplers) == [((1, 4),), ((1, 5),), ((1, 9),)]
    kept = model.kept_samplers
    compiled = {key: sampler._compiled for key, sampler in kept.items()}
    before = [model.sample(9, seed=1, length=length) for length in (4, 5, 9)]
    assert model.kept_samplers == kept
    assert all(sampler._compiled is compiled[key] for key, sampler in kept.items())
    with torch.no_grad():
        model.head[3].weight.mul_(-1)
    for length, old in zip((4, 5, 9), before, strict=True):
        drawn = model.sample(9, seed=1, length=length)
        assert not torch.equal(drawn, old)
        assert torch.equal(drawn, model.sample(9, seed=1, length=length, method="naive"))
    assert all(sampler._compiled is not compiled[key] for key, sampler in kept.items())
    for length in (1, 2):
        model.sample(1, length=length)
    assert list(model.kept_samplers) == [((1, 5),), ((1, 9),), ((1, 1),), ((1, 2),)]


def test_samples_have_the_length_asked_for_and_complete_sounds():
    model = small(features=2, hop=4)
    drawn = model.sample(2, seed=1, length=9, features=torch.randn(2, 2, 3))
    assert drawn.shape == (2, 1, 9)
    known = torch.full((1, 30), -1)
    known[0, :10] = 6
    drawn = model.sample(2, seed=1, known=known, features=torch.randn(2, 2, 8))
    assert (drawn[:, 0, :10] == 6).all()
    for length in (0, 2.0, True):
        with pytest.raises(InputError, match="length >= 1"):
            model.sample(2, length=length)


@pytest.mark.parametrize("kind", ["one-hot", "embedding", "value"])
def test_can_be_captured_and_replayed_on_other_sounds(kind):
    model = small(input=kind, classes=2, features=3, hop=10).eval()
    given = (torch.tensor([0, 1]), torch.randn(2, 3, 3))
    with torch.no_grad():
        captured = make_fx(lambda x, labels, h: model(x, labels, h))(sounds(), *given)
        x, other = sounds(), (torch.tensor([1, 1]), torch.randn(2, 3, 3))
        torch.testing.assert_close(captured(x, *other), model(x, *other))


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        ({}, {"labels": torch.tensor([0, 1])}, "no labels, as the model has classes=0"),
        ({"classes": 2}, {"labels": torch.tensor([0, 2])}, r"labels in 0 \.\. 1"),
        ({"features": 2, "hop": 7}, {}, r"features \[2, 2, 5\], got features=None"),
        (
            {"features": 2, "hop": 7},
            {"features": torch.zeros(2, 2, 4)},
            r"\[2, 2, 5\].*\[2, 2, 4\]",
        ),
        ({}, {"features": torch.zeros(2, 2, 4)}, "no features, as the model has none"),
    ],
)
def test_refuses_unfit_conditioning(fields, given, message):
    model = small(**fields)
    with pytest.raises(InputError, match=message):
        model.loss(sounds(), **given)
    with pytest.raises(InputError, match=message):
        model.sample(2, **given)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 30, dtype=torch.uint8), r"sounds \[N, 1, T\], got shape=\[2, 30\]"),
        (torch.zeros(2, 2, 30, dtype=torch.uint8), r"sounds \[N, 1, T\]"),
        (torch.zeros(2, 1, 0, dtype=torch.uint8), r"sounds \[N, 1, T\]"),
        (torch.zeros(2, 1, 30), "integer levels"),
        (torch.full((2, 1, 30), 7), r"levels in 0 \.\. 6"),
    ],
)
def test_refuses_what_are_no_sounds(x, message):
    with pytest.raises(InputError, match=message):
        small().loss(x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 1}, "levels in 2"),
        ({"length": 0}, "length"),
        ({"companding": "a-law"}, "companding in"),
        ({"input": "bits"}, "input in"),
        ({"output": "gaussian"}, "output in"),
        ({"upsampling": "linear"}, "upsampling in"),
        ({"kernel_size": 1}, "kernel_size to be an integer >= 2"),
        ({"sample_rate": 8000.0}, "sample_rate"),
        ({"hop": 0}, "hop"),
        ({"cycle": 0}, "cycle"),
    ],
)
def test_refuses_bad_settings(fields, message):
    with pytest.raises(InputError, match=message):
        small(**fields)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_looking_weights_up_is_convolving_one_hot_vectors(length):
    conv = CausalConv1d(5, 3, 3, dilation=2).double()
    index = torch.randint(-1, 5, (2, length))
    one_hot = (index[:, None] == torch.arange(5)[:, None]).double()
    torch.testing.assert_close(conv.of_one_hot(index), conv(one_hot))
