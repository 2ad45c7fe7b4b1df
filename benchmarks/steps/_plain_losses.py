"""VAE and DCGAN in plain PyTorch: genfast's networks, which are plain, and losses of their own.

The networks hold none of genfast's ops, so they are taken over with the names of their parameters.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast import models


class VAE(models.VAE):
    """A Gaussian decoder of dequantized levels; noise from torch."""

    def loss(self, x: Tensor, part: str) -> Tensor:
        levels = self.config.levels
        dtype = self.log_std.dtype
        mu, logvar = self.encoder((x.to(dtype) + 0.5) / levels).chunk(2, dim=1)
        z = mu + torch.exp(0.5 * logvar) * self.normal(*mu.shape, device=x.device).to(dtype)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum()
        y = (x + self.uniform(*x.shape, device=x.device).to(dtype)) / levels
        deviation = (y - self.decoder(z).sigmoid()) * torch.exp(-self.log_std)
        spread = 0.5 * deviation.square().sum() + x.numel() * self.log_std
        constant = x[0].numel() * (0.5 * math.log(2 * math.pi) + math.log(levels))
        return (spread + kl) / len(x) + constant

    normal = staticmethod(torch.randn)
    uniform = staticmethod(torch.rand)


class GAN(models.GAN):
    """The non-saturating loss by the cross entropy of logits; fresh noise for each player."""

    def loss(self, x: Tensor, part: str) -> Tensor:
        dtype = next(self.parameters()).dtype
        z = self.normal(len(x), self.config.latent_dim, device=x.device).to(dtype)
        if part == "generator":
            logits = self.discriminator(self.generator(z))
            return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        real = x.to(dtype) * (2 / (self.config.levels - 1)) - 1
        with torch.no_grad():
            fake = self.generator(z)
        of_real, of_fake = self.discriminator(real), self.discriminator(fake)
        cross_entropy = F.binary_cross_entropy_with_logits
        loss = cross_entropy(of_real, torch.ones_like(of_real))
        return loss + cross_entropy(of_fake, torch.zeros_like(of_fake))

    normal = staticmethod(torch.randn)
