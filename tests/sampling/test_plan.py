"""Plans of captured models, run by the checking interpreter, against the model's own forward."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.errors import CausalityError, InputError
from genfast.nn import MaskedConv2d
from genfast.sampling.capture.model import capture
from genfast.sampling.lower.lowering import lower
from genfast.sampling.plan.describe import cache_bytes, describe, total_flop
from genfast.sampling.plan.planner import plan
from genfast.sampling.program import Gemm, Pointwise, Program

from .interpreter import Interpreter


def program_of(
    model: nn.Module,
    x: Tensor,
    draws: Sequence[tuple[int, int, Sequence[int]]],
    predicts: str | None = None,
    encoded: int = 1,
) -> Program:
    captured = capture(model, x, {})
    colours = (x.shape[1] if x.dim() > 2 else 1) // encoded
    return plan(lower(captured), colours, encoded, draws, predicts, x.dtype, x.device)


def check(
    model: nn.Module,
    shape: Sequence[int],
    draws: Sequence[tuple[int, int, Sequence[int]]],
    predicts: str | None = None,
    pixels: Callable[[Tensor], Tensor] = lambda out: out,
) -> Program:
    """Compare the interpreted plan's parameters with the forward; return the plan.

    pixels: brings the output to [N, features, H, W], aligned with the pixels it predicts.
    """
    model = model.double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64)
    program = program_of(model, x, draws, predicts)
    grid = x.reshape(2, -1, program.height, program.width)
    found = Interpreter(program, 2).forced(grid)
    expected = pixels(model(x)).detach()
    expected = expected.reshape(2, expected.shape[1], program.height, program.width).numpy()
    for (_, _, features), parameters in zip(draws, found, strict=True):
        wanted = expected[:, list(features)]
        defined = ~np.isnan(wanted)
        assert defined.any()
        np.testing.assert_array_equal(np.isnan(parameters), ~defined)
        np.testing.assert_allclose(parameters[defined], wanted[defined], rtol=1e-11, atol=1e-12)
    return program


def whole(features: int, colours: int = 1) -> list[tuple[int, int, list[int]]]:
    return [(0, colours, list(range(features)))]


def stack(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def plain() -> nn.Module:
    return stack(
        MaskedConv2d("A", 1, 9, 5, padding=2),
        nn.ELU(),
        MaskedConv2d("B", 9, 7, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(7, 4, 1),
    )


def test_the_rows_above_are_added_up_once_per_row() -> None:
    program = check(plain(), (1, 5, 7), whole(4))
    spans = [i for i in program.instructions if i.when.span]
    assert len(spans) == 2
    pixels = [i for i in program.instructions if isinstance(i, Gemm) and not i.when.span]
    # Left of the centre 2 of 25 taps, then 1 of 9 and the centre, then 1 of 1.
    assert [len(gemm.taps) for gemm in pixels] == [2, 2, 1]
    # Every multiplication of a live tap is done once.
    live = 12 * 9 + 5 * 9 * 7 + 7 * 4
    assert total_flop(program) == 2 * live * 35


class Residual(nn.Module):
    """Sums of a convolution and what went before, and of the results of all layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = MaskedConv2d("A", 1, channels, 3, padding=1)
        self.mixes = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv2d(channels, 6, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        total: Tensor | float = 0.0
        for mix, skip in zip(self.mixes, self.skips, strict=True):
            z = torch.tanh(h)
            total = skip(z) + total
            h = h + mix(z)
        assert isinstance(total, Tensor)
        return F.relu(total) + self.skips[0](F.relu(h))


def test_a_convolution_begins_from_what_it_is_added_to() -> None:
    program = check(Residual(5), (1, 4, 6), whole(6))
    sums = [i for i in program.instructions if isinstance(i, Gemm) and i.initial]
    # The stem's late taps, two skips, two and the last mix, the output.
    assert len(sums) == 1 + 2 + 3 + 1
    assert all(gemm.bias is not None for gemm in sums[1:])
    pointwise = [i for i in program.instructions if isinstance(i, Pointwise)]
    added = [i for i in pointwise if any(step.op == "add" for step in i.steps)]
    assert not added


def test_a_sum_that_reads_a_convolution_twice_stays_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = MaskedConv2d("A", 1, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.conv(x)
            return h + h

    program = check(Twice(), (1, 4, 5), whole(4))
    assert any(isinstance(i, Pointwise) for i in program.instructions)


class TwoStacks(nn.Module):
    """Vertical stack of cropped kernels, shifted down into a horizontal stack."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.v0, self.h0 = nn.Conv2d(1, channels, (2, 3)), nn.Conv2d(1, channels, (1, 2))
        self.vs = nn.ModuleList(nn.Conv2d(channels, 2 * channels, (2, 3)) for _ in range(layers))
        self.hs = nn.ModuleList(nn.Conv2d(channels, 2 * channels, (1, 2)) for _ in range(layers))
        self.links = nn.ModuleList(nn.Conv2d(2 * channels, 2 * channels, 1) for _ in range(layers))
        self.head = nn.Conv2d(channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        v = self.v0(F.pad(x, (1, 1, 2, -1)))
        h = self.h0(F.pad(x, (2, -1, 0, 0)))
        for conv_v, conv_h, link in zip(self.vs, self.hs, self.links, strict=True):
            wide = conv_v(F.pad(v, (1, 1, 1, 0)))
            mixed = conv_h(F.pad(h, (1, 0, 0, 0))) + link(wide)
            h = h + torch.tanh(mixed[:, ::2]) * torch.sigmoid(mixed[:, 1::2])
            a, b = wide.chunk(2, 1)
            v = torch.tanh(a) * torch.sigmoid(b)
        out: Tensor = self.head(h)
        return out


def test_the_vertical_stack_runs_per_row_and_little_is_kept() -> None:
    program = check(TwoStacks(4, 3), (1, 6, 5), whole(3))
    pixel_gemms = [i for i in program.instructions if isinstance(i, Gemm) and not i.when.span]
    assert sum(len(gemm.taps) for gemm in pixel_gemms) == 2 + 3 * 2 + 1
    whole_values = 8 * sum(b.features * b.height * b.width for b in program.buffers)
    assert cache_bytes(program) < 0.5 * whole_values


class Pyramid(nn.Module):
    """Two resolutions: stride 2 down and transposed up, in both streams, with a long skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 5, (2, 3))
        self.left = nn.Conv2d(1, 5, (2, 2))
        self.down = nn.Conv2d(5, 6, (2, 2), stride=2)
        self.low = nn.Conv2d(6, 6, (2, 2))
        self.up = nn.ConvTranspose2d(6, 5, (2, 2), stride=2)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = self.first(F.pad(x, (1, 1, 2, -1)))
        ul = u + self.left(F.pad(x, (2, -1, 1, 0)))
        low = self.down(F.pad(ul, (1, 0, 1, 0)))
        low = F.elu(torch.cat([low, -low], 1))[:, 3:9] + self.low(F.pad(low, (1, 0, 1, 0)))
        up = self.up(low)
        out: Tensor = self.head(torch.cat([up[:, :, : x.shape[2], : x.shape[3]], ul], 1))
        return out


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 6), (1, 6, 7)])
def test_coarse_layers_run_at_every_second_pixel(shape: tuple[int, int, int]) -> None:
    program = check(Pyramid(), shape, whole(3))
    scales = {(i.when.row_scale, i.when.column_scale) for i in program.instructions}
    assert scales == {(1, 1), (2, 2)}


@pytest.mark.parametrize("layout", ["blocks", "interleaved"])
def test_colours_are_drawn_in_order(layout: str) -> None:
    masked = {"data_channels": 3, "channel_layout": layout}
    model = stack(
        MaskedConv2d("A", 3, 12, 3, padding=1, **masked),
        nn.ReLU(),
        MaskedConv2d("B", 12, 9, 3, padding=1, **masked),
        nn.Tanh(),
        MaskedConv2d("B", 9, 6, 1, **masked),
    )
    by_colour = [[c, c + 3] if layout == "interleaved" else [2 * c, 2 * c + 1] for c in range(3)]
    program = check(model, (3, 4, 5), [(c, 1, f) for c, f in enumerate(by_colour)])
    assert {i.when.after for i in program.instructions if not i.when.span} >= {0, 1, 2}


class Wave(nn.Module):
    """Dilated gated layers with skips; padded, or not ("valid"); shifted, or not ("next")."""

    def __init__(self, dilations: Sequence[int], valid: bool, shift: bool, width: int = 4) -> None:
        super().__init__()
        self.valid, self.shift, self.dilations = valid, shift, tuple(dilations)
        self.first = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=d) for d in dilations)
        self.skips = nn.ModuleList(nn.Conv1d(width, 5, 1) for _ in dilations)
        self.head = nn.Conv1d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.pad(x, (1, -1)) if self.shift else x)
        skips: list[Tensor] = []
        for layer, skip, d in zip(self.layers, self.skips, self.dilations, strict=True):
            g = layer(h if self.valid else F.pad(h, (d, 0)))
            z = torch.tanh(g[:, ::2]) * torch.sigmoid(g[:, 1::2])
            h = h[:, :, h.shape[2] - z.shape[2] :] + z
            skips.append(skip(z))
        total = torch.stack([s[:, :, s.shape[2] - h.shape[2] :] for s in skips]).sum(0)
        out: Tensor = self.head(F.relu(total))
        return out


def shifted_right(out: Tensor, by: int, length: int) -> Tensor:
    """Align outputs with the samples they predict: NaN where there is none."""
    full = torch.full((*out.shape[:2], length), torch.nan, dtype=out.dtype)
    kept = min(out.shape[2], length - by)
    full[:, :, by : by + kept] = out[:, :, :kept]
    return full


@pytest.mark.parametrize("length", [40, 37, 5])
def test_dilated_sound(length: int) -> None:
    program = check(Wave([1, 2, 4, 8, 16], valid=False, shift=True), (1, length), whole(3))
    assert program.height == 1
    if length == 40:
        assert program.span == 8
        spans = [i for i in program.instructions if isinstance(i, Gemm) and i.when.span]
        # Taps that reach at least a span back are added up for the whole span.
        assert len(spans) == 2


def test_next_sample_prediction() -> None:
    model = Wave([1, 2, 4], valid=False, shift=False)
    check(model, (1, 21), whole(3), pixels=lambda out: shifted_right(out, 1, 21))


def test_valid_convolutions_predict_from_the_receptive_field_on() -> None:
    model = Wave([1, 2, 4, 8], valid=True, shift=False)
    check(model, (1, 30), whole(3), pixels=lambda out: shifted_right(out, 16, 30))


def test_one_dimension_without_channels() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wave = Wave([1, 2], valid=False, shift=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.wave(x.unsqueeze(1))
            return out

    check(Line(), (11,), whole(3))


def test_non_causal_models_are_refused_with_the_layer() -> None:
    model = plain().double()
    with torch.no_grad():
        model[2].mask[:, :, 1, 2] = 1
        model[2].weight[3, 4, 1, 2] = 1e-4
    x = torch.randn(2, 1, 5, 7, dtype=torch.float64)
    with pytest.raises(CausalityError, match=r"tap at row \+0, column \+1") as caught:
        program_of(model, x, whole(4))
    assert "conv2d" in str(caught.value)


def test_input_features_must_fit() -> None:
    x = torch.randn(2, 1, 5, 7, dtype=torch.float64)
    with pytest.raises(InputError, match="expected an input of 2 colours"):
        plan(lower(capture(plain().double(), x, {})), 2, 1, whole(4), None, x.dtype, x.device)


def test_description_names_what_runs_when() -> None:
    text = describe(program_of(plain().double(), torch.zeros(2, 1, 5, 7).double(), whole(4)))
    assert "Once per row" in text
    assert "Once per pixel" in text
    assert "FLOP a pixel" in text
    assert "Caches" in text
