"""Which axes of a model's output are rows, columns, colours and levels: taken, or refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import genfast
from genfast.errors import CausalityError, UnsupportedModelError
from genfast.nn import MaskedConv2d

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
