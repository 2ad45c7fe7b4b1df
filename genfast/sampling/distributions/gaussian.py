"""Continuous symbols with a mean and a scale."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genfast.errors import InputError
from genfast.sampling.distributions.distribution import (
    DrawSpec,
    features_by_colour,
    inner_uniform,
    refuse_truncation,
)

SCALES = ("log_std", "std", "log_variance")


class Gaussian:
    """A normal distribution for each colour: its mean, then its scale.

    Symbols are numbers of the model's dtype, which it sees as they are.

    Args:
        scale: what the second parameter is: "log_std", "std" (above 0) or "log_variance".
        layout: which of the two parameters ("KC") or the colours ("CK") is the outer one in the
            model's output, where its shape alone cannot tell.
        start: the number where nothing predicts.
    """

    encoded = 1
    noise_per_draw = 2
    dtype = None

    def __init__(
        self, scale: str = "log_std", layout: str | None = None, start: float = 0.0
    ) -> None:
        if scale not in SCALES:
            raise InputError(f"Gaussian: expected scale in {SCALES}, got scale={scale!r}")
        self.scale, self.layout, self.start = scale, layout, float(start)

    def __repr__(self) -> str:
        return f"Gaussian({self.scale!r})"

    def draws(self, output_sizes: Sequence[int], colours: int) -> list[DrawSpec]:
        """One draw a colour, of its mean and scale."""
        features = features_by_colour("Gaussian", output_sizes, 2, colours, self.layout)
        return [(colour, 1, each) for colour, each in enumerate(features)]

    def encode(self, symbols: Tensor) -> Tensor:
        """The numbers [..., count] themselves."""
        return symbols

    def draw(
        self,
        parameters: Tensor,
        uniforms: Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Mean + temperature * std * normal noise, [N, 1]; Box and Muller make it of two uniforms.

        Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
        """
        refuse_truncation("Gaussian", top_k, top_p)
        mean, log_std = self._split(parameters)
        u = inner_uniform(uniforms)
        normal = torch.sqrt(-2 * torch.log(u[:, :1])) * torch.cos(2 * math.pi * u[:, 1:2])
        return (mean + temperature * log_std.exp() * normal).to(parameters.dtype)

    def log_prob(self, parameters: Tensor, symbols: Tensor) -> Tensor:
        """Log-density [N] of numbers [N, 1], in nats."""
        mean, log_std = self._split(parameters)
        standard = (symbols.double() - mean) * torch.exp(-log_std)
        return (-0.5 * standard.square() - log_std - 0.5 * math.log(2 * math.pi))[:, 0]

    def check(self, where: str, symbols: Tensor) -> None:
        """Refuse what are no finite numbers."""
        if not symbols.is_floating_point():
            raise InputError(f"{where}: expected floating-point symbols, got dtype={symbols.dtype}")
        if not bool(torch.isfinite(symbols).all()):
            raise InputError(f"{where}: expected finite symbols, got inf or NaN among them")

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, [N, 1] each, float64."""
        mean, scale = parameters[:, :1].double(), parameters[:, 1:2].double()
        if self.scale == "std":
            return mean, scale.log()
        return mean, scale / 2 if self.scale == "log_variance" else scale
