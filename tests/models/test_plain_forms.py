"""The convolutional models against their equations in plain PyTorch, on a state dict's numbers.

The names and shapes read here are those that checkpoints hold: a state dict of another release
loads only if they stay.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from genfast._extension import references
from genfast.models import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    PixelCNN,
    PixelCNNConfig,
    PixelCNNPlusPlus,
    PixelCNNPlusPlusConfig,
)
from genfast.models._convolution import convolve


class State:
    """A state dict below a prefix, and the layers that its entries make."""

    def __init__(self, entries, prefix=""):
        self.entries, self.prefix = entries, prefix

    def __getitem__(self, name):
        return State(self.entries, f"{self.prefix}{name}.")

    def get(self, name):
        return self.entries.get(self.prefix + name)

    def has(self, name):
        return any(key.startswith(f"{self.prefix}{name}.") for key in self.entries)

    def conv(self, x, padding=(0, 0, 0, 0), stride=1):
        weight = self.get("weight")
        if weight is None:  # torch's weight norm: a length for each output, and a direction
            length = self.get("parametrizations.weight.original0")
            direction = self.get("parametrizations.weight.original1")
            weight = length * direction / direction.square().sum((1, 2, 3), keepdim=True).sqrt()
        if self.get("mask") is not None:
            weight = weight * self.get("mask")
        return F.conv2d(F.pad(x, padding), weight, self.get("bias"), stride)

    def same(self, x):
        height, width = self.get("weight").shape[2:]
        return self.conv(x, (width // 2, width // 2, height // 2, height // 2))


def scaled(x, levels):
    return x.double() * (2 / (levels - 1)) - 1


def relu_chain(state, x):
    for layer in sorted(
        {
            int(key[len(state.prefix) :].split(".")[0])
            for key in state.entries
            if key.startswith(state.prefix)
        }
    ):
        x = state[layer].same(F.relu(x))
    return x


def pixelcnn(state, config, x):
    features = state["stem"].same(scaled(x, config.levels))
    for block in range(config.blocks):
        features = features + relu_chain(state["blocks"][block]["layers"], features)
    logits = relu_chain(state["head"], features)
    colours, height, width = config.image_shape
    return logits.view(len(x), colours, config.levels, height, width).transpose(1, 2)


def gate(state, x, labels, embedding):
    condition = 0
    if state.has("of_label"):
        condition = condition + state["of_label"].get("weight")[labels][:, :, None, None]
    if state.has("of_embedding"):
        matrix = state["of_embedding"].get("weight")
        condition = condition + (embedding @ matrix.t())[:, :, None, None]
    f, g = (x + condition).chunk(2, dim=1)
    return torch.tanh(f) * torch.sigmoid(g)


def gated_pixelcnn(state, config, x, labels=None, embedding=None):
    vertical = horizontal = scaled(x, config.levels)
    for index in range(config.layers):
        layer = state["layers"][index]
        reach = layer["vertical"].get("weight").shape[3] // 2
        rows = layer["vertical"].conv(vertical, (reach, reach, reach, 0))
        above = F.pad(rows[:, :, :-1], (0, 0, 1, 0))
        mixed = layer["horizontal"].same(horizontal) + layer["across"].conv(above)
        out = layer["out"].conv(gate(layer["horizontal_gate"], mixed, labels, embedding))
        horizontal = out if index == 0 else out + horizontal
        if index < config.layers - 1:
            vertical = gate(layer["vertical_gate"], rows, labels, embedding)
    return relu_chain(state["head"], horizontal).view(-1, config.levels, *config.image_shape)


def concat_elu(x):
    return F.elu(torch.cat((x, -x), dim=1))


def gated_resnet(state, x, padding, aside=None, labels=None):
    inner = state["first"][1].conv(concat_elu(x), padding)
    if aside is not None:
        inner = inner + state["aside"].conv(concat_elu(aside))
    inner = state["second"][1].conv(concat_elu(inner), padding)
    if labels is not None:
        inner = inner + state["of_label"].get("weight")[labels][:, :, None, None]
    a, b = inner.chunk(2, dim=1)
    return x + a * torch.sigmoid(b)


DOWN, DOWN_RIGHT = (1, 1, 1, 0), (1, 0, 1, 0)


def with_random_numbers(model):
    """Biases and gains would else be zeros and ones, and hide that they are left out."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("colours", [1, 3])
def test_pixelcnn(colours) -> None:
    config = PixelCNNConfig(
        image_shape=(colours, 5, 6), levels=4, channels=6, blocks=2, kernel_size=5, head_channels=9
    )
    model = with_random_numbers(PixelCNN(config))
    x = torch.randint(0, 4, (2, colours, 5, 6))
    torch.testing.assert_close(model(x), pixelcnn(State(model.state_dict()), config, x))


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 1, 4), (1, 4, 1)])
def test_gated_pixelcnn(shape, conditioned) -> None:
    config = GatedPixelCNNConfig(
        image_shape=shape,
        levels=4,
        channels=6,
        layers=3,
        kernel_size=5,
        head_channels=6,
        classes=3 if conditioned else 0,
        embedding=2 if conditioned else 0,
    )
    model = with_random_numbers(GatedPixelCNN(config))
    x = torch.randint(0, 4, (2, *shape))
    given = (torch.tensor([2, 0]), torch.randn(2, 2).double()) if conditioned else ()
    expected = gated_pixelcnn(State(model.state_dict()), config, x, *given)
    torch.testing.assert_close(model(x, *given), expected)


def test_gated_resnets_of_pixelcnn_plus_plus() -> None:
    config = PixelCNNPlusPlusConfig(image_shape=(1, 8, 8), filters=4, resnets=1, classes=3)
    model = with_random_numbers(PixelCNNPlusPlus(config))
    state, labels = State(model.state_dict()), torch.tensor([2, 0])
    x, beside = torch.randn(2, 4, 6, 5).double(), torch.randn(2, 8, 6, 5).double()
    for name, padding, aside in (
        ("down_above", DOWN, None),
        ("down_left", DOWN_RIGHT, beside[:, :4]),
        ("up_above", DOWN, beside[:, 4:]),
        ("up_left", DOWN_RIGHT, beside),
    ):
        layer = getattr(model, name)[1][0]
        expected = gated_resnet(state[name][1][0], x, padding, aside, labels)
        torch.testing.assert_close(layer(x, aside, labels), expected)
    shrunk = state["shrink_left"][0][1].conv(x, DOWN_RIGHT, stride=2)
    torch.testing.assert_close(model.shrink_left[0](x), shrunk)


@pytest.mark.parametrize("addend", [None, "example", "pixels"])
@pytest.mark.parametrize("activation", [None, "gate", "concat_elu"])
@pytest.mark.parametrize("rectify", [False, True])
def test_a_convolution_in_parts_is_the_one_op(rectify, activation, addend) -> None:
    conv = torch.nn.Conv2d(3, 6, (2, 3)).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    size = {None: None, "example": (2, 6), "pixels": (2, 6, 5, 4)}[addend]
    after = {
        "padding": (1, 1, 1, 0),
        "addend": None if size is None else torch.randn(size, dtype=torch.float64),
        "activation": activation,
        "residual": torch.randn(2, {"gate": 3, "concat_elu": 12}.get(activation, 6), 5, 4).double(),
    }
    with references():
        expected = convolve(conv, x, rectify=rectify, **after)
    torch.testing.assert_close(convolve(conv, x, rectify=rectify, **after), expected)


def test_a_kernel_in_one_dimension_lies_along_the_columns() -> None:
    conv, x = torch.nn.Conv1d(3, 5, 2, stride=2), torch.randn(2, 3, 1, 9)
    expected = conv(F.pad(x[:, :, 0], (1, 0)))
    for context in (nullcontext(), references()):
        with context:
            out = convolve(conv, x, padding=(1, 0, 0, 0))
        torch.testing.assert_close(out[:, :, 0], expected)
