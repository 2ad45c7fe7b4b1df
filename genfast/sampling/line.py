"""An image as one line of symbols: for models that make one of it, and put other tokens in it.

A grid has no place for a start token and all pixels, nor for colours as tokens of their own. A row
has: such a model is compiled as one of a sound, and what is compiled is shown as an image's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from torch import Tensor, nn

from genfast.errors import CausalityError, InputError, UnsupportedModelError
from genfast.sampling.distributions.distribution import DrawSpec
from genfast.sampling.model_call import TRACED_BATCH, ModelCall
from genfast.sampling.naive.trial import find_causal_way

if TYPE_CHECKING:
    from genfast.sampling.probe.causality import CausalityReport

Result = TypeVar("Result")
# Number of a way of `ModelCall.features`, its sizes, and what is drawn: None if nothing is.
Reading = tuple[int, tuple[int, ...], list[DrawSpec] | None]


@dataclass(frozen=True)
class Line:
    """An image [C, H, W] as one row of its pixels, or if `apart` of its symbols, in drawing order.

    Attributes:
        shape: (C, H, W) of the image.
        apart: whether each colour has a place of its own, those of a pixel side by side.
    """

    shape: tuple[int, int, int]
    apart: bool

    @property
    def event_shape(self) -> tuple[int, int]:
        """(colours, places) of the row."""
        colours, height, width = self.shape
        return (1, height * width * colours) if self.apart else (colours, height * width)

    @property
    def per_row(self) -> int:
        """Places of one row of the image."""
        return self.event_shape[1] // self.shape[1]

    def of_image(self, x: Tensor) -> Tensor:
        """[N, C * K, H, W] as [N, C * K, 1, H * W], or apart as [N, K, 1, H * W * C]."""
        if not self.apart:
            return x.reshape(*x.shape[:2], 1, -1)
        n, colours = len(x), self.shape[0]
        placed = x.reshape(n, colours, -1, *x.shape[2:]).permute(0, 2, 3, 4, 1)
        return placed.reshape(n, placed.shape[1], 1, -1)

    def image(self, x: Tensor) -> Tensor:
        """The inverse of `of_image`; a line may also be [N, K, places]."""
        colours, height, width = self.shape
        n, features = x.shape[:2]
        if not self.apart:
            return x.reshape(n, features, height, width)
        pixels = x.reshape(n, features, height, width, colours)
        return pixels.permute(0, 4, 1, 2, 3).reshape(n, features * colours, height, width)

    def place(self, column: int, colour: int) -> tuple[int, int, int]:
        """Row, column and colour of the image at a column and colour of the line."""
        pixel, colour = divmod(column, self.shape[0]) if self.apart else (column, colour)
        return (*divmod(pixel, self.shape[2]), colour)

    def report(self, found: "CausalityReport") -> "CausalityReport":
        """A report on the line, in pixels of the image."""
        colours, height, width = self.shape
        per_pixel = colours if self.apart else 1
        back, middle = -(-found.columns_left // per_pixel), width // 2
        # The field is that of the middle of the line: all before it stands for any distance.
        above = -(-max(back - middle, 0) // width)
        rows = height - 1 if found.columns_left == self.event_shape[1] // 2 else above
        found = replace(
            found,
            rows=rows,
            columns_left=min(back, middle) if rows == 0 else middle,
            columns_right=0 if rows == 0 else width - 1 - middle,
            colours_in_order=found.colours_in_order or (self.apart and found.columns_left > 0),
        )
        if found.leak is None:
            return found
        leak = found.leak
        row, column, colour = self.place(leak.pixel[1], leak.colour)
        sees_row, sees_column, sees_colour = self.place(leak.sees_pixel[1], leak.sees_colour)
        leak = replace(
            leak,
            pixel=(row, column),
            colour=colour,
            sees_pixel=(sees_row, sees_column),
            sees_colour=sees_colour,
            tap=divmod(leak.tap[1] // per_pixel, width),
        )
        return replace(found, leak=leak)


@dataclass(frozen=True, eq=False)
class LineCall:
    """How to call a model of images with their lines.

    Attributes:
        line: how an image is one.
        call: takes lines [N, K, places] and gives outputs [N, *feature axes, places].
        sizes: of the feature axes of the model's own output.
        draws: which features of it are whose parameters; None without a distribution.
    """

    line: Line
    call: ModelCall
    sizes: tuple[int, ...]
    draws: list[DrawSpec] | None


def with_lines(
    call: ModelCall,
    examples: Mapping[str, Tensor],
    predicts: str | None,
    attempt: Callable[[ModelCall, str | None], Result],
) -> tuple[Result, LineCall | None]:
    """`attempt(call, predicts)`; where that refuses a model of images, try it with their lines.

    Returns:
        What the attempt gives, and the lines that it was made with, if it was.

    Raises:
        What the first attempt raises; of a model that makes a sequence of the pixels, what is wrong
        with that; CausalityError if a line shows that it looks ahead.
    """
    from genfast.sampling.lower.lowering import SequenceError

    try:
        return attempt(call, predicts), None
    except UnsupportedModelError as error:
        refusal = error
    reason: UnsupportedModelError | InputError = refusal
    if len(call.event_shape) == 3 and predicts != "next":
        try:
            for lines in _lines(call, examples):
                try:
                    return attempt(lines.call, "current"), lines
                except CausalityError as error:
                    report: CausalityReport = error.report  # type: ignore[assignment]
                    raise CausalityError(lines.line.report(report)) from None
                except UnsupportedModelError as error:
                    is_first = reason is refusal and isinstance(refusal, SequenceError)
                    reason = error if is_first or isinstance(error, SequenceError) else reason
        except InputError as error:
            reason = error if isinstance(refusal, SequenceError) else refusal
        except UnsupportedModelError:
            reason = refusal  # of an output that is none of an image
    raise reason


def _lines(call: ModelCall, examples: Mapping[str, Tensor]) -> Iterator[LineCall]:
    """The ways to call a model with lines."""
    for way, sizes, draws in _read_output(call, examples):
        yield _line_call(call, way, sizes, draws, None)
        before = None if draws is None else _outside(call, sizes, draws)
        if before is not None:
            yield _line_call(call, way, sizes, draws, before)


def _read_output(call: ModelCall, examples: Mapping[str, Tensor]) -> list[Reading]:
    """Read the output in the way that does not look ahead, or if all do, in all.

    Raises:
        InputError: in none it fits the distribution.
    """
    found = call.features(call.run(call.example(examples), examples), TRACED_BATCH)
    ways, distribution = range(len(found)), call.distribution
    if distribution is None:
        return [(way, found[way][1], None) for way in ways]
    if len(found) > 1:
        with suppress(CausalityError):  # a line's report will tell where
            way, _ = find_causal_way(call, distribution, examples, None)
            ways = range(way, way + 1)
    readings: list[Reading] = []
    for way in ways:
        sizes = found[way][1]
        try:
            readings.append((way, sizes, distribution.draws(sizes, call.grid[0])))
        except InputError as error:
            problem = error
    if not readings:
        raise problem
    return readings


def _outside(call: ModelCall, sizes: Sequence[int], draws: Sequence[DrawSpec]) -> int | None:
    """How many features stand outside of the colours, if a colour alone is drawn like all are."""
    colours, count = call.grid[0], int(np.prod(sizes))
    each, rest = divmod(count, colours)
    if colours == 1 or rest or call.distribution is None:
        return None
    try:
        ((_, _, alone),) = call.distribution.draws((each,), 1)
    except InputError:
        return None
    for before in (k for k in range(1, each + 1) if each % k == 0):
        numbers = np.arange(count).reshape(before, colours, -1)
        by_colour = np.moveaxis(numbers, 1, 0).reshape(colours, -1)
        if [(c, 1, by_colour[c, alone].tolist()) for c in range(colours)] == list(draws):
            return before
    return None


def _line_call(
    call: ModelCall,
    way: int,
    sizes: tuple[int, ...],
    draws: list[DrawSpec] | None,
    before: int | None,
) -> LineCall:
    """A call with lines, of colours apart where `before` features stand outside of them."""
    line = Line(call.grid, before is not None)

    def forward(model: nn.Module, x: Tensor, **conditions: Tensor) -> Tensor:
        output = call.call(model, line.image(x), **conditions)
        planes, _ = call.features(output, len(x))[way]
        if before is None:
            return planes.reshape(len(x), *sizes, -1)
        split = planes.reshape(len(x), before, call.grid[0], -1, *call.grid[1:])
        last = split.permute(0, 1, 3, 4, 5, 2)
        return last.reshape(len(x), planes.shape[1] // call.grid[0], -1)

    of_line = ModelCall(call.model, line.event_shape, call.distribution, forward, call.where)
    return LineCall(line, of_line, sizes, draws)
