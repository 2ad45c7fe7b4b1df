"""Attention and raster sequences of which no sense can be made: the message names line and why."""

from math import inf

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.errors import UnsupportedModelError
from genfast.sampling.lower import scores
from tests.sampling.graphs import compiled
from tests.sampling.test_lower_attention import (
    HEADS,
    MARKS,
    PLACES,
    SIZE,
    TABLE,
    Apply,
    Function,
    attend,
    by_head,
    check,
    image,
    sequence,
    token,
    written,
)

BEFORE = torch.ones(PLACES, PLACES).tril()
BLOCKED = torch.full((PLACES, PLACES), -inf).triu(1)
DISTANCE = 1 + torch.arange(PLACES)[:, None] + torch.arange(PLACES)


def within_rows(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1).flatten(0, 1)
    return ((y @ y.mT).softmax(-1) @ y).view(-1, 3, 5, 4).permute(0, 3, 1, 2)


def scored(weigh: Function) -> Function:
    return lambda x: attend(x, weigh)


def along(function: Function) -> Function:
    return lambda x: function(sequence(x))


def both(y: Tensor) -> Tensor:
    """As many features as there are positions, read from two values."""
    return torch.cat((y.repeat(1, 1, 2), y.tanh(), y[:, :, 1:].sin()), 2)


REFUSED: dict[str, tuple[Function, str]] = {
    "queries and keys of rows": (
        lambda x: F.scaled_dot_product_attention(x, x, x),
        r"scaled_dot_product_attention.*multiplies two tensors.*not as attention does",
    ),
    "products of features": (
        lambda x: sequence(x).mT @ sequence(x),
        r"aten\.bmm.*not as attention does: \[2 images, 4 features, 3 rows \* 5 columns\]",
    ),
    "attention within rows": (
        within_rows,
        r"aten\.bmm.*not as attention does: \[2 images \* 3 rows, 5 columns, 4 features\]",
    ),
    "masked scores of 0": (
        scored(lambda s: (s * BEFORE).softmax(-1)),
        r"aten\.bmm.*position 1 a weight at position 0 .*masked scores must be much lower",
    ),
    "masks of NaN": (
        scored(lambda s: (s + (1 - BEFORE) * -inf).softmax(-1)),
        r"aten\.bmm.*have NaN in their mask",
    ),
    "masks of both infinities": (
        scored(lambda s: (s.masked_fill(BEFORE == 0, -inf) - BLOCKED).softmax(-1)),
        r"aten\.bmm.*have NaN in their mask",
    ),
    "weights changed after the softmax": (
        scored(lambda s: s.softmax(-1) * BEFORE),
        r"aten\.bmm.*changes the weights of an attention after their softmax",
    ),
    "weights with a number added": (
        scored(lambda s: s.softmax(-1) + 1e-8),
        r"aten\.add.*adds to the weights of an attention after their softmax",
    ),
    "weights overwritten": (
        scored(lambda s: s.softmax(-1).masked_fill(BEFORE == 0, 0.1)),
        r"aten\.masked_fill.*writes numbers into the weights of an attention",
    ),
    "scores scaled by distance": (
        scored(lambda s: (s * DISTANCE).softmax(-1)),
        r"aten\.bmm.*scales the scores of an attention differently from position to position",
    ),
    "softmax over the queries": (
        scored(lambda s: s.softmax(1)),
        r"softmax is not over the positions of the keys",
    ),
    "two softmaxes": (scored(lambda s: s.softmax(-1).softmax(-1)), r"takes a second softmax"),
    "no softmax": (
        scored(lambda s: s * BEFORE),
        r"aten\.bmm.*multiplies scores of an attention with values, without a softmax",
    ),
    "scores cut short": (
        lambda x: attend(x, lambda s: F.pad(s[:, :, :9].softmax(-1), (0, 6))),
        r"aten\.slice.*takes a part of the scores",
    ),
    "queries cut short": (
        scored(lambda s: F.pad(s.softmax(-1)[:, :9], (0, 0, 0, 6))),
        r"aten\.slice.*takes a part of the scores",
    ),
    "scores and signals": (
        lambda x: attend(x, lambda s: (s + sequence(x)[:, :, :1]).softmax(-1)),
        r"aten\.add.*changes the scores of an attention by what is not constant",
    ),
    "scores and two signals": (
        lambda x: attend(x, lambda s: (s + both(sequence(x))).softmax(-1)),
        r"aten\.add.*changes the scores of an attention by what is not constant",
    ),
    "scores of two attentions": (
        scored(lambda s: (s + s.mT).softmax(-1)),
        r"aten\.add.*joins the scores of two attentions",
    ),
    "a choice between two attentions": (
        scored(lambda s: torch.where(BEFORE == 1, s, -s).softmax(-1)),
        r"aten\.where.*chooses by the scores of an attention",
    ),
    "a quotient": (
        scored(lambda s: (1 / s).softmax(-1)),
        r"aten\.(reciprocal|div).*(divides by the scores|no rule for this op on the scores)",
    ),
    "a rounded quotient": (
        scored(lambda s: s.div(2, rounding_mode="floor").softmax(-1)),
        r"aten\.div.*divides by the scores",
    ),
    "a table divided by scores": (
        scored(lambda s: (TABLE / s).softmax(-1)),
        r"aten\.div.*divides by the scores of an attention",
    ),
    "scores rounded": (
        scored(lambda s: s.long().double().softmax(-1)),
        r"aten\._to_copy.*whole numbers",
    ),
    "NaN put right before the softmax": (
        scored(lambda s: s.nan_to_num(0).softmax(-1)),
        r"aten\.nan_to_num.*replaces NaN among the scores",
    ),
    "NaN put wrong after it": (
        scored(lambda s: s.softmax(-1).nan_to_num(0.5)),
        r"aten\.nan_to_num.*replaces NaN among the scores",
    ),
    "a function of scores": (
        scored(lambda s: s.tanh().softmax(-1)),
        r"aten\.tanh.*no rule for this op on the scores of an attention",
    ),
    "weights times a constant": (
        lambda x: image(attend_weights(x) @ TABLE.expand(len(x), -1, -1)[:, :, :4]),
        r"aten\.bmm.*by what is no tensor of values",
    ),
    "weights from the other side": (
        lambda x: image(attend_weights(x).mT @ sequence(x)),
        r"aten\.bmm.*by values along another axis",
    ),
    "scores that are returned": (
        lambda x: attend_weights(x),
        r"output pairs positions with one another",
    ),
    "pixels in raster order, cut short": (
        along(lambda y: y[:, :-1].tanh()),
        r"aten\.tanh.*some of the pixels in raster order",
    ),
    "pixels joined with pixels": (
        along(lambda y: torch.cat((y[:, :5], y[:, 5:]), 1)),
        r"aten\.cat.*others that depend on the input",
    ),
    "pixels joined along features": (
        along(lambda y: torch.cat((y[:, 1:], token(y, 14)), 2)),
        r"aten\.cat.*raster order along another axis",
    ),
    "pixels padded along features too": (
        along(lambda y: F.pad(y, (1, 0, 1, -1))),
        r"aten\.constant_pad_nd.*raster order and other axes at once",
    ),
    "features of some pixels": (
        along(lambda y: y[:, :-1, 1:]),
        r"aten\.slice.*raster order along another axis",
    ),
    "some pixels written over others": (
        lambda x: written(sequence(x).sin(), sequence(x)[:, 1:], 0),
        r"aten\.(slice_scatter|copy_).*writes over some of the pixels in raster order",
    ),
    "every second pixel of some": (
        along(lambda y: y[:, :-1][:, ::2]),
        r"aten\.slice.*raster order along another axis",
    ),
}


def attend_weights(x: Tensor) -> Tensor:
    return (sequence(x) @ sequence(x).mT).softmax(-1)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=f"(?s){reason}"):
        compiled(Apply(function), torch.rand(SIZE, dtype=torch.float64))


def test_attention_over_images_is_refused_by_its_module() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(*[sequence(x).transpose(0, 1)] * 3)[0]
            return out

    with pytest.raises(UnsupportedModelError, match=r"in attention .*multiplies two tensors"):
        compiled(Crossed(), torch.rand(SIZE))


def test_a_mask_that_depends_on_conditions_is_refused() -> None:
    def padded(x: Tensor, mask: Tensor) -> Tensor:
        return attend(x, lambda s: s.masked_fill(mask[:, None], -inf).softmax(-1))

    with pytest.raises(UnsupportedModelError, match=r"scores of an attention.*not constant"):
        compiled(Apply(padded), torch.rand(SIZE), mask=torch.arange(45).view(3, 15) % 15 > 12)


def test_masks_of_too_many_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_MOST_PAIRS", 2 * PLACES**2 - 1)
    check(lambda x: by_head(x, lambda s: s.masked_fill(~MARKS, -inf).softmax(-1)))
    with pytest.raises(UnsupportedModelError, match=r"450 numbers, more than 449"):
        check(lambda x: by_head(x, HEADS["masks"]))
