"""Rules of attention: from the product of queries and keys to that of weights and values."""

from typing import Any

import numpy as np
import torch

from genfast.sampling.lower.layout import Signal, describe, is_features, same
from genfast.sampling.lower.lowering import Lowering, Operand, rule
from genfast.sampling.lower.scores import (
    Scores,
    attended,
    changed,
    constant,
    filled,
    is_positions,
    moved,
    normalised,
    scores_of,
)

aten = torch.ops.aten

_MOVES = (
    *(aten.view, aten._unsafe_view, aten._reshape_alias, aten.reshape, aten.squeeze),
    *(aten.unsqueeze, aten.permute, aten.transpose, aten.t, aten.expand, aten.slice.Tensor),
)


def paired(low: Lowering, left: Signal, right: Signal) -> Scores:
    """Scores, if one factor has queries as rows and the other keys as columns."""
    pairs = len(left.dims) == len(right.dims) == 3 and (left.height, left.width) == (
        right.height,
        right.width,
    )
    if (
        not pairs
        or not same(left.dims[0], right.dims[0])
        or not (is_positions(left, left.dims[1]) and is_positions(right, right.dims[2]))
        or not (is_features(left.dims[2]) and is_features(right.dims[1]))
    ):
        low.refuse(
            "it multiplies two tensors that depend on the input, and not as attention does: "
            f"{describe(left.dims)} and {describe(right.dims)}"
        )
    return scores_of(low, left, right)


@rule(aten.bmm, of=Scores)
def bmm(low: Lowering, self: Operand | Scores, mat2: Operand | Scores) -> Signal:
    """Weights [.., positions, seen] times values, or values times the transposed weights."""
    weights, values = (self, mat2) if isinstance(self, Scores) else (mat2, self)
    if not isinstance(weights, Scores) or not isinstance(values, Signal):
        low.refuse("it multiplies scores of an attention by what is no tensor of values")
    keys, rows, columns = (2, 1, 2) if weights is self else (1, 2, 1)
    fits = same(weights.axes.dims[0], values.dims[0]) and is_features(weights.axes.dims[keys])
    fits = fits and is_positions(values, values.dims[rows]) and is_features(values.dims[columns])
    if not fits:
        low.refuse("it multiplies weights of an attention by values along another axis")
    if weights is self:
        return attended(
            low, weights, values, (values.dims[0], weights.axes.dims[1], values.dims[2])
        )
    return attended(low, weights, values, (values.dims[0], values.dims[1], weights.axes.dims[2]))


def add_scaled(low: Lowering, x: Scores, number: Operand, beta: float, alpha: float) -> Scores:
    """A mask added by the op that multiplies queries by keys: x * alpha + number * beta."""
    return changed(low, x, np.full((1, 1, 1), alpha), constant(low, x, number) * beta)


@rule(aten._softmax, aten._safe_softmax, of=Scores)
def softmax(low: Lowering, self: Scores, dim: int) -> Scores:
    return normalised(low, self, dim)


@rule(*_MOVES, of=Scores)
def move(low: Lowering, self: Scores, **given: Any) -> Scores:
    return moved(low, self, low.apply(Signal, {**given, "self": self.axes}))


@rule(aten._to_copy, of=Scores)
def to_copy(low: Lowering, self: Scores) -> Scores:
    if not low.node.dtype.is_floating_point:
        low.refuse("it makes whole numbers of the scores of an attention")
    return self


@rule(aten.clone, aten.alias, aten.detach, aten.native_dropout, of=Scores)
def unchanged(low: Lowering, **given: Any) -> Any:
    x = given.get("self", given.get("input"))
    return (x, None) if low.op.overloadpacket is aten.native_dropout else x


# Arithmetic with constants

_ONE, _NONE = np.ones((1, 1, 1)), np.zeros((1, 1, 1))


def _pair(low: Lowering, self: Any, other: Any) -> tuple[Scores, Any]:
    """The scores and the constant of an op that may have them in either order."""
    if isinstance(self, Scores) and isinstance(other, Scores):
        low.refuse("it joins the scores of two attentions")
    scores, number = (self, other) if isinstance(self, Scores) else (other, self)
    return scores, constant(low, scores, number)


@rule(aten.mul, of=Scores)
def mul(low: Lowering, self: Any, other: Any) -> Scores:
    scores, factor = _pair(low, self, other)
    return changed(low, scores, factor, _NONE)


@rule(aten.div, of=Scores)
def div(low: Lowering, self: Any, other: Any, rounding_mode: str | None = None) -> Scores:
    if not isinstance(self, Scores) or isinstance(other, Scores) or rounding_mode is not None:
        low.refuse("it divides by the scores of an attention")
    return changed(low, self, 1 / constant(low, self, other), _NONE)


@rule(aten.add, of=Scores)
def add(low: Lowering, self: Any, other: Any, alpha: float = 1) -> Scores:
    scores, number = _pair(low, self, other)
    if scores is other:
        return changed(low, scores, _ONE * alpha, number)
    return changed(low, scores, _ONE, number * alpha)


@rule(aten.sub, of=Scores)
def sub(low: Lowering, self: Any, other: Any, alpha: float = 1) -> Scores:
    return add(low, self, other, -alpha)


@rule(aten.neg, of=Scores)
def neg(low: Lowering, self: Scores) -> Scores:
    return changed(low, self, -_ONE, _NONE)


@rule(aten.masked_fill, of=Scores)
def masked_fill(low: Lowering, self: Any, mask: Any, value: Any) -> Scores:
    return where(low, mask, value, self)


@rule(aten.where, of=Scores)
def where(low: Lowering, condition: Any, self: Any, other: Any) -> Scores:
    if isinstance(condition, Scores) or (isinstance(self, Scores) and isinstance(other, Scores)):
        low.refuse("it chooses by the scores of an attention")
    scores = self if isinstance(self, Scores) else other
    mask = constant(low, scores, condition)
    if scores is self:
        return filled(low, scores, (mask == 0).astype(float), constant(low, scores, other))
    return filled(low, scores, mask, constant(low, scores, self))


@rule(aten.nan_to_num, of=Scores)
def nan_to_num(low: Lowering, self: Scores, nan: float | None = None) -> Scores:
    if self.gain is None or nan not in (None, 0):
        low.refuse("it replaces NaN among the scores of an attention")
    return self
