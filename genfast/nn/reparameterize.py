"""The reparameterisation trick as a layer (Kingma and Welling 2014, section 2.4)."""

import math

import torch
from torch import Tensor, nn

from genfast.errors import InputError
from genfast.ops import reparameterize


class Reparameterize(nn.Module):
    """Draw z from N(mu, exp(logvar)) and measure the KL divergence from N(0, 1), in one pass.

    Args:
        beta: weight of the divergence, finite, at least 0.
        free_bits: nats per latent dimension and example below which the divergence has no slope;
            see `genfast.ops.reparameterize`. With 0 and beta = 1 the divergence is the plain one.

    Raises:
        InputError: beta or free_bits is negative or not finite.
    """

    def __init__(self, *, beta: float = 1.0, free_bits: float = 0.0) -> None:
        super().__init__()
        for name, value in (("beta", beta), ("free_bits", free_bits)):
            if not 0 <= value < math.inf:
                raise InputError(
                    f"Reparameterize: expected a finite {name} >= 0, got {name}={value}"
                )
        self.beta = beta
        self.free_bits = free_bits

    def forward(
        self, mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return z like mu, and beta times the divergence [N] in nats per example.

        Args:
            mu: means [N, ...].
            logvar: log-variances [N, ...].
            generator: source of the noise; torch's global one by default.
        """
        return reparameterize(
            mu, logvar, beta=self.beta, free_bits=self.free_bits, generator=generator
        )

    def extra_repr(self) -> str:
        """Name the weights."""
        return f"beta={self.beta}, free_bits={self.free_bits}"
