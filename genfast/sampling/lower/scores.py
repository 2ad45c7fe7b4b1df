"""Attention between its two products, while a recording is lowered.

Scores pair every position with every other, so they are no signal on the grid. They are kept as
what was multiplied and what constants did to the product; the second product, with the values,
makes an `Attend` of it all.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from genfast.sampling.lower.layout import (
    Axis,
    Dim,
    Features,
    Signal,
    View,
    dim_size,
    features_dim,
    is_features,
)
from genfast.sampling.probe.sight import Sight
from genfast.sampling.values import Attend, Constant, Conv, Pointwise, Value

if TYPE_CHECKING:
    from genfast.sampling.lower.lowering import Lowering, Operand
    from genfast.sampling.lower.run import Run

Numbers = npt.NDArray[np.float64]  # [positions, heads, seen], 1 where they do not vary

# A score this much below the highest gets the weight zero in every dtype: exp(-745) is zero.
_UNSEEN = 1000.0
# Masks of more numbers are refused: they take 8 bytes each, some ten times over.
_MOST_PAIRS = 1 << 26


@dataclass(frozen=True, eq=False)
class Scores:
    """slope * <query, key> + offset, for [positions, heads, seen]; or softmax of it times `gain`.

    `axes` are the user's: a signal whose features are numbered head by head and, within, by the
    position of the key; no value behind it is ever computed. Where the slope is 0 the product does
    not count. `gain` is None before the softmax. A softmax over nothing gives zeros here; a model
    in which that counts gives NaN itself.
    """

    axes: Signal
    queries: Features
    keys: Features
    heads: int
    slope: Numbers
    offset: Numbers
    gain: Numbers | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return self.axes.shape

    @property
    def positions(self) -> int:
        """How many positions there are, of queries and of keys."""
        return self.axes.height * self.axes.width


def is_positions(x: Signal, dim: Dim) -> bool:
    """Whether an axis runs over all positions of the grid in raster order, and nothing else."""
    axes = [atom.axis for atom in dim if atom.size > 1]
    whole = dim_size(dim) == x.height * x.width
    return whole and axes in ([Axis.ROW, Axis.COLUMN], [Axis.ROW], [Axis.COLUMN], [])


def scores_of(low: "Lowering", queries: Signal, keys: Signal) -> Scores:
    """The product of queries [.., positions, depth] and keys [.., depth, positions]."""
    first, *_ = queries.dims
    heads = max(len(queries.features) // max(queries.shape[2], 1), 1)
    seen = queries.height * queries.width
    nothing = Value(heads * seen, queries.height, queries.width, Pointwise("copy", []))
    view = View(nothing, bottom=queries.height, right=queries.width)
    dims = (first, queries.dims[1], features_dim(seen))
    axes = replace(queries, dims=dims, features=Features.all_of(view), dtype=low.node.dtype)
    return Scores(
        axes, queries.features, keys.features, heads, np.ones((1, 1, 1)), np.zeros((1, 1, 1))
    )


def moved(low: "Lowering", x: Scores, axes: "Signal | Run") -> Scores:
    """The same scores with other axes, if none of them is gone."""
    if (
        isinstance(axes, Signal)
        and axes.features.views == x.axes.features.views
        and len(axes.features) == len(x.axes.features)
    ):
        return replace(x, axes=axes)
    low.refuse("it takes a part of the scores of an attention")


def constant(low: "Lowering", x: Scores, operand: "Operand") -> Numbers:
    """A constant that broadcasts to the scores, as [positions, heads, seen]."""
    arranged = low.arrange(operand, x.axes.dims, x.axes)
    if not isinstance(arranged, Signal):
        return np.full((1, 1, 1), float(arranged))
    view, *others = arranged.features.views
    if others or not isinstance(view.origin, Constant):
        low.refuse("it changes the scores of an attention by what is not constant")
    data = view.origin.data.double().cpu().numpy()
    raw = np.empty(len(arranged.features), np.int64)
    raw[x.axes.features.index] = arranged.features.index
    index = raw.reshape(x.heads, x.positions)
    index = index[:1] if bool((index == index[:1]).all()) else index
    rows, columns = (1, 1) if data.shape[:2] == (1, 1) else (x.axes.height, x.axes.width)
    data = np.broadcast_to(data, (rows, columns, data.shape[2])).reshape(rows * columns, -1)
    numbers: Numbers = data[:, index]
    return numbers


def changed(low: "Lowering", x: Scores, slope: Numbers, offset: Numbers) -> Scores:
    """Scores * slope + offset; after the softmax only a factor."""
    if x.gain is not None:
        if offset.any():
            low.refuse("it adds to the weights of an attention after their softmax")
        return replace(x, gain=x.gain * slope)
    with np.errstate(invalid="ignore"):
        moved_by = np.where(slope == 0, 0.0, x.offset * slope) + offset
    return replace(x, slope=x.slope * slope, offset=moved_by)


def filled(low: "Lowering", x: Scores, mask: Numbers, value: Numbers) -> Scores:
    """The scores with `value` where the mask is true."""
    hidden = mask != 0
    if x.gain is not None:
        if np.where(hidden, value, 0.0).any():
            low.refuse("it writes numbers into the weights of an attention after their softmax")
        return replace(x, gain=np.where(hidden, 0.0, x.gain))
    slope = np.where(hidden, 0.0, x.slope)
    return replace(x, slope=slope, offset=np.where(hidden, value, x.offset))


def normalised(low: "Lowering", x: Scores, dim: int) -> Scores:
    """The softmax over the positions of the keys."""
    axis = x.axes.axis(dim)
    if x.gain is not None:
        low.refuse("it takes a second softmax of the scores of an attention")
    index = x.axes.features.index.reshape(x.axes.ids.shape)
    along = np.moveaxis(index, axis, -1)
    over_keys = is_features(x.axes.dims[axis]) and along.shape[-1] == x.positions
    if not over_keys or (np.diff(along, axis=-1) != 1).any():
        low.refuse("its softmax is not over the positions of the keys, the second factor's")
    return replace(x, gain=np.ones((1, 1, 1)))


def attended(low: "Lowering", x: Scores, values: Signal, dims: tuple[Dim, ...]) -> Signal:
    """The product of weights with values, whose features are [heads, width], as a signal."""
    if x.gain is None:
        low.refuse("it multiplies scores of an attention with values, without a softmax")
    pairs = x.positions**2 * max(x.slope.shape[1], x.offset.shape[1])
    if pairs > _MOST_PAIRS:
        low.refuse(f"the mask of its attention has {pairs} numbers, more than {_MOST_PAIRS}")
    bias, scale, queries = _bias(low, x)
    sights, sight_of = _sights(bias, x.heads)
    grid = (x.axes.height, x.axes.width)
    table = torch.from_numpy(bias).to(low.device, low.dtype).view(*grid, *bias.shape[1:])
    body = Attend(
        _apart(low, queries).sources(),
        _plain(low, replace(values, features=_apart(low, x.keys))),
        _plain(low, replace(values, features=_apart(low, values.features))),
        table,
        x.heads,
        scale,
        sights,
        sight_of,
    )
    like = replace(x.axes, dims=dims, dtype=low.node.dtype)
    result = replace(like, features=low.emit(body, len(values.features), like))
    gain = _row_gain(low, x, bias)
    if gain is None:
        return result
    width = len(values.features) // x.heads
    data = np.broadcast_to(gain, (len(gain), x.heads)).repeat(width, axis=1)
    rows = torch.from_numpy(data.copy()).to(low.device, low.dtype).view(*grid, -1)
    factor = Features.all_of(View(Constant(rows, low.node.where)))
    body_of = Pointwise("mul", [result.features.sources(), factor.sources()])
    return replace(result, features=low.emit(body_of, len(result.features), like))


def _apart(low: "Lowering", features: Features) -> Features:
    """Features that are some of a convolution's, as a convolution of their own.

    Queries, keys and values are often parts of one product. Kept apart, keys lie one after another
    where they are read again and again, and queries need not be kept at all.
    """
    (view, *others), origin = features.views, features.views[0].origin
    if others or not isinstance(origin, Value) or not isinstance(origin.body, Conv):
        return features
    if len(features) == origin.features:
        return features
    chosen = torch.from_numpy(features.index.copy())
    taps = [
        replace(tap, weight=tap.weight[:, chosen.to(tap.weight.device)]) for tap in origin.body.taps
    ]
    bias = origin.body.bias
    bias = bias if bias is None else bias[chosen.to(bias.device)]
    part = replace(origin, features=len(features), body=replace(origin.body, taps=taps, bias=bias))
    low.values.append(part)
    return Features.all_of(replace(view, origin=part))


def _plain(low: "Lowering", x: Signal) -> tuple:  # type: ignore[type-arg]
    """Sources that read each position of the grid at that position, from values alone."""

    def is_plain(view: View) -> bool:
        origin = view.origin
        return (
            isinstance(origin, Value)
            and (origin.height, origin.width) == (x.height, x.width)
            and (view.dy, view.dx) == (0, 0)
            and view.top <= 0 and view.left <= 0
            and view.bottom >= x.height and view.right >= x.width
        )  # fmt: skip

    return (x if all(map(is_plain, x.features.views)) else low.settle(x)).features.sources()


def _bias(low: "Lowering", x: Scores) -> tuple[Numbers, float, Features]:
    """What is added to each score, -inf where it is not seen; and the one factor of the products.

    Where a factor belongs to a head, the queries take it.
    """
    assert x.gain is not None
    slope, offset, gain = np.broadcast_arrays(x.slope, x.offset, x.gain)
    whole = (x.positions, slope.shape[1], x.positions)
    slope, offset, gain = (np.broadcast_to(each, whole) for each in (slope, offset, gain))
    if np.isnan(offset).any() or np.isnan(slope).any():
        low.refuse("the scores of its attention have NaN in their mask")
    used = (slope != 0) & (offset > -inf)
    top = np.where(used, offset, -inf).max(axis=2, keepdims=True)
    zeroed = (gain == 0).all(axis=2)
    seen = used & (offset > top - _UNSEEN) & ~zeroed[:, :, None]
    blind = ~seen.any(axis=2)
    highest = np.where(blind[:, :, None], offset.max(axis=2, keepdims=True), top)
    constant = ~used & (offset > highest - _UNSEEN)
    constant &= ~(blind & zeroed)[:, :, None]
    if constant.any():
        position, _, key = (int(each[0]) for each in np.nonzero(constant))
        low.refuse(
            f"its attention gives position {key} a weight at position {position} that does not "
            "depend on the key: masked scores must be much lower than others, as -inf is"
        )
    factors = [np.unique(slope[:, head][seen[:, head]]) for head in range(slope.shape[1])]
    if any(len(each) > 1 for each in factors):
        low.refuse("it scales the scores of an attention differently from position to position")
    factor = np.array([each[0] if len(each) else 1.0 for each in factors])
    queries, scale = x.queries, float(factor[0])
    if (factor != factor[0]).any():
        scale, depth = 1.0, len(queries) // x.heads
        data = torch.from_numpy(factor.repeat(depth)).to(low.device, low.dtype).view(1, 1, -1)
        scaled = Features.all_of(View(Constant(data, low.node.where)))
        body = Pointwise("mul", [queries.sources(), scaled.sources()])
        queries = low.emit(body, len(queries), x.axes)
    return np.where(seen, offset, -inf), scale, queries


def _row_gain(low: "Lowering", x: Scores, bias: Numbers) -> Numbers | None:
    """The factor [positions, heads or 1] of all weights of a row; None where it is 1 everywhere."""
    assert x.gain is not None
    gain, seen = np.broadcast_arrays(x.gain, bias > -inf)
    most = np.where(seen, gain, -inf).max(axis=2)
    least = np.where(seen, gain, inf).min(axis=2)
    if ((most != least) & seen.any(axis=2)).any():
        low.refuse("it changes the weights of an attention after their softmax")
    rows: Numbers = np.where(seen.any(axis=2), most, 1.0)
    return None if (rows == 1).all() else rows


def _sights(bias: Numbers, heads: int) -> tuple[tuple[Sight, ...], npt.NDArray[np.int64]]:
    """What each head sees; heads that see the same share it."""
    sights: dict[bytes, int] = {}
    found: list[Sight] = []
    of = []
    for head in range(bias.shape[1]):
        seen = bias[:, head] > -inf
        key = np.packbits(seen).tobytes()
        if key not in sights:
            sights[key] = len(found)
            found.append(Sight(seen))
        of.append(sights[key])
    return tuple(found), np.asarray(of * heads if len(of) == 1 else of, np.int64)
