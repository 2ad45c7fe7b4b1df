"""How a tensor of the user's lies on a grid: which of its axes are images, rows, columns, features.

A tensor is described by what its axes are made of. Views, permutations and slices change only the
description: where each feature is read. Roles are never guessed from names or sizes; they follow
from the model's input, whose axes are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from genfast.sampling.values import Condition, Constant, Source, Sources, Value

Array = np.ndarray[Any, np.dtype[np.int64]]


class Axis(Enum):
    """What one factor of an axis runs over."""

    BATCH = "images"
    ROW = "rows"
    COLUMN = "columns"
    PART = "parts of columns"
    FEATURE = "features"


class Atom(NamedTuple):
    """A factor of an axis: `size` images, rows, columns or features.

    Columns that a view divides are parts, such as the rows of an image that the model was given as
    one line: `size` of them, each `step` columns after the one before.
    """

    axis: Axis
    size: int
    step: int = 0


Dim = tuple[Atom, ...]  # one axis of a tensor: the product of its atoms, the first varies slowest
Dims = tuple[Dim, ...]


class LayoutError(ValueError):
    """A tensor was asked for an arrangement that mixes what must stay apart."""


def dim_of(atoms: Sequence[Atom]) -> Dim:
    """An axis in its normal form: neighbouring feature atoms are one, and none has size 1."""
    dim: list[Atom] = []
    for atom in atoms:
        if atom.axis is Axis.FEATURE and atom.size == 1:
            continue
        if atom.axis is Axis.FEATURE and dim and dim[-1].axis is Axis.FEATURE:
            dim[-1] = Atom(Axis.FEATURE, dim[-1].size * atom.size)
        else:
            dim.append(atom)
    return tuple(dim)


def features_dim(size: int) -> Dim:
    """An axis of `size` features."""
    return dim_of([Atom(Axis.FEATURE, size)])


def dim_size(dim: Dim) -> int:
    """The size of an axis."""
    return prod(atom.size for atom in dim)


def feature_size(dim: Dim) -> int:
    """How many features an axis runs over."""
    return prod(atom.size for atom in dim if atom.axis is Axis.FEATURE)


def is_features(dim: Dim) -> bool:
    """Whether an axis runs over features alone (or has size 1)."""
    return all(atom.axis is Axis.FEATURE or atom.size == 1 for atom in dim)


def only_axis(dim: Dim) -> Axis | None:
    """ROW or COLUMN for an axis of rows or columns alone, else None."""
    axes = [atom.axis for atom in dim]
    return axes[0] if axes in ([Axis.ROW], [Axis.COLUMN]) else None


def same(a: Dim, b: Dim) -> bool:
    """Whether two axes run over the same, in the same order."""
    return [atom for atom in a if atom.size > 1] == [atom for atom in b if atom.size > 1]


def describe(dims: Dims) -> str:
    """Spell out the axes, e.g. [2 images, 16 features, 8 rows, 8 columns]."""
    axes = (" * ".join(f"{atom.size} {atom.axis.value}" for atom in dim) or "1" for dim in dims)
    return f"[{', '.join(axes)}]"


def regroup(dims: Dims, sizes: Sequence[int]) -> Dims:
    """The axes of a view: the same atoms in the same order, grouped to other sizes.

    Columns may be divided, and are columns again when their parts stand in order.

    Raises:
        LayoutError: an axis of images or rows would have to be divided.
    """
    left = _united(dim_of([atom for dim in dims for atom in dim]))[::-1]
    grouped: list[Dim] = []
    for size in sizes:
        group: list[Atom] = []
        if size == 1 and left and left[-1].size == 1:
            group.append(left.pop())
        while prod(atom.size for atom in group) < size:
            atom, need = left.pop(), size // prod(atom.size for atom in group)
            if atom.axis in _DIVISIBLE and atom.size > need and atom.size % need == 0:
                atom, rest = _divided(atom, need)
                left.append(rest)
            group.append(atom)
        if prod(atom.size for atom in group) != size:
            raise LayoutError(f"a view of {describe(dims)} as {list(sizes)} mixes them")
        grouped.append(dim_of(group))
    return tuple(grouped)


_DIVISIBLE = (Axis.FEATURE, Axis.COLUMN, Axis.PART)


def _divided(atom: Atom, count: int) -> tuple[Atom, Atom]:
    """An atom as `count` times the rest."""
    rest = atom.size // count
    if atom.axis is Axis.FEATURE:
        return Atom(Axis.FEATURE, count), Atom(Axis.FEATURE, rest)
    step = max(atom.step, 1)
    return Atom(Axis.PART, count, rest * step), Atom(Axis.PART, rest, step)


def _united(atoms: Sequence[Atom]) -> list[Atom]:
    """The same with neighbouring parts of columns joined where one goes on where the other ends."""
    columns = prod(atom.size for atom in atoms if atom.axis is Axis.PART)
    united: list[Atom] = []
    for atom in atoms:
        wider = Atom(Axis.PART, united[-1].size, atom.size * atom.step) if united else None
        if atom.axis is Axis.PART and united[-1:] == [wider]:
            atom = Atom(Axis.PART, united.pop().size * atom.size, atom.step)
        united.append(atom)
    whole = Atom(Axis.PART, columns, 1)
    return [Atom(Axis.COLUMN, columns) if atom == whole else atom for atom in united]


@dataclass(frozen=True)
class View:
    """Where features are read from: a `Source` without its choice of features."""

    origin: Value | Constant | Condition
    dy: int = 0
    dx: int = 0
    top: int = 0
    bottom: int = 1 << 60
    left: int = 0
    right: int = 1 << 60
    fill: float = 0.0
    moved: str = field(default="", compare=False)  # the operation that shifted it last


@dataclass(frozen=True, eq=False)
class Features:
    """Where each of some features is read: number `index` of `views[view]`."""

    views: tuple[View, ...]
    view: Array
    index: Array

    def __len__(self) -> int:
        return len(self.index)

    @staticmethod
    def all_of(view: View) -> "Features":
        """Every feature of what a view reads, in order."""
        count = view.origin.data.shape[2] if isinstance(view.origin, Constant) else 0
        if not isinstance(view.origin, Constant):
            count = view.origin.features
        return Features((view,), np.zeros(count, np.int64), np.arange(count))

    @staticmethod
    def join(parts: Sequence["Features"]) -> "Features":
        """The features of several, one after another."""
        numbers: dict[View, int] = {}
        placed = []
        for part in parts:
            there = [numbers.setdefault(view, len(numbers)) for view in part.views]
            placed.append(np.array(there, np.int64)[part.view])
        index = np.concatenate([part.index for part in parts])
        return Features(tuple(numbers), np.concatenate(placed), index)

    def take(self, order: Array) -> "Features":
        """The features with these numbers, in this order."""
        used, view = np.unique(self.view[order], return_inverse=True)
        return Features(tuple(self.views[i] for i in used), view.reshape(-1), self.index[order])

    def sources(self) -> Sources:
        """The same as few runs of equally spaced features."""
        sources = []
        first, count = 0, len(self)
        jump = np.diff(self.index)
        turns = np.diff(self.view) != 0
        while first < count:
            last = first
            step = 0
            if first + 1 < count and not turns[first] and jump[first] >= 0:
                step = int(jump[first])
                differs = np.flatnonzero(turns[first:] | (jump[first:] != step))
                last = first + int(differs[0]) if len(differs) else count - 1
            view = self.views[self.view[first]]
            bounds = (view.dy, view.dx, view.top, view.bottom, view.left, view.right)
            start, length = int(self.index[first]), last - first + 1
            step = step if length > 1 else 1
            sources.append(Source(view.origin, start, step, length, *bounds, view.fill, view.moved))
            first = last + 1
        return tuple(sources)


@dataclass(frozen=True, eq=False)
class Signal:
    """A tensor of the user's: axes `dims`, and for each of its features where to read it.

    The features are in the order of the feature atoms in `dims`. `dtype` is the user's: numbers
    are computed in the program's, but a quotient of integers, say, is another operation.
    """

    dims: Dims
    features: Features
    height: int
    width: int
    row_scale: int
    column_scale: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(dim_size(dim) for dim in self.dims)

    @property
    def ids(self) -> Array:
        """The numbers of the features, as an array with one axis per axis of the tensor."""
        return np.arange(len(self.features)).reshape([feature_size(dim) for dim in self.dims])

    def axis(self, number: int) -> int:
        """An axis counted from the front, for one that may be counted from the back."""
        return number % len(self.dims) if self.dims else 0

    def with_ids(self, ids: Array, dims: Dims) -> "Signal":
        """Other axes, and for each of their features the number of the feature here."""
        return replace(self, dims=dims, features=self.features.take(ids.reshape(-1)))

    def extent(self, axis: Axis) -> int:
        """The number of rows or columns of the grid."""
        return self.height if axis is Axis.ROW else self.width

    def has(self, axis: Axis) -> bool:
        """Whether one of the tensor's axes runs over these."""
        return any(atom.axis is axis for dim in self.dims for atom in dim)

    def permute(self, order: Sequence[int]) -> "Signal":
        """The axes in another order."""
        dims = tuple(self.dims[i] for i in order)
        return self.with_ids(self.ids.transpose(order), dims)

    def view(self, sizes: Sequence[int]) -> "Signal":
        """The same numbers in the same order, with axes of other sizes."""
        return replace(self, dims=regroup(self.dims, sizes))
