"""A softmax over levels."""

from collections.abc import Sequence

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
)


class Categorical:
    """K levels for each colour, drawn from softmax(logits) one colour after the other.

    Args:
        levels: K, at least 2.
        values: what the model sees for each level: None for the integers 0 .. K - 1, "unit" for
            [0, 1], "signed" for [-1, 1], or a tensor [K] or [K, D]: `torch.eye(K)` is one-hot.
        layout: which of levels ("KC") or colours ("CK") is the outer one in the model's output,
            where its shape alone cannot tell.
        start: the level where nothing predicts, such as the first sample of a sound.

    Raises:
        InputError: an argument breaks its rule.
    """

    noise_per_draw = 1

    def __init__(
        self,
        levels: int = 256,
        values: Tensor | str | None = None,
        layout: str | None = None,
        start: int = 0,
    ) -> None:
        check_count("Categorical", "levels", levels, 2)
        check_count("Categorical", "start", start, 0)
        if start >= levels:
            raise InputError(f"Categorical: expected start < {levels}, got start={start}")
        self.levels, self.layout, self.start = levels, layout, start
        self.dtype = level_dtype(levels)
        self._values = LevelValues("Categorical", values, levels)
        self.encoded = self._values.encoded

    def __repr__(self) -> str:
        return f"Categorical({self.levels})"

    def draws(self, output_sizes: Sequence[int], colours: int) -> list[DrawSpec]:
        """One draw a colour, of its K logits."""
        features = features_by_colour(
            "Categorical", output_sizes, self.levels, colours, self.layout
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
        """The smallest level whose cumulative probability exceeds its uniform number.

        Args:
            parameters: logits [N, K].
            uniforms: [N, 1].
            temperature: divides the logits.
            top_k: levels with a logit below the k-th largest get no probability.
            top_p: after that, only the fewest most probable levels that reach this probability
                keep theirs.

        Returns:
            [N, 1].
        """
        logits = parameters if temperature == 1.0 else parameters / temperature
        if top_k is not None or top_p is not None:
            logits = truncate(logits, top_k, top_p)
        return invert_cdf(logits, uniforms[:, 0])[:, None].to(self.dtype)

    def log_prob(self, parameters: Tensor, symbols: Tensor) -> Tensor:
        """Log-probability [N] of levels [N, 1] given logits [N, K]."""
        log_probs = parameters.double().log_softmax(dim=1)
        return log_probs.gather(1, symbols.long())[:, 0]

    def check(self, where: str, symbols: Tensor) -> None:
        """Refuse what are no levels."""
        check_levels(where, symbols, self.levels)


def invert_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw from softmax(logits) with given noise: the inverse of the cumulative distribution.

    Args:
        logits: [N, K].
        uniform: [N], in [0, 1).

    Returns:
        int64 [N], in 0 .. K - 1. Computed in float64, so that it hardly depends on the dtype.
    """
    cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
    # Scaled by the last entry, which rounding can leave below the largest possible u.
    threshold = uniform.double()[:, None] * cumulative[:, -1:]
    return (cumulative <= threshold).sum(dim=1).clamp_(max=logits.shape[1] - 1)


def truncate(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits [N, K] with -inf at the levels that top-k and top-p cut.

    Levels as probable as the k-th most probable one all stay.
    """
    if top_k is not None and top_k < logits.shape[1]:
        kth = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
        before = ordered.cumsum(dim=1) - ordered
        # The most probable level stays whatever p is.
        before[:, 0] = -1
        cut = torch.zeros_like(before, dtype=torch.bool).scatter_(1, order, before >= top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits
