"""The plan of a sampler: a short list of typed instructions that every executor understands.

A Program computes a causal model along the scan of an image, row by row and pixel by pixel, each
number once. A sound is an image of one row. Nothing here knows how it is run: the tensors lie on
the model's device, positions are arithmetic on the scan, and loops are left to the executors.

The scan, in pseudocode, is the meaning of `When`:

    for r in rows:
        for each span of columns c0 .. c1:                  # a whole row, or a block of a sound
            run the span instructions of row r, for all of their columns in the span, in order;
                with the first span all instructions, for their columns before the scan
            for c in c0 .. c1:
                for draw in 0 .. len(draws) - 1:
                    run the pixel instructions with after == draw, in order
                    draw the symbols of draws[draw] from its parameters, write them to the input
                run the pixel instructions with after == len(draws), in order
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Buffer:
    """Storage of one value per image: `features` numbers at each position of a grid.

    Position (row, column) lies in slot (row % rows, column % columns): a cache keeps as many rows
    and columns as its readers still need. With rows == height and columns == width it keeps all.
    """

    name: str
    features: int
    height: int
    width: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Table:
    """Read-only numbers [n, rows, columns, features], each of the first three axes 1 if constant.

    A constant table holds its data, with n == 1. A conditioning table gets them at every call:
    then `data` is None, `condition` its number, and n is the batch, or 1 if `shared`.
    """

    name: str
    features: int
    height: int
    width: int
    data: Tensor | None = None
    condition: int | None = None
    shared: bool = False


@dataclass(frozen=True)
class Read:
    """A run of features of a buffer or table, as seen from a position (i, j) of a reader.

    Source position (i + dy, j + dx), features start, start + step, ... (count of them; step 0
    repeats one). Where that position is outside rows top .. bottom - 1 and columns
    left .. right - 1, every feature is `fill` instead.

    `source` is an index into `Program.buffers` or, when `table`, into `Program.tables`.
    """

    source: int
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
    table: bool = False


@dataclass(frozen=True)
class When:
    """When position (i, j) of an instruction's grid is computed.

    At the scan position (r, c) = (i * row_scale + row_offset, j * column_scale + column_offset),
    for 0 <= i < height and 0 <= j < width; never, if no scan position is that. `span`: at the
    start of the span that holds c, together with the span's other columns. Otherwise at (r, c)
    itself, after `after` of the pixel's draws.

    What stands up to `before` columns left of the scan, c = -before .. -1, such as tokens before
    the first that is drawn, is computed at the start of the row's first span in any case.
    """

    height: int
    width: int
    span: bool = False
    after: int = 0
    row_scale: int = 1
    row_offset: int = 0
    column_scale: int = 1
    column_offset: int = 0
    before: int = 0


@dataclass(frozen=True)
class Tap:
    """One product of a Gemm: `read` [count] times `weight` [count, features of the result].

    Used where (i % up, j % up) == phase; the read's position counts from (i // up * down,
    j // up * down) instead of (i, j).
    """

    read: Read
    weight: Tensor
    phase: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Gemm:
    """Features first .. first + count - 1 of buffer `out`: initial + sum over taps, in order.

    The initial value is the reads of `initial` (together `count` features) plus `bias` [count],
    each zero where it is absent. Every result is one chain of fused multiply-adds, in the order of
    taps and of features within a tap, so it does not depend on threads, batch or SIMD width. Taps
    whose read falls outside are skipped (their fill is 0).
    """

    out: int
    first: int
    count: int
    when: When
    taps: tuple[Tap, ...]
    bias: Tensor | None = None
    initial: tuple[Read, ...] = ()
    up: int = 1
    down: int = 1


@dataclass(frozen=True)
class Step:
    """One operation of an expression. `args` number earlier results: see `Pointwise`."""

    op: str
    args: tuple[int, ...]


@dataclass(frozen=True)
class Pointwise:
    """Features first .. first + count - 1 of buffer `out`, each from the same feature of inputs.

    Results are numbered: first `reads` (each with `count` features), then `constants`, then the
    results of `steps`. The last step's result is stored (a Pointwise without steps stores its
    only read: a copy). `pointwise.POINTWISE` lists the operations.
    """

    out: int
    first: int
    count: int
    when: When
    reads: tuple[Read, ...]
    constants: tuple[float, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Reduce:
    """Sum or maximum over part of the features.

    The reads' features, joined, are seen as [outer, size, inner]; the result [outer, inner] lies
    in features first .. first + outer * inner - 1 of buffer `out`. `op`: "sum" or "max".
    """

    out: int
    first: int
    when: When
    reads: tuple[Read, ...]
    op: str
    outer: int
    size: int
    inner: int


@dataclass(frozen=True)
class Lookup:
    """Features first .. first + D - 1 of buffer `out`: row `index` of `weight` [K, D].

    The index is the one feature of `read`, a whole number held in the program's dtype.
    """

    out: int
    first: int
    when: When
    read: Read
    weight: Tensor


@dataclass(frozen=True)
class Attend:
    """Attention: every position of a grid weighed by how well its key answers a query.

    The keys, joined, are seen as [heads, depth], the values as [heads, width], both at each
    position q of a height x width grid of `seen` positions (reads count from q, not from the
    reader). The queries [heads, depth] and the bias [heads or 1, seen] are read at the reader's own
    position. With

        score[h, q] = scale * sum_d queries[h, d] * keys(q)[h, d] + bias[h, q]
        weight[h, :] = softmax(score[h, :])

    features first .. first + heads * width - 1 of buffer `out` are sum_q weight[h, q] *
    values(q)[h, w]. Positions whose bias is -inf are not seen: nothing is read there, and their
    weight is zero. A head that sees nothing gives zeros.
    """

    out: int
    first: int
    when: When
    queries: tuple[Read, ...]
    keys: tuple[Read, ...]
    values: tuple[Read, ...]
    bias: Read
    heads: int
    height: int
    width: int
    scale: float


Instruction = Gemm | Pointwise | Reduce | Lookup | Attend


@dataclass(frozen=True)
class Draw:
    """What is drawn together at a pixel: colours first .. first + count - 1.

    Their distribution's parameters are the features of `reads`, joined, in the distribution's own
    order. Read positions count from the pixel (r, c). Where a read is outside there is no
    parameter: the symbol must be given, or is the distribution's start symbol.
    """

    first: int
    count: int
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class Program:
    """A model along the scan of an image of `height` x `width` pixels of `colours` symbols.

    `span` divides a row into spans of that many columns (the last may be shorter). Buffer 0 is the
    model's input: `encoded` numbers a colour, colours * encoded features, written by the draws.
    """

    colours: int
    encoded: int
    height: int
    width: int
    span: int
    dtype: torch.dtype
    device: torch.device
    buffers: tuple[Buffer, ...]
    tables: tuple[Table, ...]
    instructions: tuple[Instruction, ...]
    draws: tuple[Draw, ...]
