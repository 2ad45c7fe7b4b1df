"""Attention and raster sequences, lowered on their own, against PyTorch."""

from collections.abc import Callable
from math import inf, nan

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.sampling.values import Attend
from tests.sampling.graphs import compiled, run

Function = Callable[[Tensor], Tensor]
SIZE = (3, 4, 3, 5)
PLACES = 15
MARKS = torch.rand(PLACES, PLACES, generator=torch.Generator().manual_seed(0)) < 0.5
MARKS.fill_diagonal_(True)
BY_HEAD = torch.stack((MARKS, MARKS.T | MARKS))
TABLE = torch.linspace(-2, 2, PLACES * PLACES, dtype=torch.float64).view(PLACES, PLACES)
FACTORS = torch.tensor([0.5, -1.5], dtype=torch.float64).view(2, 1, 1)
ROWS = torch.linspace(0.5, 2, PLACES, dtype=torch.float64)[:, None]
NO_FIRST = MARKS & (torch.arange(PLACES) > 0)[:, None]


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, **conditions: Tensor) -> Tensor:
        return self.function(x, **conditions)


def sequence(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(len(y), -1, 3, 5)


def attend(x: Tensor, weigh: Function) -> Tensor:
    y = sequence(x)
    return image(weigh(y @ (y + 0.3).mT) @ (0.5 - y))


def by_head(x: Tensor, weigh: Function) -> Tensor:
    query, value = sequence(x).unflatten(2, (2, 2)).transpose(1, 2), sequence(x).tanh()
    value = value.unflatten(2, (2, 2)).transpose(1, 2)
    return image((weigh(query @ query.mT) @ value).transpose(1, 2).flatten(2))


def check(function: Callable[..., Tensor], **conditions: Tensor) -> list[Attend]:
    """Compare the lowered graph with the function; return its attentions."""
    x = torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph, captured = compiled(Apply(function).double(), x, **conditions)
    wanted = function(x, **conditions)
    assert wanted.isfinite().all()
    found = run(graph, captured, x, **conditions)
    torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=1e-11, atol=1e-12)
    return [value.body for value in graph.values if isinstance(value.body, Attend)]


SCORES: dict[str, Function] = {
    "nothing": lambda s: s.softmax(-1),
    "a factor": lambda s: (s * 0.7).softmax(-1),
    "a negative quotient": lambda s: (s / -2).masked_fill(~MARKS, -inf).softmax(-1),
    "the opposite": lambda s: torch.softmax(-s, -1),
    "taken from a table": lambda s: torch.softmax(TABLE - s, -1),
    "a table and a multiple": lambda s: torch.add(s, TABLE, alpha=-0.3).softmax(-1),
    "a multiple and a table": lambda s: torch.add(TABLE, s, alpha=-0.3).softmax(-1),
    "less a multiple": lambda s: torch.sub(TABLE, s, alpha=2).softmax(-1),
    "a mask before a scale": lambda s: (s.masked_fill(~MARKS, -inf) * 0.5).softmax(-1),
    "a mask multiplied": lambda s: (s * MARKS - 1e9 * ~MARKS).softmax(-1),
    "a choice": lambda s: torch.where(MARKS, s, -inf).softmax(-1),
    "a choice the other way": lambda s: torch.where(~MARKS, -1e5, s + TABLE).softmax(-1),
    "masked twice": lambda s: s.masked_fill(~MARKS, -inf).masked_fill(MARKS.T, -1e4).softmax(-1),
    "in place": lambda s: s.div_(2).add_(TABLE).masked_fill_(~MARKS, -inf).softmax(-1),
    "a row's own bias": lambda s: (s + ROWS).softmax(-1),
    "a key's own bias": lambda s: (s + ROWS.T).softmax(-1),
    "a factor for rows after the softmax": lambda s: s.softmax(-1) * ROWS,
    "unseen weights set to zero": lambda s: (
        s.masked_fill(~MARKS, -inf).softmax(-1).masked_fill(~MARKS, 0) * 2
    ),
    "a first row that sees nothing": lambda s: (
        s.masked_fill(~NO_FIRST, -inf).softmax(-1).nan_to_num(0)
    ),
    "a first row put right": lambda s: (
        s.masked_fill(~NO_FIRST, -1e4).softmax(-1) * NO_FIRST.any(1, keepdim=True)
    ),
    "other axes and back": lambda s: s[:, None].movedim(2, 3).softmax(2).mT.squeeze(1),
    "dropout that is off": lambda s: F.dropout(s.softmax(-1), 0.3, training=False),
    "a slice of all": lambda s: s[:, :PLACES, :99].softmax(-1).clone().contiguous(),
}


@pytest.mark.parametrize("name", SCORES)
def test_what_constants_do_to_scores(name: str) -> None:
    (attention,) = check(lambda x: attend(x, SCORES[name]))
    assert attention.heads == 1


HEADS: dict[str, Function] = {
    "masks": lambda s: s.masked_fill(~BY_HEAD, -inf).softmax(-1),
    "factors": lambda s: (s * FACTORS).masked_fill(~MARKS, -inf).softmax(-1),
    "factors after the softmax": lambda s: s.softmax(-1) * FACTORS,
    "factors, masks and slopes": lambda s: (
        (s * FACTORS + TABLE * FACTORS.abs()).masked_fill(~BY_HEAD, -1e5).softmax(-1)
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_constants_do_to_the_scores_of_heads(name: str) -> None:
    (attention,) = check(lambda x: by_head(x, HEADS[name]))
    assert attention.heads == 2
    assert len(attention.sights) == (2 if "masks" in name else 1)


def merged(x: Tensor, values_first: bool = False) -> Tensor:
    query = sequence(x).unflatten(2, (2, 2)).transpose(1, 2).flatten(0, 1)
    weights = torch.bmm(query, query.mT).masked_fill(~MARKS, -inf).softmax(-1)
    new = torch.bmm(query.mT, weights.mT).mT if values_first else torch.bmm(weights, query)
    return image(new.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2))


FORMS: dict[str, Function] = {
    "heads among the images": merged,
    "values before weights": lambda x: merged(x, values_first=True),
    "heads first": lambda x: image(
        F.scaled_dot_product_attention(*[sequence(x).unflatten(2, (2, 2)).movedim(2, 0)] * 3)
        .movedim(0, 2)
        .flatten(2)
    ),
    "a scale of one's own": lambda x: image(
        F.scaled_dot_product_attention(*[sequence(x)[:, None]] * 3, scale=-0.3)[:, 0]
    ),
    "added by the product": lambda x: image(
        torch.baddbmm(TABLE, sequence(x), sequence(x).mT, beta=0.5, alpha=-2).softmax(-1)
        @ sequence(x)
    ),
    "memory that the product does not add": lambda x: image(
        torch.baddbmm(torch.full_like(TABLE, nan), sequence(x), sequence(x).mT, beta=0).softmax(-1)
        @ sequence(x)
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_the_two_products(name: str) -> None:
    assert len(check(FORMS[name])) == 1


def token(x: Tensor, count: int = 1) -> Tensor:
    return torch.tensor([1.0, -2, 3, 0.5], dtype=torch.float64).expand(len(x), count, 4)


def joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=1)


def written(into: Tensor, part: Tensor, first: int) -> Tensor:
    into[:, first : first + part.shape[1]] = part
    return into


RASTER: dict[str, Function] = {
    "a start token": lambda x: joined(token(x), sequence(x)[:, :-1]),
    "tokens at both ends": lambda x: joined(token(x, 2), sequence(x)[:, 3:-1], -token(x, 2)),
    "tokens joined twice": lambda x: joined(token(x), joined(-token(x), sequence(x)[:, :-2])),
    "a part of a part": lambda x: joined(token(x, 2), sequence(x)[:, 1:])[:, 1:],
    "padded by a number": lambda x: F.pad(sequence(x), (0, 0, 2, 1), value=0.7)[:, :-3],
    "cut and padded": lambda x: F.pad(sequence(x)[:, :-1], (0, 0, 1, 0)),
    "cut and padded by a number": lambda x: F.pad(sequence(x)[:, 2:-1], (0, 0, 1, 2), value=0.3),
    "cut by a padding": lambda x: joined(F.pad(sequence(x), (0, 0, 1, -3)), token(x, 2)),
    "tokens only": lambda x: joined(sequence(x)[:, :0], token(x, 15)) + sequence(x),
    "moved out of the image": lambda x: joined(token(x, 16), sequence(x))[:, 1:16] + sequence(x),
    "written behind a token": lambda x: written(token(x, 15).clone(), sequence(x)[:, :-1], 1),
    "written before two tokens": lambda x: written(token(x, 15).clone(), sequence(x)[:, 2:], 0),
    "channels before pixels": lambda x: F.pad(x.flatten(2), (3, -3)).mT,
    **{
        f"moved by {by}": lambda x, by=by: F.pad(sequence(x), (0, 0, by, -by))
        for by in (1, 4, 5, 6, 14, 15, -1, -5, -7)
    },
}


@pytest.mark.parametrize("name", RASTER)
def test_pixels_moved_along_the_raster(name: str) -> None:
    assert not check(lambda x: image(RASTER[name](x)))


def test_a_token_that_depends_on_conditions() -> None:
    def labelled(x: Tensor, label: Tensor) -> Tensor:
        return image(joined(label[:, None], -token(x), sequence(x)[:, :-1])[:, :-1])

    check(labelled, label=torch.randn(3, 4, dtype=torch.float64))
