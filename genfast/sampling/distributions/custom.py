"""A user's own function from parameters and noise to symbols."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genfast.errors import InputError
from genfast.sampling.distributions.distribution import (
    DrawSpec,
    LevelValues,
    check_count,
    check_levels,
    features_by_colour,
    level_dtype,
    refuse_truncation,
)


class CustomDistribution:
    """Symbols from a function of the model's output.

    Args:
        function: (parameters [N, P], uniforms [N, noise]) -> symbols [N] or [N, count]. It must be
            a function of these alone, row by row, for a seed to mean the same symbols always.
        noise: uniform numbers in [0, 1) a draw takes.
        each_colour: True draws one colour after the other (count = 1), with P = outputs / colours;
            False draws a pixel's colours together, from all of the model's output for it in
            row-major order.
        levels: symbols are integers 0 .. levels - 1; None: numbers of the model's dtype.
        values: what the model sees for each level, as in `Categorical`; only with levels.
        log_prob: (parameters [N, P], symbols [N, count]) -> [N] nats, if known.
        layout: as in `Categorical`, for `each_colour`.
        start: the symbol where nothing predicts.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        *,
        noise: int = 1,
        each_colour: bool = True,
        levels: int | None = None,
        values: Tensor | str | None = None,
        log_prob: Callable[[Tensor, Tensor], Tensor] | None = None,
        layout: str | None = None,
        start: float = 0,
    ) -> None:
        where = "CustomDistribution"
        check_count(where, "noise", noise, 0)
        if not callable(function):
            raise InputError(f"{where}: expected a callable, got function={function!r}")
        if levels is None and values is not None:
            raise InputError(f"{where}: expected values= with levels=, got levels=None")
        if levels is not None:
            check_count(where, "levels", levels, 2)
            check_levels(where, torch.tensor(start), levels)
        self.noise_per_draw, self.each_colour, self.levels = noise, each_colour, levels
        self.layout, self.start = layout, start
        self.dtype = None if levels is None else level_dtype(levels)
        self._function, self._log_prob = function, log_prob
        self._values = None if levels is None else LevelValues(where, values, levels)
        self.encoded = 1 if self._values is None else self._values.encoded

    def __repr__(self) -> str:
        return f"CustomDistribution({getattr(self._function, '__name__', 'function')})"

    def draws(self, output_sizes: Sequence[int], colours: int) -> list[DrawSpec]:
        """One draw a colour, or one of the whole pixel."""
        total = math.prod(output_sizes)
        if not self.each_colour:
            return [(0, colours, list(range(total)))]
        if total % colours:
            raise InputError(
                f"CustomDistribution: expected outputs for each of {colours} colours, "
                f"got an output with feature axes {tuple(output_sizes)}"
            )
        features = features_by_colour(
            "CustomDistribution", output_sizes, total // colours, colours, self.layout
        )
        return [(colour, 1, each) for colour, each in enumerate(features)]

    def encode(self, symbols: Tensor) -> Tensor:
        """The numbers themselves, or their values."""
        return symbols if self._values is None else self._values.encode(symbols)

    def draw(
        self,
        parameters: Tensor,
        uniforms: Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """What the function gives; a temperature belongs into the function."""
        refuse_truncation("CustomDistribution", top_k, top_p)
        if temperature != 1.0:
            rule = "temperature=1 (the function may have its own)"
            raise InputError(f"CustomDistribution: expected {rule}, got temperature={temperature}")
        drawn = self._function(parameters, uniforms)
        symbols = drawn[:, None] if drawn.dim() == 1 else drawn
        if symbols.dim() != 2 or symbols.shape[0] != parameters.shape[0]:
            raise InputError(
                f"CustomDistribution: expected symbols [{parameters.shape[0]}, count] from the "
                f"function, got {list(drawn.shape)}"
            )
        return symbols.to(parameters.dtype if self.dtype is None else self.dtype)

    def log_prob(self, parameters: Tensor, symbols: Tensor) -> Tensor:
        """What the user's log_prob gives, [N] nats."""
        if self._log_prob is None:
            raise InputError("CustomDistribution: expected log_prob= to be given, got None")
        return self._log_prob(parameters, symbols).double()

    def check(self, where: str, symbols: Tensor) -> None:
        """Refuse what are no levels, or no finite numbers."""
        if self.levels is not None:
            check_levels(where, symbols, self.levels)
        elif not symbols.is_floating_point() or not bool(torch.isfinite(symbols).all()):
            raise InputError(f"{where}: expected finite floating-point symbols, got others")
