"""Gated PixelCNN: what it sees, its probabilities, its conditioning, and that it learns."""

import itertools
import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from genfast.errors import InputError
from genfast.models import GatedPixelCNN, GatedPixelCNNConfig
from tests.models.influence import enlarge, influences, train
from tests.sampling.enumerated import all_images, index_of, p_value


def small(**fields):
    return GatedPixelCNN(
        GatedPixelCNNConfig(
            **{
                "image_shape": (1, 5, 6),
                "levels": 5,
                "channels": 6,
                "layers": 2,
                "kernel_size": 3,
                "head_channels": 6,
                **fields,
            }
        )
    )


@pytest.mark.parametrize(
    ("shape", "layers", "kernel", "inner"),
    [
        ((1, 7, 9), 1, 5, 3),
        ((1, 8, 11), 3, 3, 3),
        ((1, 9, 9), 2, 5, 5),
        ((3, 5, 7), 2, 3, 3),
        ((2, 1, 9), 3, 3, 1),
        ((1, 6, 1), 2, 3, 3),
    ],
)
def test_sees_exactly_the_earlier_pixels_of_its_field(shape, layers, kernel, inner):
    config = {"layers": layers, "kernel_size": kernel, "inner_kernel_size": inner}
    model = small(image_shape=shape, channels=24, head_channels=96, **config).double()
    reach = kernel // 2 + (layers - 1) * (inner // 2)
    _, height, width = shape
    sites = list(itertools.product(*map(range, shape)))
    found = influences(model, torch.randint(0, 5, shape), sites) != 0
    for (channel, row, column), seen in zip(sites, found, strict=True):
        expected = torch.zeros_like(seen)
        for r, c in itertools.product(range(height), range(width)):
            above = 1 <= row - r <= reach + 1 and abs(column - c) <= reach
            left = r == row and 1 <= column - c <= reach
            expected[:, r, c] = above or left
        expected[:channel, row, column] = True
        assert torch.equal(seen, expected), (channel, row, column)


def test_colours_of_earlier_layers_are_not_mixed_by_gates():
    model = small(image_shape=(3, 4, 4), channels=24, head_channels=96, layers=3).double()
    sites = [(channel, 2, 2) for channel in range(3)]
    found = influences(model, torch.randint(0, 5, (3, 4, 4)), sites)
    for channel, here in enumerate(found[:, :, 2, 2]):
        assert (here[channel:] == 0).all()
        assert (here[:channel] != 0).all()


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 2, 2), 3), ((1, 1, 4), 3), ((2, 1, 2), 3), ((3, 2, 1), 2)]
)
@pytest.mark.parametrize("classes", [0, 2])
def test_probabilities_of_all_images_sum_to_one(shape, levels, classes):
    model = enlarge(
        small(image_shape=shape, levels=levels, channels=12, head_channels=12, classes=classes)
    )
    every = all_images(shape, levels)
    for label in range(max(1, classes)):
        labels = torch.full((len(every),), label) if classes else None
        log_prob = model.log_prob(every, labels)
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert log_prob.max() - log_prob.min() > 1


def test_log_prob_adds_the_chosen_log_probabilities():
    model = enlarge(small(image_shape=(2, 2, 3), levels=4))
    x = torch.randint(0, 4, (3, 2, 2, 3), dtype=torch.uint8)
    log_probs = model(x).log_softmax(dim=1)
    total = torch.zeros(3, dtype=torch.float64)
    for n, c, h, w in itertools.product(range(3), range(2), range(2), range(3)):
        total[n] += log_probs[n, int(x[n, c, h, w]), c, h, w].item()
    torch.testing.assert_close(model.log_prob(x).detach(), total)
    bits = -total / (12 * math.log(2))
    torch.testing.assert_close(model.bits_per_dim(x).detach(), bits)
    loss = model.loss(x)
    torch.testing.assert_close(loss["loss"].detach(), -total.mean())
    torch.testing.assert_close(loss["bits_per_dim"], bits.mean())


def test_a_layer_is_that_of_figure_2():
    """The gates, the vertical feature entering before the gate, the residual connection."""
    torch.manual_seed(0)
    layer = small(image_shape=(1, 4, 5)).double().layers[1]
    p = 6
    vertical, horizontal = torch.randn(2, 2, p, 4, 5, dtype=torch.float64)
    out_v, out_h = layer.vertical_gate, None
    assert out_v is None, "the last layer's vertical stack ends"
    layer = small(image_shape=(1, 4, 5), layers=3).double().layers[1]
    out_v, out_h = layer(vertical, horizontal, None, None)
    kernel = torch.zeros(2 * p, p, 3, 3, dtype=torch.float64)
    kernel[:, :, :2] = layer.vertical.weight.detach()
    rows = torch.conv2d(vertical, kernel, layer.vertical.bias, padding=1)
    torch.testing.assert_close(out_v, rows[:, :p].tanh() * rows[:, p:].sigmoid())
    above = torch.cat((torch.zeros_like(rows[:, :, :1]), rows[:, :, :-1]), dim=2)
    left = layer.horizontal.weight.detach().clone()
    left[..., 2] = 0
    mixed = torch.conv2d(horizontal, left, layer.horizontal.bias, padding=(0, 1))
    mixed = mixed + torch.conv2d(above, layer.across.weight, layer.across.bias)
    gated = mixed[:, :p].tanh() * mixed[:, p:].sigmoid()
    expected = horizontal + torch.conv2d(gated, layer.out.weight, layer.out.bias)
    torch.testing.assert_close(out_h, expected)


def test_training_lowers_the_loss():
    model = small(image_shape=(3, 4, 5), channels=12, head_channels=12)
    x = torch.randint(0, 5, (8, 1, 4, 5), dtype=torch.uint8).expand(8, 3, 4, 5)
    before, after = train(model, 80, lambda: model.loss(x)["loss"], 1e-2)
    assert after < 0.8 * before


def test_a_label_is_a_bias_of_each_gate_for_its_own_image_everywhere():
    model = small(classes=3, layers=3)
    x = torch.zeros(4, 1, 5, 6, dtype=torch.uint8)
    first, second = (
        model(x, labels=torch.tensor(labels)) for labels in ([0, 0, 1, 2], [0, 1, 1, 2])
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[2:], second[2:])
    assert (first[1] != second[1]).flatten(2).any(dim=0).all()
    biases = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    assert len(biases) == 2 * 3 - 1
    for bias in biases:
        torch.nn.init.constant_(bias.weight, 0.3)
    same = model(x, labels=torch.tensor([0, 1, 2, 2]))
    torch.testing.assert_close(same[1:], same[:1].expand(3, -1, -1, -1, -1))


def test_an_embedding_enters_linearly_into_each_gate():
    model = small(embedding=4)
    x = torch.randint(0, 5, (2, 1, 5, 6), dtype=torch.uint8)
    h = torch.randn(2, 4)
    plain = small()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(x, embedding=torch.zeros(2, 4)), plain(x))
    assert not torch.allclose(model(x, embedding=h), plain(x))
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x, embedding=h)[0], h)
    assert (gradient[0] != 0).all()
    assert (gradient[1] == 0).all()


def test_samples_follow_the_probabilities_and_their_log_prob_is_reported():
    model = enlarge(small(image_shape=(1, 2, 2), levels=3, classes=2))
    every = all_images((1, 2, 2), 3)
    for label in (0, 1):
        labels = torch.full((4000,), label)
        drawn, log_prob = model.sample(4000, seed=label, labels=labels, return_log_prob=True)
        table = model.log_prob(every, labels[: len(every)]).detach()
        assert p_value(drawn, table.exp(), 3) > 1e-3
        torch.testing.assert_close(log_prob, table[index_of(drawn, 3)])


def test_samples_take_the_classes_in_turn_and_complete_images():
    model = small(classes=3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(model.sample(5, seed=1), model.sample(5, seed=1, labels=labels))
    known = torch.full((1, 5, 6), -1)
    known[:, 0] = 4
    drawn = model.sample(5, seed=1, known=known)
    assert (drawn[:, :, 0] == 4).all()
    assert (model.sample(5, seed=1, top_k=1) == model.sample(5, seed=2, top_k=1)).all()


def test_can_be_captured_and_replayed_on_other_images():
    model = small(image_shape=(3, 4, 5), classes=2, embedding=2).eval()
    a, b = torch.randint(0, 5, (2, 2, 3, 4, 5), dtype=torch.uint8)
    given = (torch.tensor([0, 1]), torch.randn(2, 2))
    with torch.no_grad():
        captured = make_fx(lambda x, labels, h: model(x, labels, h))(a, *given)
        other = (torch.tensor([1, 1]), torch.randn(2, 2))
        torch.testing.assert_close(captured(b, *other), model(b, *other))


X = torch.zeros(2, 1, 5, 6, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        ({}, {"labels": torch.tensor([0, 1])}, "no labels, as the model has classes=0"),
        ({"classes": 3}, {}, r"labels \[N\] in 0 \.\. 2, got labels=None"),
        ({"classes": 3}, {"labels": torch.tensor([0, 3])}, r"labels in 0 \.\. 2, .*largest=3"),
        ({"classes": 3}, {"labels": torch.tensor([0])}, r"labels \[2\] of integers.*\[1\]"),
        ({"classes": 3}, {"labels": torch.tensor([0.0, 1.0])}, r"labels \[2\] of integers"),
        ({}, {"embedding": torch.zeros(2, 4)}, "no embedding, as the model has none"),
        ({"embedding": 4}, {}, r"embedding \[2, 4\], got embedding=None"),
        ({"embedding": 4}, {"embedding": torch.zeros(2, 3)}, r"embedding \[2, 4\].*\[2, 3\]"),
    ],
)
def test_refuses_unfit_conditioning(fields, given, message):
    model = small(**fields)
    with pytest.raises(InputError, match=message):
        model.loss(X, **given)
    if given or not fields.get("classes"):
        with pytest.raises(InputError, match=message):
            model.sample(2, **given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_size": 4}, "odd kernel_size"),
        ({"kernel_size": 1}, "kernel_size to be an integer >= 3"),
        ({"inner_kernel_size": 2}, "odd inner_kernel_size"),
        ({"layers": 0}, "layers to be an integer >= 1"),
        ({"classes": -1}, "classes to be an integer >= 0"),
        ({"image_shape": (3, 4, 4), "channels": 7}, "channels to be a multiple of the 3 colours"),
    ],
)
def test_refuses_bad_settings(fields, message):
    with pytest.raises(InputError, match=message):
        small(**fields)
