"""The discretized mixture of logistics of PixelCNN++."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genfast.errors import InputError
from genfast.nn.logistic_mixture import (
    PER_COMPONENT,
    level_positions,
    logistic_mixture_log_prob,
    shifted_means,
    split_mixture,
)
from genfast.sampling.distributions.categorical import invert_cdf
from genfast.sampling.distributions.distribution import (
    DrawSpec,
    LevelValues,
    check_count,
    check_levels,
    features_by_colour,
    inner_uniform,
    level_dtype,
    refuse_truncation,
)


class LogisticMixture:
    """Levels of a pixel from a mixture of logistics, cut into bins.

    Parameters are in the published order. One colour: M logits, M means, M log-scales. Three
    colours: M logits, then for each colour M means, M log-scales, M coefficients (before tanh), of
    green on red, blue on red and blue on green. The colours share their component.

    Source: Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++", sections 2.1 and 2.2.

    Args:
        levels: K, at least 2.
        mixtures: M, at least 1.
        colours: 3 to draw three colours together. With 1, a pixel of more colours has 3 M
            parameters for each, drawn one after the other.
        values: what the model sees, as in `Categorical`; [-1, 1] by default.
        layout: as in `Categorical`, for pixels of several colours with `colours=1`.
        start: the level where nothing predicts; by default the middle one.
        lowest_log_scale: log-scales below it count as this.
    """

    def __init__(
        self,
        levels: int = 256,
        mixtures: int = 10,
        colours: int = 3,
        values: Tensor | str | None = "signed",
        layout: str | None = None,
        start: int | None = None,
        lowest_log_scale: float = -7.0,
    ) -> None:
        where = "LogisticMixture"
        check_count(where, "levels", levels, 2)
        check_count(where, "mixtures", mixtures, 1)
        if colours not in PER_COMPONENT:
            raise InputError(f"{where}: expected colours 1 or 3, got colours={colours!r}")
        self.levels, self.mixtures, self.colours, self.layout = levels, mixtures, colours, layout
        self.start = levels // 2 if start is None else start
        check_levels(where, torch.tensor(self.start), levels)
        self.lowest_log_scale = lowest_log_scale
        self.dtype = level_dtype(levels)
        self.noise_per_draw = 1 + colours
        self._values = LevelValues(where, values, levels)
        self.encoded = self._values.encoded

    def __repr__(self) -> str:
        return f"LogisticMixture({self.levels}, mixtures={self.mixtures}, colours={self.colours})"

    @property
    def table(self) -> Tensor:
        """What the model sees for each level: [K, encoded], int64 or float64."""
        return self._values.table

    def draws(self, output_sizes: Sequence[int], colours: int) -> list[DrawSpec]:
        """All three colours together, or one draw a colour."""
        per_draw = PER_COMPONENT[self.colours] * self.mixtures
        if self.colours == 3:
            if colours != 3:
                raise InputError(
                    "LogisticMixture: expected pixels of 3 colours, or colours=1, "
                    f"got pixels of {colours} and colours=3"
                )
            features = features_by_colour("LogisticMixture", output_sizes, per_draw, 1, None)
            return [(0, 3, features[0])]
        features = features_by_colour(
            "LogisticMixture", output_sizes, per_draw, colours, self.layout
        )
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
        """Levels [N, colours]: the component from the first uniform, each colour from its own.

        1. The component is drawn from softmax(logits / temperature).
        2. x = mean + temperature * scale * logit(u), one colour after the other: later means depend
           on the levels of earlier ones.
        3. The level is the one nearest to x.
        """
        refuse_truncation("LogisticMixture", top_k, top_p)
        logits, means, log_scales, coefficients = split_mixture(
            parameters.double(), self.colours, self.lowest_log_scale
        )
        component = invert_cdf(logits / temperature, uniforms[:, 0])[:, None, None]
        # Not self.colours: with one colour there are no coefficients.
        means, log_scales, coefficients = (
            part.gather(2, component.expand(-1, part.shape[1], 1))
            for part in (means, log_scales, coefficients)
        )
        noise = torch.logit(inner_uniform(uniforms[:, 1:]))
        scaled = log_scales[:, :, 0].exp() * noise * temperature
        x = torch.zeros_like(means)
        levels = torch.zeros_like(means[:, :, 0], dtype=torch.int64)
        for colour in range(self.colours):
            centre = shifted_means(means, coefficients, x)[:, colour, 0]
            position = (centre + scaled[:, colour] + 1) * ((self.levels - 1) / 2)
            levels[:, colour] = position.round().clamp(0, self.levels - 1).long()
            x[:, colour, 0] = level_positions(levels[:, colour], self.levels, x.dtype)
        return levels.to(self.dtype)

    def log_prob(self, parameters: Tensor, symbols: Tensor) -> Tensor:
        """Log-probability [N] of the levels [N, colours] of a pixel together."""
        return logistic_mixture_log_prob(
            parameters.double(),
            symbols.long(),
            levels=self.levels,
            lowest_log_scale=self.lowest_log_scale,
        )

    def check(self, where: str, symbols: Tensor) -> None:
        """Refuse what are no levels."""
        check_levels(where, symbols, self.levels)
