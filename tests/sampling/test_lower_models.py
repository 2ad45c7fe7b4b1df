"""Whole models, lowered, against their own forward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genfast
from genfast.sampling.capture.model import capture
from genfast.sampling.conditioning import traced_conditions
from genfast.sampling.lower.lowering import lower
from genfast.sampling.model_call import ModelCall
from tests.sampling.graphs import compiled, run
from tests.sampling.zoo import ZOO


def agrees(model: nn.Module, x: Tensor, atol: float = 1e-12) -> None:
    graph, captured = compiled(model, x)
    with torch.no_grad():
        expected = model.eval()(x)
    torch.testing.assert_close(run(graph, captured, x), expected, rtol=0, atol=atol)


# Compiled as lines; `test_zoo.py` compares what they compute.
LINES = ("start token and all", "pixels of three colours", "colours as tokens")


@pytest.mark.parametrize("name", [name for name in ZOO if not any(each in name for each in LINES)])
def test_zoo(name: str) -> None:
    entry = ZOO[name]
    model = entry.build()
    call = ModelCall(model, entry.event_shape, entry.distribution())
    examples = traced_conditions(entry.condition(2))
    captured = capture(model, call.example(examples), examples)
    graph = lower(captured)
    x = torch.cat([call.as_input(call.random_planes(seed)) for seed in (1, 2)])[:3]
    conditions = entry.condition(3)
    expected = call.run(x, conditions)
    if entry.features_last:
        expected = expected.movedim(-1, 1)
    out = run(graph, captured, x, **conditions)
    assert len(out) == 3
    torch.testing.assert_close(out.reshape(expected.shape), expected, rtol=0, atol=1e-12)


class ZeroedDirection(nn.Module):
    """Causal by zeros written to the direction of a weight norm, before or after it is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        with pytest.warns(FutureWarning, match="weight_norm"):
            self.conv = nn.utils.weight_norm(nn.Conv2d(inputs, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 2, 0))
        self.conv.weight_v.data[:, :, -1, 1:].zero_()
        return F.elu(self.conv(x))


def test_weight_norm_whose_direction_is_zeroed() -> None:
    model = nn.Sequential(ZeroedDirection(1, 5), ZeroedDirection(5, 3)).double()
    agrees(model, torch.randn(3, 1, 5, 4, dtype=torch.float64))


class RowsByThemselves(nn.Module):
    """One-dimensional convolutions over rows, then over columns, with the others in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.down = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows = x.permute(0, 2, 1, 3).reshape(n * h, c, w)
        rows = torch.tanh(self.along(F.pad(rows, (2, 0)))).view(n, h, 4, w)
        columns = rows.permute(0, 3, 2, 1).reshape(n * w, 4, h)
        out = self.down(F.pad(columns, (1, 0)))
        return out.view(n, w, 3, h).permute(0, 2, 3, 1)


def test_rows_and_columns_as_sequences() -> None:
    agrees(RowsByThemselves().double(), torch.randn(3, 2, 4, 5, dtype=torch.float64))


class SoundAsImage(nn.Module):
    """Two-dimensional convolutions over a sound [N, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, (1, 3), dilation=(1, 2))
        self.second = nn.Conv2d(4, 4, (3, 2), padding=(1, 0), groups=2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(x[:, None, None], (4, 0, 0, 0))
        h = F.glu(torch.cat([self.first(h), self.first(h)], 1).sin(), 1)
        return self.second(F.pad(h, (1, 0))).squeeze(2)


def test_sound_as_an_image() -> None:
    model, x = SoundAsImage().double(), torch.randn(3, 9, dtype=torch.float64)
    graph, captured = compiled(model, x)
    out = run(graph, captured, x)[:, :, 0]
    torch.testing.assert_close(out, model(x), rtol=0, atol=1e-12)


class ImageOfOneRow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (3, 3), padding=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, :1] * 2


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1)])
def test_images_of_one_row_or_column(size: tuple[int, int]) -> None:
    agrees(ImageOfOneRow().double(), torch.randn(3, 2, *size, dtype=torch.float64))


class FlattenedPixels(nn.Module):
    """Logits [N * H * W, K], as losses like them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, (2, 3), padding=1)
        self.dense = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)[:, :, :-1].permute(0, 2, 3, 1).contiguous()
        return self.dense(h.view(-1, 4))


def test_flattened_outputs() -> None:
    model, x = FlattenedPixels().double(), torch.randn(3, 1, 4, 5, dtype=torch.float64)
    graph, captured = compiled(model, x)
    assert graph.output_sizes == (3,)
    out = run(graph, captured, x).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(out, model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["N K C H W", "N C K H W", "N K H W C"])
def test_output_layouts(layout: str) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x).view(len(x), 2, 3, *x.shape[2:])
            if layout == "N K C H W":
                return out.transpose(1, 2)
            return out if layout == "N C K H W" else out.permute(0, 2, 3, 4, 1)

    model, x = Head().double(), torch.randn(3, 2, 3, 4, dtype=torch.float64)
    graph, captured = compiled(model, x)
    out, expected = run(graph, captured, x), model(x)
    assert graph.output_sizes == ((2, 3) if layout == "N C K H W" else (3, 2))
    expected = expected.movedim(-1, 2) if layout == "N K H W C" else expected
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert sum(hasattr(value.body, "taps") for value in graph.values) == 1
    assert len(graph.values) == 2


def test_our_pixelcnn() -> None:
    config = genfast.models.PixelCNNConfig(
        image_shape=(3, 4, 5), levels=4, channels=6, blocks=2, head_channels=9
    )
    model = genfast.models.PixelCNN(config).double()
    x = torch.randint(4, (3, 3, 4, 5))
    agrees(model, x)
    graph, _ = compiled(model, x)
    first = next(value for value in graph.values if hasattr(value.body, "taps"))
    assert len(first.body.taps) == 3 * 7 + 4  # the rows above and what is left, and the centre


def test_values_that_the_output_does_not_need_are_dropped() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x.flip(2))

    graph, _ = compiled(TwoHeads(), torch.randn(2, 1, 3, 3))
    assert [type(value.body).__name__ for value in graph.values] == ["Input", "Conv"]


def test_a_deep_model_is_lowered_without_recursion() -> None:
    layers = [nn.Conv2d(1, 1, 1) for _ in range(700)]
    model = nn.Sequential(*layers).double()
    for layer in layers:
        nn.init.ones_(layer.weight)
    agrees(model, torch.randn(2, 1, 1, 2, dtype=torch.float64))
