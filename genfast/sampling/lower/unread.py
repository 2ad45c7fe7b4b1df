"""What constant masks hide: numbers that a zero multiplies, or that a choice never takes.

They are read as zero instead, so that nothing waits for them. A mask counts where it hides a
feature at all positions, or whole rows or columns at an edge.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from genfast.sampling.lower.layout import Array, Features, Signal, View
from genfast.sampling.values import Constant, Value

Number = float | int | bool
Test = Callable[[Tensor], Tensor]


def without_unread(
    op: str, operands: Sequence[Signal | Number], zero: Constant
) -> list[Signal | Number]:
    """Operands with the same axes for a pointwise operation, what is hidden read from `zero`."""
    result = list(operands)
    if op == "mul":
        a, b = operands
        result = [_only(a, _shown(b, _is_not_zero), zero), _only(b, _shown(a, _is_not_zero), zero)]
    elif op == "where":
        condition, a, b = operands
        result[1] = _only(a, _shown(condition, _is_not_zero), zero)
        result[2] = _only(b, _shown(condition, _is_zero), zero)
    return result


def _is_not_zero(data: Tensor) -> Tensor:
    return data != 0


def _is_zero(data: Tensor) -> Tensor:
    return data == 0


def _shown(mask: Signal | Number, test: Test) -> Array | None:
    """First and last row, first and last column to read of each feature; None: all of them.

    Lasts are exclusive: rows 0 .. 0 are none.
    """
    if not isinstance(mask, Signal):
        return None if bool(test(torch.tensor(mask))) else np.zeros((1, 4), np.int64)
    shown = np.tile(np.array([0, mask.height, 0, mask.width]), (len(mask.features), 1))
    for number, view in enumerate(mask.features.views):
        if isinstance(view.origin, Constant) and _is_plain(view, mask):
            mine = mask.features.view == number
            marks = test(view.origin.data).cpu().numpy()[:, :, mask.features.index[mine]]
            rows = _ends(np.logical_or.reduce(marks, axis=1), mask.height)
            columns = _ends(np.logical_or.reduce(marks, axis=0), mask.width)
            shown[mine] = np.concatenate((rows, columns), axis=1)
    return shown


def _is_plain(view: View, x: Signal) -> bool:
    """Whether a constant is read where it stands, at all positions."""
    inside = view.top <= 0 and view.bottom >= x.height and view.left <= 0 and view.right >= x.width
    return inside and (view.dy, view.dx) == (0, 0)


def _ends(marks: np.ndarray, size: int) -> np.ndarray:
    """First and last marked place [features, 2] of marks [places, or 1 for all, features]."""
    marks = np.broadcast_to(marks, (size, marks.shape[1]))
    first, last = marks.argmax(axis=0), size - marks[::-1].argmax(axis=0)
    ends: np.ndarray = np.stack((first, last), axis=1) * (marks[first, range(len(first))])[:, None]
    return ends


def _only(x: Signal | Number, shown: Array | None, zero: Constant) -> Signal | Number:
    """x, of each feature only the rows and columns shown; the others read as zero or as padding."""
    if not isinstance(x, Signal) or shown is None:
        return x
    given = x.features
    whole = (shown == [0, x.height, 0, x.width]).all(axis=1)
    computed = np.array([isinstance(view.origin, Value) for view in given.views])
    chosen = np.flatnonzero(computed[given.view] & ~whole)
    if len(chosen) == 0:
        return x
    keys = np.column_stack((given.view, np.broadcast_to(shown, (len(given), 4))))[chosen]
    different, of = np.unique(keys, axis=0, return_inverse=True)
    views, view, index = list(given.views), given.view.copy(), given.index.copy()
    for number, (old, *ends) in enumerate(different.tolist()):
        mine = chosen[of.reshape(-1) == number]
        narrowed = _narrowed(given.views[old], *ends)
        if narrowed is None:
            narrowed, index[mine] = View(zero), 0
        view[mine] = len(views)
        views.append(narrowed)
    return replace(x, features=Features(tuple(views), view, index).take(np.arange(len(given))))


def _narrowed(view: View, top: int, bottom: int, left: int, right: int) -> View | None:
    """The view where a reader's rows and columns are these, its padding elsewhere; None: nowhere.

    Padding that is not finite stays as it is: a zero does not hide it.
    """
    if not isfinite(view.fill):
        return view
    if top >= bottom or left >= right:
        return None
    top, bottom = max(view.top, view.dy + top), min(view.bottom, view.dy + bottom)
    left, right = max(view.left, view.dx + left), min(view.right, view.dx + right)
    if top >= bottom or left >= right:
        return None if view.fill == 0 else view
    return replace(view, top=top, bottom=bottom, left=left, right=right)
