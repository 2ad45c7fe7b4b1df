"""PixelCNN++: what it sees, its probabilities, its structure, and that it learns."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from genfast.errors import InputError
from genfast.models import PixelCNNPlusPlus, PixelCNNPlusPlusConfig
from genfast.nn import logistic_mixture_log_prob, logistic_mixture_nll
from tests.models.influence import enlarge, influences, train
from tests.sampling.enumerated import all_images, index_of, p_value


def small(**fields):
    return PixelCNNPlusPlus(
        PixelCNNPlusPlusConfig(
            **{
                "image_shape": (1, 8, 8),
                "levels": 5,
                "filters": 4,
                "resnets": 1,
                "mixtures": 2,
                **fields,
            }
        )
    )


@pytest.mark.parametrize(
    ("shape", "resnets"), [((1, 8, 12), 1), ((3, 8, 8), 2), ((1, 4, 4), 2), ((1, 12, 4), 1)]
)
def test_parameters_see_earlier_pixels_only_and_miss_none_nearby(shape, resnets):
    model = small(image_shape=shape, resnets=resnets).double().eval()
    _, height, width = shape
    sites = list(itertools.product(range(height), range(width)))
    found = influences(model, torch.randint(0, 5, shape), sites) != 0
    for (row, column), seen in zip(sites, found, strict=True):
        earlier = torch.zeros(height, width, dtype=torch.bool)
        earlier[:row] = True
        earlier[row, :column] = True
        assert not seen[:, ~earlier].any(), (row, column)
        # At the full resolution alone, the layers reach this far.
        for r, c in itertools.product(range(height), range(width)):
            if earlier[r, c] and row - r <= 4 and abs(column - c) <= 4:
                assert seen[:, r, c].all(), ((row, column), (r, c))


def test_the_lowest_resolution_reaches_all_rows_above():
    model = small(image_shape=(1, 16, 16), resnets=2).double().eval()
    seen = influences(model, torch.randint(0, 5, (1, 16, 16)), [(15, 15)])[0, 0] != 0
    assert seen[:15].all()
    # An odd row is in no half of its own yet, so in it the full resolution alone reaches back.
    assert not seen[15, 0]
    assert seen[15, 8:15].all()


def test_probabilities_of_all_images_sum_to_one():
    model = enlarge(small(image_shape=(1, 4, 4), levels=2, filters=2, mixtures=2), 2.0)
    every = all_images((1, 4, 4), 2)
    with torch.no_grad():
        log_prob = torch.cat([model.log_prob(part) for part in every.split(8192)])
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-11)
    assert log_prob.max() - log_prob.min() > 1


def test_probabilities_of_the_last_pixels_colours_sum_to_one():
    """Those before it are fixed, so their probability cancels."""
    model = enlarge(small(image_shape=(3, 4, 4), levels=3), 2.0)
    x = torch.randint(0, 3, (1, 3, 4, 4), dtype=torch.uint8).repeat(27, 1, 1, 1)
    x[:, :, 3, 3] = torch.tensor(list(itertools.product(range(3), repeat=3)), dtype=torch.uint8)
    log_prob = model.log_prob(x).detach()
    x[:, :, 3, 3] = x[:1, :, 3, 3]
    alone = model(x)[:1]
    others = logistic_mixture_log_prob(alone, x[:1], levels=3)[0].flatten()[:-1].sum()
    assert (log_prob - others).exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_prob.std() > 0.01


def test_log_prob_is_that_of_the_mixture_and_bits_its_unit():
    model = small(image_shape=(3, 4, 8), levels=256).eval()
    x = torch.randint(0, 256, (2, 3, 4, 8), dtype=torch.uint8)
    parameters = model(x).detach()
    assert parameters.shape == (2, 20, 4, 8)
    total = torch.zeros(2, dtype=torch.float64)
    for n, row, column in itertools.product(range(2), range(4), range(8)):
        total[n] += pixel_log_prob(parameters[n, :, row, column], x[n, :, row, column], 2)
    torch.testing.assert_close(model.log_prob(x).detach().double(), total, rtol=1e-5, atol=1e-4)
    bits = -model.log_prob(x) / (96 * math.log(2))
    torch.testing.assert_close(model.bits_per_dim(x), bits)
    torch.testing.assert_close(model.loss(x)["bits_per_dim"], bits.mean().detach())


def pixel_log_prob(parameters, levels, mixtures):
    """The formulas of the paper's sections 2.1 and 2.2 in float64, one pixel, 256 levels."""
    parameters = parameters.double()
    logits, rest = parameters[:mixtures], parameters[mixtures:].view(3, 3, mixtures)
    x = levels.double() / 127.5 - 1
    total = torch.zeros(mixtures, dtype=torch.float64)
    for colour in range(3):
        mean = rest[colour, 0].clone()
        if colour == 1:
            mean += rest[0, 2].tanh() * x[0]
        if colour == 2:
            mean += rest[1, 2].tanh() * x[0] + rest[2, 2].tanh() * x[1]
        scale = rest[colour, 1].clamp(min=-7).exp()
        upper = ((x[colour] + 1 / 255 - mean) / scale).sigmoid()
        lower = ((x[colour] - 1 / 255 - mean) / scale).sigmoid()
        upper = torch.ones_like(upper) if levels[colour] == 255 else upper
        lower = torch.zeros_like(lower) if levels[colour] == 0 else lower
        total += (upper - lower).log()
    return (logits.log_softmax(0) + total).logsumexp(0)


def test_a_resnet_is_gated_and_starts_close_to_the_identity():
    model = small(filters=6, dropout=0.0)
    layer = model.down_left[0][0]
    x, aside = torch.randn(2, 2, 6, 8, 8)

    def elu(z):
        return F.elu(torch.cat((z, -z), 1))

    def shifted(module, z):
        return F.conv2d(F.pad(z, (1, 0, 1, 0)), module[1].weight, module[1].bias)

    inner = shifted(layer.first, elu(x))
    inner = inner + F.conv2d(elu(aside), layer.aside.weight, layer.aside.bias)
    inner = shifted(layer.second, elu(inner))
    expected = x + inner[:, :6] * inner[:, 6:].sigmoid()
    torch.testing.assert_close(layer(x, aside, None), expected)
    assert (expected - x).std() < 0.3 * x.std()


def test_every_convolution_has_a_norm_for_each_output():
    model = small()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == len(
        [name for name, _ in model.named_parameters() if name.endswith("weight.original0")]
    )
    for conv in convolutions:
        norms = conv.parametrizations.weight.original0
        outputs = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
        assert norms.shape[outputs] == norms.numel() == conv.weight.shape[outputs]
        others = tuple(axis for axis in range(4) if axis != outputs)
        torch.testing.assert_close(
            torch.linalg.vector_norm(conv.weight, dim=others), norms.flatten()
        )


def test_gradients_stay_finite_however_wide_a_logistic_becomes():
    parameters = torch.tensor([0.5, -26.0, 0.0]).view(1, 3, 1, 1).repeat(5, 1, 1, 1)
    for log_scale in (-200.0, -7.0, 50.0, 87.5, 95.0, 110.0, 1000.0):
        parameters[:, 2] = log_scale
        given = parameters.clone().requires_grad_()
        x = torch.arange(5).view(5, 1, 1, 1)
        nll = logistic_mixture_nll(given, x, levels=5).sum()
        (gradient,) = torch.autograd.grad(nll, given)
        assert nll.isfinite()
        assert gradient.isfinite().all(), log_scale


def test_dropout_acts_in_training_only():
    model, x = small(dropout=0.5), torch.randint(0, 5, (2, 1, 8, 8), dtype=torch.uint8)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 8)])
def test_training_lowers_the_loss(shape):
    model = small(image_shape=shape, filters=8, mixtures=3, dropout=0.1)
    x = torch.randint(0, 2, (8, 1, *shape[1:]), dtype=torch.uint8).expand(8, *shape) * 4
    before, after = train(model, 60, lambda: model.loss(x)["loss"], 5e-3)
    assert after < 0.7 * before


def test_a_label_changes_its_own_image_only():
    model = small(classes=3).eval()
    x = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    first, second = (model(x, torch.tensor(labels)) for labels in ([0, 1, 2], [0, 2, 2]))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[2], second[2])
    assert (first[1] != second[1]).flatten(1).all()


def test_samples_follow_the_probabilities():
    model = enlarge(small(image_shape=(1, 4, 4), levels=2, filters=2, classes=2), 2.0)
    every = all_images((1, 4, 4), 2)
    # The first row alone: it has few enough values, and depends on nothing below it.
    labels = torch.ones(3000, dtype=torch.int64)
    drawn, log_prob = model.sample(3000, seed=3, labels=labels, return_log_prob=True)
    with torch.no_grad():
        parts = [model.log_prob(part, labels[:1].expand(len(part))) for part in every.split(8192)]
        again = model.log_prob(drawn, labels)
    torch.testing.assert_close(log_prob, again)
    rows = torch.cat(parts).exp().view(16, -1).sum(dim=1)
    assert p_value(drawn[:, :, :1], rows, 2) > 1e-3
    assert len(index_of(drawn[:, :, :1], 2).unique()) > 4


def test_can_be_captured_and_replayed_on_other_images():
    model = small(image_shape=(3, 8, 4), classes=2).eval()
    a, b = torch.randint(0, 5, (2, 2, 3, 8, 4), dtype=torch.uint8)
    with torch.no_grad():
        captured = make_fx(lambda x, labels: model(x, labels))(a, torch.tensor([0, 1]))
        other = torch.tensor([1, 1])
        torch.testing.assert_close(captured(b, other), model(b, other))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_shape": (1, 8, 6)}, "H and W divisible by 4"),
        ({"image_shape": (2, 8, 8)}, "1 or 3 colours"),
        ({"dropout": 1.5}, "dropout in 0 .. 1"),
        ({"mixtures": 0}, "mixtures"),
        ({"resnets": 0}, "resnets"),
        ({"classes": 1.0}, "classes"),
    ],
)
def test_refuses_bad_settings(fields, message):
    with pytest.raises(InputError, match=message):
        small(**fields)


def test_refuses_unfit_labels_and_options():
    with pytest.raises(InputError, match="no labels"):
        small().sample(2, labels=torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"labels in 0 \.\. 1"):
        small(classes=2).sample(2, labels=torch.tensor([0, 2]))
    with pytest.raises(InputError, match="method in"):
        small().sample(2, method="quick")
