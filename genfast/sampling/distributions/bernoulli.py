"""Two levels from one logit."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast.sampling.distributions.distribution import (
    DrawSpec,
    LevelValues,
    check_levels,
    features_by_colour,
    refuse_truncation,
)


class Bernoulli:
    """Levels 0 and 1, with one logit of level 1 for each colour.

    Args:
        values: what the model sees: None for the integers 0 and 1, "unit" for the numbers 0 and 1,
            "signed" for -1 and 1, or a tensor [2] or [2, D].
        start: the level where nothing predicts.
    """

    noise_per_draw = 1
    dtype = torch.uint8

    def __init__(self, values: Tensor | str | None = "unit", start: int = 0) -> None:
        check_levels("Bernoulli", torch.tensor(start), 2)
        self.start = start
        self._values = LevelValues("Bernoulli", values, 2)
        self.encoded = self._values.encoded

    def __repr__(self) -> str:
        return "Bernoulli()"

    @property
    def table(self) -> Tensor:
        """What the model sees for each level: [2, encoded], int64 or float64."""
        return self._values.table

    def draws(self, output_sizes: Sequence[int], colours: int) -> list[DrawSpec]:
        """One draw a colour, of its logit."""
        features = features_by_colour("Bernoulli", output_sizes, 1, colours, None)
        return [(colour, 1, each) for colour, each in enumerate(features)]

    def encode(self, symbols: Tensor) -> Tensor:
        """Levels [..., count] to [..., count * encoded]."""
        return self._values.encode(symbols)

    def draw(
        self,
        parameters: Tensor,
        uniforms: Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Level 1 where the uniform number [N, 1] is at least P(0); the temperature divides logits.

        That is the inverse of the cumulative distribution, as `Categorical(2)` draws from the
        logits 0 and this.
        """
        refuse_truncation("Bernoulli", top_k, top_p)
        logits = parameters.double() / temperature
        return (uniforms.double() >= torch.sigmoid(-logits)).to(self.dtype)

    def log_prob(self, parameters: Tensor, symbols: Tensor) -> Tensor:
        """Log-probability [N] of levels [N, 1] given logits [N, 1]."""
        sign = symbols.double() * 2 - 1
        return F.logsigmoid(parameters.double() * sign)[:, 0]

    def check(self, where: str, symbols: Tensor) -> None:
        """Refuse what are no levels."""
        check_levels(where, symbols, 2)
