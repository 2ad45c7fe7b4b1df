"""PixelCNN: its order, its probabilities, and that it learns."""

import itertools
import math

import pytest
import torch

from genfast.models import PixelCNN, PixelCNNConfig
from tests.sampling.enumerated import all_images, tiny_pixelcnn


@pytest.mark.parametrize(
    ("shape", "kernel_size", "blocks"),
    [((1, 4, 5), 7, 2), ((3, 3, 4), 3, 1), ((2, 4, 3), 5, 2), ((3, 3, 3), 1, 1)],
)
def test_logits_depend_on_earlier_pixels_and_colours_only(shape, kernel_size, blocks):
    config = PixelCNNConfig(shape, 5, 48, blocks, kernel_size, 48)
    model = PixelCNN(config).double()
    x = torch.randint(0, 5, (1, *shape)).double().requires_grad_()
    weights = torch.randn(5, dtype=torch.float64)
    order = sorted(
        itertools.product(*map(range, shape)), key=lambda place: (place[1], place[2], place[0])
    )
    reached = 0
    for rank, (channel, row, column) in enumerate(order):
        logits = model(x)[0, :, channel, row, column]
        (gradient,) = torch.autograd.grad(logits @ weights, x)
        later = [gradient[0, c, h, w].item() for c, h, w in order[rank:]]
        assert all(value == 0 for value in later), (channel, row, column)
        earlier = [gradient[0, c, h, w].item() for c, h, w in order[:rank]]
        reached += any(value != 0 for value in earlier)
        previous_colours = gradient[0, :channel, row, column]
        assert (previous_colours != 0).all(), (channel, row, column)
    if kernel_size > 1:
        assert reached == len(order) - 1


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 2, 2), 3), ((1, 2, 2), 2), ((2, 1, 2), 3), ((3, 2, 1), 2)]
)
def test_probabilities_of_all_images_sum_to_one(shape, levels):
    model = tiny_pixelcnn(shape, levels)
    log_prob = model.log_prob(all_images(shape, levels))
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_prob.max() - log_prob.min() > 1


def test_log_prob_adds_the_chosen_log_probabilities():
    model = tiny_pixelcnn((2, 2, 3), 4)
    x = torch.randint(0, 4, (3, 2, 2, 3), dtype=torch.uint8)
    log_probs = model(x).log_softmax(dim=1)
    total = torch.zeros(3, dtype=torch.float64)
    for n, c, h, w in itertools.product(range(3), range(2), range(2), range(3)):
        total[n] += log_probs[n, int(x[n, c, h, w]), c, h, w].item()
    torch.testing.assert_close(model.log_prob(x).detach(), total)
    expected = -total / (12 * math.log(2))
    torch.testing.assert_close(model.bits_per_dim(x).detach(), expected)
    loss = model.loss(x)
    torch.testing.assert_close(loss["loss"].detach(), -total.mean())
    torch.testing.assert_close(loss["bits_per_dim"], expected.mean())


def test_blocks_are_residual_and_hold_two_h_channels():
    model = PixelCNN(PixelCNNConfig(channels=6, blocks=2, head_channels=6))
    block = model.blocks[0]
    x = torch.randn(1, 12, 3, 3)
    assert [layer.out_channels for layer in block.layers[1::2]] == [6, 6, 12]
    assert not torch.equal(block(x), x)
    torch.nn.init.zeros_(block.layers[-1].weight)
    torch.nn.init.zeros_(block.layers[-1].bias)
    torch.testing.assert_close(block(x), x)


def test_one_step_lowers_the_loss():
    model = PixelCNN(PixelCNNConfig(image_shape=(3, 6, 5), levels=4, channels=6, head_channels=6))
    x = torch.randint(0, 4, (8, 3, 6, 5), dtype=torch.uint8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model.loss(x)["loss"]
    before.backward()
    optimizer.step()
    assert model.loss(x)["loss"] < before


def test_half_precision_likelihood_is_summed_in_float32():
    model = PixelCNN(PixelCNNConfig())
    x = torch.randint(0, 17, (4, 1, 8, 8), dtype=torch.uint8)
    exact = model.log_prob(x)
    half = model.to(torch.bfloat16).log_prob(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=0)


def test_completion_and_temperature_reach_the_sampler():
    model = tiny_pixelcnn((1, 3, 3), 3)
    known = torch.tensor([[0, 1, 2], [-1, -1, -1], [-1, -1, -1]])
    drawn = model.sample(4, known=known, temperature=0.7)
    assert torch.equal(drawn[:, 0, 0], known[0].to(torch.uint8).expand(4, 3))
