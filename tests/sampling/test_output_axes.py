"""Which axes of a model's output are rows, columns, colours and levels: taken, or refused."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import genfast
from genfast.errors import CausalityError, UnsupportedModelError
from genfast.nn import MaskedConv2d
from genfast.sampling import sample_naive

Arrange = Callable[[Tensor], Tensor]


class Arranged(nn.Module):
    """A causal model whose logits [N, C * K, H, W] (colours outer) are returned in some order."""

    def __init__(self, arrange: Arrange, colours: int = 1, levels: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        grouped = {"data_channels": colours, "channel_layout": "blocks"}
        self.first = MaskedConv2d("A", colours, 6, 3, padding=1, **grouped)
        self.last = MaskedConv2d("B", 6, colours * levels, 1, **grouped)
        self.arrange, self.colours = arrange, colours

    def forward(self, x: Tensor) -> Tensor:
        logits = 3 * self.last(self.first(x).tanh())
        return self.arrange(logits.unflatten(1, (self.colours, -1)))


# What stands at [.., i, j] is about pixel (j, i), or image n about several: not what is asked for.
DISPLACED: dict[str, Arrange] = {
    "transposed": lambda y: y[:, 0].transpose(2, 3),
    "levels last": lambda y: y[:, 0].permute(0, 3, 2, 1),
    "column by column": lambda y: y[:, 0].transpose(2, 3).flatten(2),
    "column by column, levels last": lambda y: y[:, 0].permute(0, 3, 2, 1).flatten(1, 2),
    "levels between": lambda y: y[:, 0].permute(0, 2, 1, 3),
    "rows first": lambda y: y[:, 0].permute(2, 0, 3, 1),
    "images innermost": lambda y: y[:, 0].permute(2, 3, 0, 1).flatten(0, 2),
}


@pytest.mark.parametrize("name", DISPLACED)
@pytest.mark.parametrize("size", [(5, 5), (4, 6), (2, 5)])
def test_rows_must_stand_before_columns(name: str, size: tuple[int, int]) -> None:
    model = Arranged(DISPLACED[name])
    with pytest.raises(UnsupportedModelError, match="rows right before columns"):
        genfast.check_causality(model, (1, *size))
    categorical = genfast.Categorical(5, values="unit")
    with pytest.raises(UnsupportedModelError, match="rows right before columns"):
        genfast.compile_sampler(model, (1, *size), categorical)
    with (
        pytest.warns(UserWarning, match="right before columns"),
        pytest.raises((CausalityError, UnsupportedModelError), match=r"not causal|expected an out"),
    ):
        genfast.compile_sampler(model, (1, *size), categorical, fallback="naive")


def test_the_order_of_axes_of_size_one_does_not_matter() -> None:
    model = Arranged(DISPLACED["transposed"])
    assert genfast.check_causality(model, (1, 1, 1)).causal
    model = Arranged(DISPLACED["column by column"])
    assert genfast.check_causality(model, (1, 1, 6)).causal
    assert genfast.check_causality(model, (1, 6, 1)).causal


# Logits [N, C, K, H, W] in other orders of their axes; colours or positions may share an axis.
TAKEN: dict[str, Arrange] = {
    "[N, C, K, H, W]": lambda y: y,
    "[N, K, C, H, W]": lambda y: y.transpose(1, 2),
    "[N, C, H, W, K]": lambda y: y.movedim(2, -1),
    "[N, K, H, W, C]": lambda y: y.movedim(1, -1),
    "[N, H, W, C, K]": lambda y: y.permute(0, 3, 4, 1, 2),
    "[N, C, H * W, K]": lambda y: y.movedim(2, -1).flatten(2, 3),
    "[N, K, H * W, C]": lambda y: y.movedim(1, -1).flatten(2, 3),
    "[N, H * W * C, K]": lambda y: y.permute(0, 3, 4, 1, 2).flatten(1, 3),
    "[N, C * H * W, K]": lambda y: y.movedim(2, -1).flatten(1, 3),
    "[N, K, H * W * C]": lambda y: y.permute(0, 2, 3, 4, 1).flatten(2),
    "[N, K, C * H * W]": lambda y: y.transpose(1, 2).flatten(2),
    "[N * H * W, C, K]": lambda y: y.permute(0, 3, 4, 1, 2).flatten(0, 2),
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 3, 4), (2, 5, 5)])
def test_any_order_of_colours_and_levels(name: str, shape: tuple[int, int, int]) -> None:
    colours, height, width = shape
    categorical = genfast.Categorical(5, values="unit")
    plain = Arranged(TAKEN["[N, C, K, H, W]"], colours).double()
    expected = sample_naive(plain, 3, seed=1, event_shape=shape, distribution=categorical)
    model = Arranged(TAKEN[name], colours).double()
    sampler = genfast.compile_sampler(model, shape, categorical)
    assert torch.equal(sampler.sample(3, seed=1), expected)
    naive = sample_naive(model, 3, seed=1, event_shape=shape, distribution=categorical)
    assert torch.equal(naive, expected)
    logits = sampler.logits(expected)
    assert (len(logits), *logits.shape[-2:]) == (3, height, width)
    sizes = [size for size in logits.shape[1:-2] if size > 1]
    by_colour = logits.reshape(3, *(sizes if colours > 1 else (1, 5)), height, width)
    by_colour = by_colour if by_colour.shape[1] == colours else by_colour.transpose(1, 2)
    torch.testing.assert_close(by_colour, plain(expected.double() / 4), rtol=0, atol=1e-12)


def test_an_axis_of_rows_and_colours_is_refused() -> None:
    model = Arranged(lambda y: y.transpose(1, 2).flatten(2, 3), 2)
    with pytest.raises(UnsupportedModelError, match=r"mixes 2 features \* 4 rows in one axis"):
        genfast.check_causality(model, (2, 4, 6))


@pytest.mark.parametrize("fallback", [None, "naive"])
def test_an_axis_of_one_before_the_grid_and_levels_behind(fallback: str | None) -> None:
    class Opaque(Arranged):
        def forward(self, x: Tensor) -> Tensor:
            if fallback is not None:
                float(x.sum())  # nothing that a plan is made of
            return super().forward(x)

    model = Opaque(lambda y: y[:, 0].permute(0, 2, 3, 1)[:, None]).double()
    categorical, shape = genfast.Categorical(5, values="unit"), (1, 5, 5)
    expected = sample_naive(
        Arranged(TAKEN["[N, C, K, H, W]"]).double(),
        3,
        seed=1,
        event_shape=shape,
        distribution=categorical,
    )
    with nullcontext() if fallback is None else pytest.warns(UserWarning, match="slow"):
        sampler = genfast.compile_sampler(model, shape, categorical, fallback=fallback)
    assert torch.equal(sampler.sample(3, seed=1), expected)
