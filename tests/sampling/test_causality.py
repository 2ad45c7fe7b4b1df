"""What the causality report says, on models whose dependence is known by construction."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genfast
from genfast.errors import InputError, UnsupportedModelError
from genfast.nn import MaskedConv2d
from genfast.sampling.probe.causality import CausalityReport

Shape = tuple[int, ...]


def report(model: nn.Module, shape: Shape, **options: str) -> CausalityReport:
    distribution = genfast.Categorical(4, values="unit", layout=options.pop("layout", None))
    return genfast.check_causality(model.double(), shape, distribution=distribution, **options)


def masked(*kernels: int, levels: int = 4) -> nn.Module:
    layers: list[nn.Module] = [MaskedConv2d("A", 1, 6, kernels[0], padding=kernels[0] // 2)]
    for kernel in kernels[1:]:
        layers += [nn.ReLU(), MaskedConv2d("B", 6, 6, kernel, padding=kernel // 2)]
    return nn.Sequential(*layers, nn.Conv2d(6, levels, 1))


def test_receptive_field_of_a_masked_stack() -> None:
    found = report(masked(5, 3), (1, 9, 11))
    assert found.causal
    assert found.leak is None
    # Two and one rows up; two and one columns left; in rows above as many to the right.
    assert (found.rows, found.columns_left, found.columns_right) == (3, 3, 3)
    assert found.offset == 0


def test_a_model_that_sees_nothing_has_no_receptive_field() -> None:
    model = masked(3)
    with torch.no_grad():
        model[-1].weight.zero_()
    found = report(model, (1, 4, 4))
    assert found.causal
    assert (found.rows, found.columns_left, found.columns_right) == (0, 0, 0)


def test_colours_in_order_or_not() -> None:
    grouped = {"data_channels": 3, "channel_layout": "blocks"}
    ordered = nn.Sequential(MaskedConv2d("A", 3, 12, 3, padding=1, **grouped))
    found = report(ordered, (3, 4, 4), layout="CK")
    assert found.colours_in_order
    assert "each colour sees those before it" in str(found)
    apart = nn.Sequential(MaskedConv2d("A", 3, 12, 3, padding=1))
    found = report(apart, (3, 4, 4), layout="CK")
    assert found.causal
    assert not found.colours_in_order
    assert "colour" not in str(found)


class Line(nn.Module):
    """A causal convolution; `shift` columns of the input are dropped, `ahead` are seen early."""

    def __init__(self, pad: tuple[int, int], levels: int = 4) -> None:
        super().__init__()
        self.pad, self.conv = pad, nn.Conv1d(1, levels, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, self.pad))
        return out


@pytest.mark.parametrize(
    ("pad", "predicts", "offset", "causal"),
    [
        ((3, -1), None, 0, True),
        ((2, 0), None, 1, True),
        ((0, 0), None, 3, True),  # "valid": two fewer outputs, and the next sample
        ((2, 0), "next", 1, True),
        ((2, 0), "current", 0, False),
        ((1, 1), None, 1, False),
        ((0, -1), None, 3, True),
    ],
)
def test_which_sample_a_sound_predicts(
    pad: tuple[int, int], predicts: str | None, offset: int, causal: bool
) -> None:
    options = {} if predicts is None else {"predicts": predicts}
    found = report(Line(pad), (1, 12), **options)
    assert (found.offset, found.causal) == (offset, causal)


def flipped(model: nn.Module, dims: Sequence[int]) -> nn.Module:
    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for conv in model.modules():
                if isinstance(conv, nn.Conv2d):
                    with torch.no_grad():
                        live = conv.weight * getattr(conv, "mask", torch.ones_like(conv.weight))
                        conv.weight.copy_(live.flip(dims))
            self.convs = nn.ModuleList(c for c in model.modules() if isinstance(c, nn.Conv2d))

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                padding = [size // 2 for size in conv.kernel_size]
                x = F.conv2d(x.relu(), conv.weight, conv.bias, padding=padding)
            return x

    return Flipped()


@pytest.mark.parametrize(
    ("dims", "name"),
    [((2, 3), "reversed raster"), ((3,), "right to left within rows"), ((2,), "bottom row first")],
)
def test_another_scan_order_is_recognised(dims: Sequence[int], name: str) -> None:
    found = report(flipped(masked(5, 3), dims), (1, 6, 5))
    assert not found.causal
    assert found.causal_order == name
    assert f"causal in {name} order" in str(found)


def column_by_column(model: nn.Module) -> nn.Module:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x.transpose(2, 3)).transpose(2, 3)
            return out

    return Transposed()


def test_rows_and_columns_exchanged_are_refused() -> None:
    with pytest.raises(genfast.GenfastError):
        genfast.compile_sampler(column_by_column(masked(3)), (1, 5, 5), genfast.Categorical(4))


@pytest.mark.parametrize(
    ("spoil", "tap"),
    [
        (lambda m: m[2].weight[0, 0, 2, 1].fill_(1e-5), "row +1, column +0"),
        (lambda m: m[2].weight[0, 0, 1, 2].fill_(1e-5), "row +0, column +1"),
        (lambda m: m[0].weight[0, 0, 2, 2].fill_(1e-5), "row +0, column +0"),
    ],
    ids=["row below", "column right", "centre of the first layer"],
)
def test_a_small_leak_is_named(spoil: Callable[[nn.Module], object], tap: str) -> None:
    model = masked(5, 3)
    for conv in (model[0], model[2]):
        with torch.no_grad():
            conv.weight.mul_(conv.mask)
            conv.mask.fill_(1)
    with torch.no_grad():
        spoil(model)
    text = str(report(model, (1, 6, 5)))
    assert "not causal" in text
    assert tap in text
    layer = " in 0 (" if "column +0" in tap and "row +0" in tap else " in 2 ("
    assert layer in text


def test_the_model_is_left_as_it_was() -> None:
    model = masked(3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    genfast.check_causality(model, (1, 4, 4))
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_unknown_predicts() -> None:
    with pytest.raises(InputError, match="predicts: expected"):
        report(Line((2, 0)), (1, 8), predicts="sooner")


@pytest.mark.parametrize("one_hot", [True, False])
def test_a_model_of_symbols_asks_for_the_distribution(one_hot: bool) -> None:
    class OfSymbols(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(4, 4), nn.Conv2d(4, 4, (1, 2), padding=(0, 2))

        def forward(self, x: Tensor) -> Tensor:
            h = x if one_hot else self.embed(x[:, 0]).permute(0, 3, 1, 2)
            out: Tensor = self.conv(h)[..., : x.shape[3]]
            return out

    with pytest.raises(UnsupportedModelError, match=r"^check_causality: .*; distribution= says"):
        genfast.check_causality(OfSymbols(), (1, 3, 4))
    symbols = genfast.Categorical(4, values=torch.eye(4) if one_hot else None)
    assert genfast.check_causality(OfSymbols(), (1, 3, 4), distribution=symbols).causal
    with pytest.raises(InputError, match=r"^check_causality: expected event_shape"):
        genfast.check_causality(OfSymbols(), (1, 0, 4))
