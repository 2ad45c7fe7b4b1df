"""Constant masks on activations: what they hide is no dependence, and no number changes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genfast
from genfast.sampling import sample_naive
from tests.sampling.test_lower_ops import check

LEVELS, SHAPE = 4, (1, 5, 6)
UNIT = genfast.Categorical(LEVELS, values="unit")
Mix = Callable[[Tensor], Tensor]

BEFORE = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0, 0])  # the taps of a 3 x 3 window, raster order


class Windows(nn.Module):
    """Sees each pixel's 3 x 3 window, [N, pixels, 9], through a mask on the activations."""

    def __init__(self, mask: Mix) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask, self.dense = mask, nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.mask(F.unfold(x, 3, padding=1).transpose(1, 2))
        out: Tensor = 3 * self.dense(seen).transpose(1, 2).unflatten(2, x.shape[2:])
        return out


def sample_as_naive(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> None:
    model = model.double()
    sampler = genfast.compile_sampler(model, shape, UNIT)
    naive = sample_naive(model, 4, seed=0, event_shape=shape, distribution=UNIT)
    assert torch.equal(sampler.sample(4, seed=0), naive)


def in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 4:] = 0
    return x


WINDOWS: dict[str, Mix] = {
    "product": lambda x: x * BEFORE,
    "product from the left": lambda x: BEFORE * x,
    "product in place": lambda x: x.clone().mul_(BEFORE),
    "truth values": lambda x: x * BEFORE.bool(),
    "masked_fill": lambda x: x.masked_fill(BEFORE == 0, 0.0),
    "masked_fill with another number": lambda x: x.masked_fill(BEFORE == 0, -1.5),
    "where": lambda x: torch.where(BEFORE.bool(), x, 0.0),
    "where not": lambda x: torch.where(BEFORE == 0, torch.zeros(9), x),
    "written over": in_place,
    "parts": lambda x: torch.cat([x[..., :4], 0 * x[..., 4:]], dim=2),
    "addcmul": lambda x: torch.addcmul(torch.ones(9), x, BEFORE, value=2.0),
    "two masks": lambda x: (x * (torch.arange(9) < 6)) * (torch.arange(9) % 9 < 4),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_features_that_a_mask_hides_are_not_read(name: str) -> None:
    model = Windows(WINDOWS[name])
    found = genfast.check_causality(model, SHAPE)
    assert found.causal
    assert (found.rows, found.columns_left, found.columns_right) == (1, 1, 1)
    sample_as_naive(model)


def test_a_mask_that_shows_too_much_is_found_out() -> None:
    model = Windows(lambda x: x * torch.tensor([1.0, 1, 1, 1, 1e-30, 0, 0, 0, 0]))
    assert not genfast.check_causality(model, SHAPE).causal
    model = Windows(lambda x: torch.where(BEFORE == 0, x, 0.0))
    assert not genfast.check_causality(model, SHAPE).causal


def test_the_mask_is_read_anew_when_it_changes() -> None:
    model = Windows(lambda x: x * model.get_buffer("shown"))
    model.register_buffer("shown", BEFORE.clone())
    model = model.double()
    sampler = genfast.compile_sampler(model, SHAPE, UNIT)
    model.get_buffer("shown")[0] = 0
    naive = sample_naive(model, 4, seed=0, event_shape=SHAPE, distribution=UNIT)
    assert torch.equal(sampler.sample(4, seed=0), naive)
    model.get_buffer("shown")[5] = 1
    with pytest.raises(genfast.errors.CausalityError):
        sampler.sample(4, seed=0)


class Skip(nn.Module):
    """A causal stack beside the pixel itself, which a mask over both leaves out."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask, self.above = mask, nn.Conv2d(1, 3, (2, 3), padding=(2, 1))
        self.head = nn.Conv2d(4, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([x, self.above(x)[:, :, : x.shape[2]]], dim=1)
        out: Tensor = 3 * self.head((h * self.mask).tanh())
        return out


def test_a_masked_feature_beside_others() -> None:
    mask = torch.tensor([0.0, 1, 1, 1])[:, None, None]
    assert genfast.check_causality(Skip(mask), SHAPE).causal
    sample_as_naive(Skip(mask))
    assert not genfast.check_causality(Skip(mask.flip(0)), SHAPE).causal


class Rolled(nn.Module):
    """The row below, or the column to the right, of all but the edge that a mask leaves."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask = mask
        self.above = nn.Conv2d(1, 3, (1, 3), padding=(0, 1))
        self.head = nn.Conv2d(3, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.above(x.roll(1, dims=2) * self.mask)  # the last row comes round to the first
        out: Tensor = 3 * self.head(h.tanh())
        return out


def test_rows_that_a_mask_hides_at_an_edge() -> None:
    mask = torch.ones(5, 6)
    mask[0] = 0
    assert genfast.check_causality(Rolled(mask), SHAPE).causal
    sample_as_naive(Rolled(mask))
    mask[0, 3] = 1
    assert not genfast.check_causality(Rolled(mask), SHAPE).causal


def edges(*shown: tuple[slice, slice]) -> Tensor:
    """A mask [4, 3, 5] of these rows and columns for the features in turn."""
    mask = torch.zeros(4, 3, 5, dtype=torch.float64)
    for number, (rows, columns) in enumerate(shown):
        mask[number :: len(shown), rows, columns] = 1 + number
    return mask


ALL, NONE = slice(None), slice(0, 0)
MASKS = {
    "a row": edges((slice(1, None), ALL)),
    "columns at both ends": edges((ALL, slice(1, 4))),
    "a frame": edges((slice(1, 2), slice(1, 4))),
    "another one for each feature": edges(
        (ALL, slice(2, None)), (slice(0, 1), ALL), (NONE, NONE), (ALL, ALL)
    ),
    "nothing": edges((NONE, NONE)),
    "holes": edges((slice(0, None, 2), slice(0, None, 2))),
}


@pytest.mark.parametrize("name", MASKS)
def test_numbers_stay_what_they_are(name: str) -> None:
    mask = MASKS[name]
    check(lambda x: x * mask + 1)
    check(lambda x: torch.where(mask > 0, x.exp(), -x))
    check(lambda x: torch.where(mask > 0, 2.0, x))
    check(lambda x: F.pad(x, (1, -1, -1, 1), value=3.0) * mask)
    check(lambda x: torch.where(mask > 0, F.pad(x, (1, -1, -1, 1), value=3.0), x))
    check(lambda x: F.conv2d(F.pad(x, (2, -2)) * mask, torch.ones(2, 4, 3, 3).double(), padding=1))
    check(lambda x: torch.where(mask > 0, F.pad(x, (0, 0, 1, -1), value=-torch.inf).exp(), x))


def test_infinities_are_not_hidden_by_a_zero() -> None:
    model = Windows(lambda x: x)
    model.forward = lambda x: torch.cat([F.pad(x, (1, -1), value=torch.inf) * 0] * 4, dim=1)
    with pytest.raises(genfast.errors.NumericsError):
        genfast.compile_sampler(model, SHAPE, UNIT)
