"""Rules of convolutions and of the dense layers that are convolutions over one pixel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast.sampling.lower.flat import flatten, image_of
from genfast.sampling.lower.layout import (
    Atom,
    Axis,
    Dim,
    Features,
    Signal,
    describe,
    dim_size,
    features_dim,
    is_features,
    only_axis,
)
from genfast.sampling.lower.lowering import Lowering, Operand, named, rule
from genfast.sampling.lower.rules.attention import add_scaled, paired
from genfast.sampling.lower.scores import Scores
from genfast.sampling.values import Conv, ConvTap

aten = torch.ops.aten

_MOST_GROUPS = 16  # groups with channels of their own become so many convolutions


@rule(aten.convolution, aten._convolution)  # the latter is what a saved trace calls
def convolution(
    low: Lowering,
    input: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    groups: int,
) -> Signal:
    return _convolution(low, input, weight, bias, stride, padding, dilation, transposed, groups)


def _convolution(
    low: Lowering,
    input: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    before: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    groups: int,
) -> Signal:
    """A convolution with padding `before` the first position; the output's shape says the rest."""
    if not isinstance(input, Signal) or not isinstance(weight, Tensor):
        low.refuse("its weight depends on the input or on conditions")
    if not (bias is None or isinstance(bias, Tensor)):
        low.refuse("its bias depends on the input or on conditions")
    rank = weight.dim() - 2
    weight = weight.detach().to(low.dtype)
    if transposed:  # [in, out / groups, ...] to [out, in / groups, ...]
        each = weight.shape[0] // groups
        grouped = weight.reshape(groups, each, *weight.shape[1:]).transpose(1, 2)
        weight = grouped.flatten(0, 1)
    steps = [
        KernelAxis(*each, transposed=transposed)
        for each in zip(
            _each(stride, rank),
            _each(before, rank),
            _each(dilation, rank),
            weight.shape[2:],
            strict=True,
        )
    ]
    return convolve(low, input, weight, bias, steps, groups)


def _masked_conv2d(
    low: Lowering,
    x: Operand,
    weight: Operand,
    mask: Operand,
    bias: Operand | None,
    taps: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Signal:
    if not isinstance(weight, Tensor) or not isinstance(mask, Tensor):
        low.refuse("its weight or mask depends on the input or on conditions")
    live = (mask != 0).expand_as(weight)
    if taps is not None:
        kernel = torch.zeros(weight[0, 0].numel(), dtype=torch.bool, device=mask.device)
        kernel[list(taps)] = True
        live = live & kernel.view(weight.shape[2:])
    masked = torch.where(live, weight * mask.to(weight.dtype), 0)
    before = (padding[2], padding[0])  # of (left, right, top, bottom)
    return _convolution(low, x, masked, bias, stride, before, dilation, False, groups)


def _masked_conv2d_reorder(low: Lowering, x: Signal) -> Signal:
    return x


if hasattr(torch.ops.genfast, "masked_conv2d"):  # else its parts are recorded
    rule(torch.ops.genfast.masked_conv2d)(_masked_conv2d)
    rule(torch.ops.genfast._masked_conv2d_reorder)(_masked_conv2d_reorder)


@dataclass(frozen=True)
class KernelAxis:
    """The arithmetic of a convolution along one axis."""

    stride: int
    padding: int  # before the first position; negative: positions cut off
    dilation: int
    kernel: int
    transposed: bool

    def tap(self, k: int) -> tuple[int, int]:
        """Phase and offset of kernel position k: see `values.Conv`."""
        place = k * self.dilation - self.padding
        if not self.transposed:
            return 0, place
        # Output i sees input (i - place) / stride where that is whole.
        phase = place % self.stride
        return phase, (phase - place) // self.stride


def convolve(
    low: Lowering,
    x: Signal,
    weight: Tensor,
    bias: Tensor | None,
    steps: list[KernelAxis],
    groups: int,
) -> Signal:
    """Convolve with weight [out, in / groups, *kernel] along the axes after the second."""
    shape = low.node.shape
    x = image_of(low, x)
    if (
        len(x.dims) != weight.dim()
        or not is_features(x.dims[1])
        or any(atom.axis is Axis.FEATURE for atom in x.dims[0])
    ):
        low.refuse(f"expected images, features and positions as axes, got {describe(x.dims)}")
    places, dims = _positions(low, x, steps, shape[2:])
    height = _size_along(places, Axis.ROW, shape, x.height)
    width = _size_along(places, Axis.COLUMN, shape, x.width)
    rate = _rate(low, x, places, steps, shape)
    transposed = steps[0].transposed
    up, down = (rate, 1) if transposed else (1, rate)
    scale = _scale(low, x, places, up, down)

    def run(channels: Any, weight: Tensor, bias: Tensor | None) -> Features:
        taps = _taps(weight, steps, places)
        inputs = x.features.take(channels).sources()
        offset = None if bias is None else bias.detach().to(low.dtype).contiguous()
        body = Conv(inputs, x.height, x.width, taps, offset, up, down)
        return low.emit(body, weight.shape[0], x, size=(height, width), scale=scale)

    out, each = weight.shape[0] // groups, weight.shape[1]
    if groups == 1:
        parts = [run(np.arange(each), weight, bias)]
    elif groups <= _MOST_GROUPS:
        parts = [
            run(
                np.arange(g * each, (g + 1) * each),
                weight[g * out : (g + 1) * out],
                None if bias is None else bias[g * out : (g + 1) * out],
            )
            for g in range(groups)
        ]
    else:
        parts = [run(np.arange(groups * each), _ungrouped(weight, groups), bias)]
    features = Features.join(parts)
    return Signal(
        (x.dims[0], features_dim(weight.shape[0]), *dims),
        features,
        height,
        width,
        *scale,
        low.node.dtype,
    )


def _positions(
    low: Lowering, x: Signal, steps: list[KernelAxis], sizes: Sequence[int]
) -> tuple[list[Axis | None], list[Dim]]:
    """For each axis that the kernel moves along: rows, columns, or None for a single position."""
    places: list[Axis | None] = [only_axis(dim) for dim in x.dims[2:]]
    for number, (dim, size) in enumerate(zip(x.dims[2:], sizes, strict=True)):
        if places[number] is None and dim_size(dim) > 1:
            low.refuse(f"its kernel moves along {named(dim)}, not along rows or columns alone")
        if places[number] is None and size > 1:
            free = [
                axis
                for axis in (Axis.ROW, Axis.COLUMN)
                if axis not in places and x.extent(axis) == 1 and not x.has(axis)
            ]
            if not free:
                low.refuse("it makes several positions out of one, which rows and columns have not")
            places[number] = free[0]
    dims: list[Dim] = [
        () if place is None else (Atom(place, size),)
        for place, size in zip(places, sizes, strict=True)
    ]
    return places, dims


def _size_along(places: list[Axis | None], axis: Axis, shape: Sequence[int], unchanged: int) -> int:
    return shape[2 + places.index(axis)] if axis in places else unchanged


def _rate(
    low: Lowering,
    x: Signal,
    places: list[Axis | None],
    steps: list[KernelAxis],
    shape: Sequence[int],
) -> int:
    """The stride, which rows and columns must share where both have more than one position.

    That is before or after: what shrinks to a single position may grow again.
    """
    strides = {
        step.stride
        for place, step, size in zip(places, steps, shape[2:], strict=True)
        if place is not None and max(size, x.extent(place)) > 1
    }
    if len(strides) > 1:
        low.refuse(f"its strides {sorted(strides)} along rows and columns differ")
    return strides.pop() if strides else 1


def _scale(
    low: Lowering, x: Signal, places: list[Axis | None], up: int, down: int
) -> tuple[int, int]:
    scales = []
    for axis, scale in ((Axis.ROW, x.row_scale), (Axis.COLUMN, x.column_scale)):
        # A single position has any scale; growing it takes back what shrinking it made.
        if axis in places and (x.extent(axis) > 1 or (up > 1 and scale % up == 0)):
            if scale * down % up:
                low.refuse("its grid would be finer than that of the input")
            scale = scale * down // up
        scales.append(scale)
    return scales[0], scales[1]


def _taps(weight: Tensor, steps: list[KernelAxis], places: list[Axis | None]) -> list[ConvTap]:
    """The taps with any weight that is not zero."""
    taps = []
    live = (weight != 0).any(0).any(0).cpu()
    for number, kernel in enumerate(product(*(range(step.kernel) for step in steps))):
        if not live[kernel]:
            continue
        offset, phase, seen = {Axis.ROW: 0, Axis.COLUMN: 0}, {Axis.ROW: 0, Axis.COLUMN: 0}, True
        for place, step, k in zip(places, steps, kernel, strict=True):
            at, by = step.tap(k)
            if place is None:  # a single position: what this tap sees besides it is padding
                seen = seen and (at, by) == (0, 0)
            else:
                phase[place], offset[place] = at, by
        if seen:
            matrix = weight.flatten(2)[:, :, number].t().contiguous()
            where = (phase[Axis.ROW], phase[Axis.COLUMN])
            taps.append(ConvTap(offset[Axis.ROW], offset[Axis.COLUMN], matrix, where))
    return taps


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weight [out, in, ...] of the same convolution without groups."""
    out, each = weight.shape[0] // groups, weight.shape[1]
    full = weight.new_zeros(weight.shape[0], groups * each, *weight.shape[2:])
    for g in range(groups):
        full[g * out : (g + 1) * out, g * each : (g + 1) * each] = weight[g * out : (g + 1) * out]
    return full


def _each(numbers: Sequence[int], rank: int) -> Sequence[int]:
    return list(numbers) * rank if len(numbers) == 1 else numbers


# Dense layers


def dense(
    low: Lowering, x: Signal, axis: int, weight: Tensor, bias: Tensor | None = None
) -> Signal:
    """Multiply the features along an axis by weight [in, out], at every position alike.

    Over an axis of positions it is a layer of the whole image: all positions become features.
    """
    if not is_features(x.dims[axis]):
        if any(atom.axis is Axis.BATCH for atom in x.dims[axis]):
            low.refuse(f"it mixes {named(x.dims[axis])}")
        x = flatten(low, x)
    ids = np.moveaxis(x.ids, axis, -1)
    rest = ids.shape[:-1]
    matrix = weight.detach().to(low.dtype).contiguous()
    offset = None if bias is None else bias.detach().to(low.dtype).contiguous()
    parts = []
    for row in ids.reshape(-1, ids.shape[-1]):
        inputs = x.features.take(row).sources()
        body = Conv(inputs, x.height, x.width, [ConvTap(0, 0, matrix)], offset)
        parts.append(low.emit(body, weight.shape[1], x))
    features = Features.join(parts)
    order = np.moveaxis(np.arange(len(features)).reshape(*rest, weight.shape[1]), -1, axis)
    dims = (*x.dims[:axis], features_dim(weight.shape[1]), *x.dims[axis + 1 :])
    whole = replace(x, features=features, dtype=low.node.dtype)
    return whole.with_ids(order, dims)


@rule(aten.mm, aten.bmm)
def mm(low: Lowering, self: Operand, mat2: Operand) -> Signal | Scores:
    return _product(low, self, mat2)


def _product(
    low: Lowering, left: Operand, right: Operand, bias: Tensor | None = None
) -> Signal | Scores:
    """The product of [.., A, K] and [.., K, B], one of which is constant."""
    if isinstance(left, Signal) and isinstance(right, Signal):
        return paired(low, left, right)
    if isinstance(left, Signal) and isinstance(right, Tensor):
        return dense(low, left, len(left.dims) - 1, _one_matrix(low, left, right), bias)
    if isinstance(right, Signal) and isinstance(left, Tensor):
        weight = _one_matrix(low, right, left).t()
        return dense(low, right, len(right.dims) - 2, weight, bias)
    low.refuse("it multiplies by a matrix that depends on conditions")


def _one_matrix(low: Lowering, x: Signal, weight: Tensor) -> Tensor:
    if weight.dim() == 2:
        return weight
    if not bool((weight == weight[:1]).all()):
        low.refuse(f"its matrix differs along the {named(x.dims[0])}")
    return weight[0]


@rule(aten.addmm, aten.baddbmm)
def addmm(low: Lowering, self: Operand, beta: float, alpha: float, **given: Any) -> Signal | Scores:
    names = ("mat1", "mat2") if "mat1" in given else ("batch1", "batch2")
    left, right = (given[name] for name in names)
    plain = isinstance(self, Tensor) and self.dim() == 1 and isinstance(left, Signal)
    if plain and alpha == beta == 1:
        assert isinstance(self, Tensor)
        bias = self if self.numel() == right.shape[-1] else self.expand(right.shape[-1])
        return _product(low, left, right, bias)
    multiplied = _product(low, left, right)
    self = 0.0 if beta == 0 else self  # then not read, and may hold anything
    if isinstance(multiplied, Scores):
        return add_scaled(low, multiplied, self, beta, alpha)
    scaled = low.pointwise("mul", multiplied, alpha)
    result, offset = low.broadcast(scaled, self)
    return low.pointwise("add", result, low.pointwise("mul", offset, beta))
