"""An executor that runs the whole model for each draw: for models that no program is made of."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from genfast.sampling.compiled import Compiled, require_function
from genfast.sampling.distributions import Distribution
from genfast.sampling.distributions.distribution import DrawSpec
from genfast.sampling.fingerprint import fingerprint
from genfast.sampling.model_call import TRACED_BATCH, ModelCall
from genfast.sampling.naive.trial import find_causal_way

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
Tables = Callable[[Mapping[str, Tensor], int], list[Tensor]]


def naive_compiled(
    call: ModelCall,
    distribution: Distribution,
    examples: Mapping[str, Tensor],
    predicts: str | None,
) -> Compiled:
    """What compiling a model gives when it stays a model.

    What its output means is found out by trying: see `trial.find_causal_way`.

    Raises:
        UnsupportedModelError: it gives two outputs for one input, as one does that is random.
        CausalityError: it looks ahead.
        InputError: its output is not of the size that the distribution needs.
    """
    x = call.example(examples)
    require_function(call, examples)
    way, offset = find_causal_way(call, distribution, examples, predicts)
    output = call.run(x, examples)
    planes, sizes = call.features(output, TRACED_BATCH)[way]
    colours, height, width = call.grid
    draws = distribution.draws(sizes, colours)
    columns = (max(0, offset), min(width, planes.shape[3] + offset))
    names = list(examples)

    def tables(conditions: Mapping[str, Tensor], n: int) -> list[Tensor]:
        return [conditions[name] for name in names]

    def make() -> "NaiveExecutor":
        return NaiveExecutor(call, draws, way, offset, columns, names)

    predicted = torch.zeros(height, width, dtype=torch.bool)
    predicted[:, slice(*columns)] = True
    dtype, device = call.placed()
    text = f"Sampler by one forward pass of {type(call.model).__name__} per symbol\nExecutor: naive"
    weights = fingerprint(call.model)
    return Compiled(
        draws,
        sizes,
        offset,
        [predicted] * len(draws),
        tables,
        make,
        text,
        1,
        dtype,
        device,
        weights,
    )


def warn_slow(reason: Exception) -> None:
    """Warn the line of the user's that led here, however many calls of this package are between."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    text = f"sampling with one forward pass per symbol, which is slow: {reason}"
    warnings.warn(text, stacklevel=level)


class NaiveExecutor:
    """Runs the model itself; its "tables" are the conditioning as the model takes it."""

    def __init__(
        self,
        call: ModelCall,
        draws: Sequence[DrawSpec],
        way: int,
        offset: int,
        columns: tuple[int, int],
        names: Sequence[str],
    ) -> None:
        self._call, self._draws, self._names = call, draws, names
        self._way, self._offset, self._columns = way, offset, columns

    def begin(self, n: int, conditions: Sequence[Tensor] = ()) -> "NaiveRun":
        """Start n events."""
        given = dict(zip(self._names, conditions, strict=True))
        return NaiveRun(self._call, self._draws, self._way, self._offset, self._columns, given, n)


class NaiveRun:
    """n events on their way, as `protocol.Run` says."""

    def __init__(
        self,
        call: ModelCall,
        draws: Sequence[DrawSpec],
        way: int,
        offset: int,
        columns: tuple[int, int],
        given: Mapping[str, Tensor],
        n: int,
    ) -> None:
        self._call, self._draws, self._given = call, draws, given
        self._way, self._offset, self._columns = way, offset, columns
        colours, height, width = call.grid
        blank = torch.zeros(n, colours, height, width, dtype=torch.int64)
        assert call.distribution is not None
        if call.distribution.dtype is None:
            blank = blank.double()
        self._planes = call.planes(blank.to(call.placed()[1]))
        self._draw = self._row = self._column = 0

    @property
    def position(self) -> tuple[int, int, int]:
        """The next draw's number, row and column."""
        return self._draw, self._row, self._column

    @property
    def has_parameters(self) -> bool:
        """Whether the output reaches this position."""
        return self._columns[0] <= self._column < self._columns[1]

    def parameters(self) -> Tensor:
        """Parameters [n, P] of the next draw, from a whole forward pass."""
        output = self._output(self._planes)
        return output[:, self._draws[self._draw][2], self._row, self._column - self._offset]

    def supply(self, encoded: Tensor) -> None:
        """Write the next draw's symbols into the input; move on."""
        first, count, _ = self._draws[self._draw]
        size = self._call.encoded
        mine = slice(first * size, (first + count) * size)
        self._planes[:, mine, self._row, self._column] = encoded.to(self._planes.dtype)
        self._draw += 1
        if self._draw == len(self._draws):
            self._draw, self._column = 0, self._column + 1
            if self._column == self._call.grid[2]:
                self._row, self._column = self._row + 1, 0

    def forced(self, x: Tensor) -> list[Tensor]:
        """Parameters [n, P, H, W] of every draw, from one forward pass; zero where none are."""
        output = self._output(x.to(self._planes.dtype))
        width, (left, right) = self._call.grid[2], self._columns
        found = []
        for _, _, features in self._draws:
            whole = output.new_zeros(len(x), len(features), output.shape[2], width)
            columns = slice(left - self._offset, right - self._offset)
            whole[..., left:right] = output[:, features, :, columns]
            found.append(whole)
        return found

    def _output(self, planes: Tensor) -> Tensor:
        """The model's output, [n, features, H, W']."""
        output = self._call.run(self._call.as_input(planes), self._given)
        return self._call.features(output, len(planes))[self._way][0]
