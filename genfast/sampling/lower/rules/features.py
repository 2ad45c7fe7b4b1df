"""Rules of ops over the features of a position: sums, normalisations, softmax, tables."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast.sampling.lower.layout import Signal, features_dim, is_features
from genfast.sampling.lower.lowering import Lowering, Operand, named, rule
from genfast.sampling.lower.rearrange import gather_axis, take_range
from genfast.sampling.values import Lookup

aten = torch.ops.aten


def _axes(x: Signal, dim: int | Sequence[int] | None) -> list[int]:
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return list(range(len(x.dims)))
    return [x.axis(each) for each in ([dim] if isinstance(dim, int) else dim)]


def _size(x: Signal, axes: Sequence[int]) -> int:
    return int(np.prod([x.shape[axis] for axis in axes]))


@rule(aten.sum)
def sum_(low: Lowering, self: Signal, dim: Any = None, keepdim: bool = False) -> Signal:
    return low.reduce("sum", self, _axes(self, dim), keepdim)


@rule(aten.mean)
def mean(low: Lowering, self: Signal, dim: Any = None, keepdim: bool = False) -> Signal:
    axes = _axes(self, dim)
    return low.pointwise("div", low.reduce("sum", self, axes, keepdim), float(_size(self, axes)))


@rule(aten.amax, aten.max.dim, aten.max.default)
def amax(low: Lowering, self: Signal, dim: Any = None, keepdim: bool = False) -> Any:
    largest = low.reduce("max", self, _axes(self, dim), keepdim)
    return (largest, None) if low.op is aten.max.dim else largest


@rule(aten.amin, aten.min.dim, aten.min.default)
def amin(low: Lowering, self: Signal, dim: Any = None, keepdim: bool = False) -> Any:
    negative = low.pointwise("neg", self)
    smallest = low.pointwise("neg", low.reduce("max", negative, _axes(self, dim), keepdim))
    return (smallest, None) if low.op is aten.min.dim else smallest


# `max(a, b)` and `min(a, b)` of two tensors are other ops of the same names.
@rule(aten.max.other)
def max_other(low: Lowering, self: Operand, other: Operand) -> Signal:
    return low.pointwise("maximum", self, other)


@rule(aten.min.other)
def min_other(low: Lowering, self: Operand, other: Operand) -> Signal:
    return low.pointwise("minimum", self, other)


@rule(aten.any.dim, aten.any.dims)
def any_(low: Lowering, self: Signal, dim: Any, keepdim: bool) -> Signal:
    return low.reduce("max", low.pointwise("ne", self, 0), _axes(self, dim), keepdim)


@rule(aten.all.dim, aten.all.dims)
def all_(low: Lowering, self: Signal, dim: Any, keepdim: bool) -> Signal:
    false = low.pointwise("eq", self, 0)
    return low.pointwise("not", low.reduce("max", false, _axes(self, dim), keepdim))


def moments(low: Lowering, x: Signal, axes: Sequence[int], less: float = 0) -> tuple[Signal, ...]:
    """X minus its mean, and its variance with `less` taken off the count; axes are kept."""
    count = _size(x, axes)
    average = low.pointwise("div", low.reduce("sum", x, axes, True), float(count))
    centred = low.pointwise("sub", x, average)
    squares = low.reduce("sum", low.pointwise("mul", centred, centred), axes, True)
    return centred, low.pointwise("div", squares, count - less)


@rule(aten.var.correction, aten.std.correction)
def variance(
    low: Lowering, self: Signal, dim: Any, correction: float | None, keepdim: bool
) -> Signal:
    axes = _axes(self, dim)
    _, result = moments(low, self, axes, 1 if correction is None else correction)
    if low.op is aten.std.correction:
        result = low.pointwise("sqrt", result)
    return result if keepdim else _without(result, axes)


def _without(x: Signal, axes: Sequence[int]) -> Signal:
    return replace(x, dims=tuple(dim for axis, dim in enumerate(x.dims) if axis not in axes))


@rule(aten.linalg_vector_norm)
def vector_norm(low: Lowering, self: Signal, ord: float, dim: Any, keepdim: bool) -> Signal:
    if ord != 2:
        low.refuse(f"expected the norm of order 2, got ord={ord}")
    squares = low.pointwise("mul", self, self)
    return low.pointwise("sqrt", low.reduce("sum", squares, _axes(self, dim), keepdim))


# Softmax


def _log_sum(low: Lowering, x: Signal, axes: Sequence[int]) -> tuple[Signal, Signal, Signal]:
    """exp(x - largest), its sum, and x - largest, over features; axes are kept."""
    shifted = low.pointwise("sub", x, low.reduce("max", x, axes, True))
    grown = low.pointwise("exp", shifted)
    return grown, low.reduce("sum", grown, axes, True), shifted


@rule(aten._softmax)
def softmax(low: Lowering, self: Signal, dim: int) -> Signal:
    grown, total, _ = _log_sum(low, self, _softmax_axes(low, self, dim))
    return low.pointwise("div", grown, total)


@rule(aten._log_softmax)
def log_softmax(low: Lowering, self: Signal, dim: int) -> Signal:
    _, total, shifted = _log_sum(low, self, _softmax_axes(low, self, dim))
    return low.pointwise("sub", shifted, low.pointwise("log", total))


def _softmax_axes(low: Lowering, x: Signal, dim: int) -> list[int]:
    axis = x.axis(dim)
    if not is_features(x.dims[axis]):
        low.refuse(f"its softmax is over the {named(x.dims[axis])}, as attention does")
    return [axis]


@rule(aten.logsumexp)
def logsumexp(low: Lowering, self: Signal, dim: Any, keepdim: bool) -> Signal:
    axes = _axes(self, dim)
    largest = low.reduce("max", self, axes, True)
    grown = low.pointwise("exp", low.pointwise("sub", self, largest))
    total = low.pointwise("log", low.reduce("sum", grown, axes, True))
    result: Signal = low.pointwise("add", largest, total)
    return result if keepdim else _without(result, axes)


@rule(aten.glu)
def glu(low: Lowering, self: Signal, dim: int) -> Signal:
    axis = self.axis(dim)
    half = self.shape[axis] // 2
    value = take_range(low, self, axis, 0, half)
    gate = take_range(low, self, axis, half, 2 * half)
    return low.pointwise("mul", value, low.pointwise("sigmoid", gate))


def gated_activation(low: Lowering, x: Operand, condition: Operand | None) -> Signal:
    given = x if condition is None else low.pointwise("add", x, condition)
    assert isinstance(given, Signal)
    half = given.shape[1] // 2
    a, b = (take_range(low, given, 1, first, first + half) for first in (0, half))
    return low.pointwise("mul", low.pointwise("tanh", a), low.pointwise("sigmoid", b))


if hasattr(torch.ops.genfast, "gated_activation"):  # else its parts are recorded
    rule(torch.ops.genfast.gated_activation)(gated_activation)


# Normalisation


@rule(aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm)
@rule(aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training)
@rule(aten._batch_norm_no_update)
def batch_norm(
    low: Lowering,
    input: Signal,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool = False,
    **numbers: Any,
) -> tuple[Any, ...]:
    if training or not isinstance(running_mean, Tensor) or not isinstance(running_var, Tensor):
        low.refuse("it normalises by statistics of the batch, so pixels depend on later ones")
    eps = numbers.get("eps", numbers.get("epsilon"))
    assert isinstance(eps, float)
    scale = (running_var.detach().double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.detach().double()
    shift = -running_mean.detach().double() * scale
    shift = shift if bias is None else shift + bias.detach().double()
    ones = [1] * (len(input.dims) - 2)
    scaled = low.pointwise("mul", input, scale.view(-1, *ones))
    return low.pointwise("add", scaled, shift.view(-1, *ones)), None, None, None


def _normalised(low: Lowering, x: Signal, axes: Sequence[int], eps: float, what: str) -> Signal:
    for axis in axes:
        if not is_features(x.dims[axis]):
            low.refuse(f"{what} over the {named(x.dims[axis])}: each position sees later ones")
    centred, variance = moments(low, x, axes)
    scale = low.pointwise("rsqrt", low.pointwise("add", variance, eps))
    result: Signal = low.pointwise("mul", centred, scale)
    return result


def _affine(low: Lowering, x: Signal, weight: Operand | None, bias: Operand | None) -> Signal:
    x = x if weight is None else low.pointwise("mul", x, weight)
    return x if bias is None else low.pointwise("add", x, bias)


@rule(aten.native_layer_norm)
def layer_norm(
    low: Lowering,
    input: Signal,
    normalized_shape: Sequence[int],
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
) -> tuple[Any, ...]:
    axes = range(len(input.dims) - len(normalized_shape), len(input.dims))
    result = _normalised(low, input, axes, eps, "a layer norm")
    return _affine(low, result, weight, bias), None, None


@rule(aten.native_group_norm)
def group_norm(
    low: Lowering, input: Signal, weight: Tensor | None, bias: Tensor | None, group: int, eps: float
) -> tuple[Any, ...]:
    for dim in input.dims[2:]:
        if not is_features(dim):
            low.refuse(f"a group norm over the {named(dim)}: each position sees later ones")
    shape = input.shape
    grouped = input.view([shape[0], group, shape[1] // group, *shape[2:]])
    axes = range(2, len(grouped.dims))
    result = _normalised(low, grouped, axes, eps, "a group norm").view(shape)
    ones = [1] * (len(shape) - 2)
    weight, bias = (None if each is None else each.view(-1, *ones) for each in (weight, bias))
    return _affine(low, result, weight, bias), None, None


@rule(aten._fused_rms_norm)
def rms_norm(
    low: Lowering,
    input: Signal,
    normalized_shape: Sequence[int],
    weight: Operand | None,
    eps: float | None,
) -> tuple[Any, ...]:
    axes = list(range(len(input.dims) - len(normalized_shape), len(input.dims)))
    squares = low.reduce("sum", low.pointwise("mul", input, input), axes, True)
    average = low.pointwise("div", squares, float(_size(input, axes)))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    scale = low.pointwise("rsqrt", low.pointwise("add", average, eps))
    return _affine(low, low.pointwise("mul", input, scale), weight, None), None


# Tables


@rule(aten.embedding)
def embedding(low: Lowering, weight: Operand, indices: Operand) -> Signal:
    if not isinstance(weight, Tensor) or not isinstance(indices, Signal):
        low.refuse("its table depends on the input or on conditions")
    body = Lookup(indices.features.sources(), weight.detach().to(low.dtype).contiguous())
    count = len(indices.features) * weight.shape[1]
    features = low.emit(body, count, indices)
    dims = (*indices.dims, features_dim(weight.shape[1]))
    return replace(indices, dims=dims, features=features, dtype=weight.dtype)


def _from_the_end(low: Lowering, indices: Operand, rows: int) -> Operand:
    """Indices as an embedding takes them: those below 0 count from the end of the table."""
    if not isinstance(indices, Signal):
        return indices
    negative = low.pointwise("lt", indices, 0)
    return low.pointwise("add", indices, low.pointwise("mul", negative, rows))


@rule(aten.index.Tensor)
def index(low: Lowering, self: Operand, indices: Sequence[Operand | None]) -> Signal:
    given = [(axis, each) for axis, each in enumerate(indices) if each is not None]
    if isinstance(self, Tensor) and self.dim() == 2 and len(given) == 1 and given[0][0] == 0:
        return embedding(low, self, _from_the_end(low, given[0][1], len(self)))
    if not isinstance(self, Signal) or not all(isinstance(each, Tensor) for _, each in given):
        low.refuse("it chooses by an index that depends on the input or on conditions")
    if len(given) != 1:
        low.refuse(f"expected one axis indexed, got {len(given)}")
    axis, chosen = given[0]
    assert isinstance(chosen, Tensor)
    if chosen.dtype == torch.bool:
        if chosen.dim() != 1:
            low.refuse("it chooses by a mask of several axes")
        chosen = chosen.nonzero()
    elif chosen.dim() != 1:
        low.refuse(f"expected an index of one axis, got index.shape={tuple(chosen.shape)}")
    return gather_axis(low, self, axis, chosen)


@rule(aten.scatter.value, aten.scatter.src)
def scatter(low: Lowering, self: Operand, dim: int, index: Operand, **given: Any) -> Signal:
    """One feature of an axis, chosen by the input, is written: a one-hot code."""
    if not isinstance(index, Signal):
        low.refuse("it writes where a constant says, which is not supported")
    axis = index.axis(dim)
    assert not isinstance(self, float | int | bool)
    if index.shape[axis] != 1 or not is_features(index.dims[axis]):
        low.refuse(f"expected one index along axis {axis}, got {index.shape[axis]}")
    shape = [1] * len(index.dims)
    shape[axis] = self.shape[axis]
    numbers = torch.arange(shape[axis], device=low.device).view(shape)
    chosen = low.pointwise("eq", index, numbers)
    value = given["value"] if "value" in given else given["src"]
    condition, written, kept = low.broadcast(chosen, value, self)
    result: Signal = low.pointwise("where", condition, written, kept)
    return result
