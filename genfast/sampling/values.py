"""What a captured model becomes: values on grids, each computed by one kind of arithmetic.

A value is `features` numbers at every position of a `height` x `width` grid, for each image. The
axes of the user's tensors are gone: a permute, view, slice, pad or concatenation moves no number
and is a change of which `Source` is read, not a value.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from genfast.sampling.probe.sight import Sight


@dataclass(eq=False)
class Value:
    """One node. `where` names the user's operation: op, module path and source line, for errors.

    row_scale, column_scale: how many input rows (columns) one row (column) of the grid spans.
    """

    features: int
    height: int
    width: int
    body: "Input | Conv | Pointwise | Reduce | Lookup | Attend | Flatten | Unflatten"
    row_scale: int = 1
    column_scale: int = 1
    where: str = ""


@dataclass(eq=False)
class Constant:
    """Numbers known when compiling: `data` [rows, columns, features], 1 where they do not vary."""

    data: Tensor
    where: str = ""


@dataclass(eq=False)
class Condition:
    """Numbers known at the start of a call, from the captured node `node`.

    Its tensor, permuted by `axes` and reshaped, is [n, rows, columns, features], 1 where it does
    not vary; n is 1 if `shared` by the batch.
    """

    features: int
    height: int
    width: int
    shared: bool
    node: Any
    axes: tuple[int, ...]
    where: str = ""


@dataclass(frozen=True, eq=False)
class Source:
    """`count` features of something, seen from a reader's grid: `program.Read` with an object.

    Reader's position (i, j) sees position (i + dy, j + dx) and features start, start + step, ...;
    outside rows top .. bottom - 1 and columns left .. right - 1 of the origin it sees `fill`.
    Bounds are never beyond the origin's own grid (a constant axis of size 1 has no bounds of its
    own: it is read at 0 wherever the bounds hold). `moved`: the operation that shifted it last.
    """

    origin: Value | Constant | Condition
    start: int
    step: int
    count: int
    dy: int = 0
    dx: int = 0
    top: int = 0
    bottom: int = 1 << 60
    left: int = 0
    right: int = 1 << 60
    fill: float = 0.0
    moved: str = ""


Sources = tuple[Source, ...]  # joined: the features of a tensor, in its own order


@dataclass(eq=False)
class Input:
    """The model's input: what the symbols drawn so far are encoded as."""


@dataclass(eq=False)
class ConvTap:
    """`weight` [features read, features out] at an offset (dy, dx): see `Conv`."""

    dy: int
    dx: int
    weight: Tensor
    phase: tuple[int, int] = (0, 0)


@dataclass(eq=False)
class Conv:
    """Sum over taps of weight^T times the input at (i // up * down + dy, j // up * down + dx).

    A tap counts where (i % up, j % up) == its phase. Positions outside the height x width of the
    input tensor are zero padding. Dense layers over the features are convolutions with one tap.
    Transposed convolutions have up > 1, strided ones down > 1.
    """

    inputs: Sources
    height: int
    width: int
    taps: list[ConvTap]
    bias: Tensor | None = None
    up: int = 1
    down: int = 1


@dataclass(eq=False)
class Pointwise:
    """`op` of `pointwise.POINTWISE` on each feature; an operand is Sources or a number."""

    op: str
    operands: list[Sources | float]


@dataclass(eq=False)
class Previous(Pointwise):
    """What a later value of the graph, the `state` of a recurrence, was one position before.

    Its operands read the state, zero where no position is before; `carry` says where. It is the
    only body that reads what comes after it. Between the two stands one step of the recurrence,
    which reads besides only `inputs`, at its own position. With `backwards` the position after
    is read, which nothing can compute along a scan.
    """

    inputs: Sources = ()
    backwards: bool = False
    state: Value | None = None

    def carry(self, state: Value) -> None:
        """Close the loop: row by row, the position before the first of a row ends the last one."""
        back = 1 if self.backwards else -1
        ends = (0, state.height, 0, state.width)
        shifts = [(0, back), (back, -back * (state.width - 1))]
        lines = (state.width > 1, state.height > 1)
        reads: list[Sources | float] = [
            (Source(state, 0, 1, state.features, dy, dx, *ends),)
            for (dy, dx), there in zip(shifts, lines, strict=True)
            if there
        ]
        self.state, self.operands = state, reads
        self.op = "add" if len(reads) > 1 else "copy"


@dataclass(eq=False)
class Reduce:
    """`op` ("sum" or "max") over the middle of the features seen as [outer, size, inner]."""

    op: str
    inputs: Sources
    outer: int
    size: int
    inner: int


@dataclass(eq=False)
class Lookup:
    """Rows of `weight` [K, D] at each of the indices read; D features each, one after another."""

    indices: Sources
    weight: Tensor


@dataclass(eq=False)
class Attend:
    """Softmax attention of every position to those of a grid of the same size: `program.Attend`.

    Keys [heads, depth] and values [heads, width] are read at the positions that are seen, queries
    [heads, depth] at the reader's own. `bias` [height, width, heads or 1, positions] is added to
    the scores, -inf where a position is not seen. Head h sees what `sights[sight_of[h]]` says.
    """

    queries: Sources
    keys: Sources
    values: Sources
    bias: Tensor
    heads: int
    scale: float
    sights: tuple[Sight, ...]
    sight_of: npt.NDArray[np.int64]


@dataclass(eq=False)
class Flatten:
    """All positions of a height x width grid as features of a single one.

    Feature (i * width + j) * count + f is feature f of the count joined ones at position (i, j).
    """

    inputs: Sources
    height: int
    width: int


@dataclass(eq=False)
class Unflatten:
    """The inverse of `Flatten`: features of a single position, dealt out to a grid of positions."""

    inputs: Sources


@dataclass
class Graph:
    """A captured model: its values in order of computation, and what it returns.

    `outputs` are the features of the model's output in the tensor's own order with batch, row and
    column axes taken out; `output_sizes` are the sizes of the feature axes (for [N, K, C, H, W]:
    (K, C)); the output grid is `output_height` x `output_width`.
    """

    input: Value
    values: list[Value]
    outputs: Sources
    output_sizes: tuple[int, ...]
    output_height: int
    output_width: int
    conditions: list[Condition] = field(default_factory=list)
