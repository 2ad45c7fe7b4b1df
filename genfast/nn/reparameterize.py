"""The reparameterisation trick as a layer (Kingma and Welling 2014, section 2.4)."""

import torch
from torch import Tensor, nn

from genfast.ops import reparameterize


class Reparameterize(nn.Module):
    """Draw z from N(mu, exp(logvar)) and measure the KL divergence from N(0, 1), in one pass."""

    def forward(
        self, mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return z like mu, and the divergence [N] in nats per example.

        Args:
            mu: means [N, ...].
            logvar: log-variances [N, ...].
            generator: source of the noise; torch's global one by default.
        """
        return reparameterize(mu, logvar, generator=generator)
