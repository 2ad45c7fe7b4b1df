"""Variational autoencoder: a latent Gaussian, a decoder, and a bound on the likelihood.

Sources: Kingma and Welling 2014, "Auto-encoding variational Bayes" (figure 1, appendix C);
beta: Higgins et al. 2017, "beta-VAE"; free bits: Kingma et al. 2016, "Improved variational
inference with inverse autoregressive flow", appendix C.8; learned decoder variance: Rybkin et al.
2021, "Simple and effective VAE training with calibrated decoders".
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.models._base import (
    GenerativeModel,
    check_choice,
    check_image,
    check_number,
    check_sizes,
    check_widths,
    require,
    require_count,
)
from genfast.models._coders import (
    conv_decoder,
    conv_encoder,
    dense_decoder,
    dense_encoder,
    interpolate_linearly,
)
from genfast.nn import Reparameterize, evaluating
from genfast.ops import philox_uniform, reparameterize


@dataclass(frozen=True)
class VAEConfig:
    """Settings of a variational autoencoder.

    Attributes:
        image_shape: (C, H, W).
        levels: number of grey levels of a pixel.
        architecture: "dense" (fully connected) or "conv", for encoder and decoder.
        latent_dim: dimensions of z.
        hidden: widths of the dense encoder, first to last; the decoder mirrors them.
        channels: width of the convolutional encoder at full size, doubled at every halving.
        decoder: "gaussian", or "bernoulli" (exact for 2 levels, the usual soft target otherwise).
        std: of the Gaussian decoder, in units of the whole grey scale: a number, or learned:
            "shared" by all pixels or one for each "pixel" of the image.
        beta: weight of the KL term in `loss`; `elbo` always has 1.
        free_bits: nats per latent dimension and image below which `loss` counts the KL term as
            free_bits, without a slope (`genfast.ops.reparameterize`); `elbo` never does.
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    levels: int = 17
    architecture: str = "conv"
    latent_dim: int = 16
    hidden: tuple[int, ...] = (256, 128)
    channels: int = 32
    decoder: str = "gaussian"
    std: float | str = "shared"
    beta: float = 1.0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        check_image(self)
        check_choice(self, "architecture", ("dense", "conv"))
        check_sizes(self, "latent_dim", "channels")
        check_widths(self, "hidden")
        check_choice(self, "decoder", ("gaussian", "bernoulli"))
        if isinstance(self.std, str):
            check_choice(self, "std", ("shared", "pixel"))
        else:
            check_number(self, "std", 1e-4)
        check_number(self, "beta", 0)
        check_number(self, "free_bits", 0)


class VAE(GenerativeModel):
    """z ~ N(0, 1), x ~ p(x | z); trained on the evidence lower bound.

    The approximate posterior q(z | x) is a diagonal Gaussian.
    The Gaussian decoder is a density, while images are integers. Uniform noise u in [0, 1) makes
    y = (x + u) / levels continuous, and the density of y over the bin of x integrates to p(x), so
    that E_u[log p(y)] - D log(levels) bounds log p(x) (Theis et al. 2016, section 3.1). Bits per
    dimension then compare with those of models of integers.

    Source: Kingma and Welling 2014.
    """

    config: VAEConfig
    log_std: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        shape, latent_dim = config.image_shape, config.latent_dim
        if config.architecture == "dense":
            self.encoder = dense_encoder(shape, config.hidden, 2 * latent_dim)
            self.decoder = dense_decoder(shape, config.hidden, latent_dim)
        else:
            self.encoder = conv_encoder(shape, config.channels, 2 * latent_dim)
            self.decoder = conv_decoder(shape, config.channels, latent_dim)
        self.reparameterize = Reparameterize(free_bits=config.free_bits)
        if config.decoder == "gaussian":
            if isinstance(config.std, str):
                size = () if config.std == "shared" else shape
                self.log_std = nn.Parameter(torch.full(size, math.log(0.3)))
            else:
                self.register_buffer("log_std", torch.tensor(math.log(config.std)))

    @property
    def beta(self) -> float:
        """Weight of the KL term in `loss`."""
        return self.config.beta

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and logvar of q(z | x), both [N, latent_dim], for integer images."""
        self._check_images(x)
        mu, logvar = self.encoder(self._centre(x)).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Return the means [N, C, H, W] of p(x | z), in [0, 1]; `reconstruct` gives levels."""
        return cast(Tensor, self.decoder(z)).sigmoid()

    def conditional_log_prob(
        self, x: Tensor, z: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return log p(x | z) [N] in nats; with the Gaussian decoder, the bound above for one u.

        Args:
            x: integer images [N, C, H, W].
            z: latents [N, latent_dim].
            generator: source of u; torch's global one by default.
        """
        logits = self.decoder(z)
        # Half precision cannot tell the levels apart, nor sum over many pixels.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.config.decoder == "bernoulli":
            log_prob = -F.binary_cross_entropy_with_logits(
                logits, self._centre(x), reduction="none"
            )
        else:
            u = philox_uniform(x.shape, generator=generator, device=x.device).to(logits)
            y = (x + u) / self.config.levels
            deviation = (y - logits.sigmoid()) * torch.exp(-self.log_std)
            constant = 0.5 * math.log(2 * math.pi) + math.log(self.config.levels)
            log_prob = -0.5 * deviation.square() - self.log_std - constant
        return log_prob.flatten(1).sum(dim=1)

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        """Return "loss" = "reconstruction" + beta * "kl", in nats per image.

        With free bits the loss has "kl_with_free_bits" in place of "kl", which stays the plain
        divergence: the negative of "reconstruction" + "kl" is always the bound.
        """
        self._check_part(part, ("model",))
        mu, logvar = self.encode(x)
        z, counted = self.reparameterize(mu, logvar)
        reconstruction, counted = -self.conditional_log_prob(x, z).mean(), counted.mean()
        report = {"reconstruction": reconstruction.detach(), "kl": counted.detach()}
        if self.config.free_bits:
            report["kl_with_free_bits"] = counted.detach()
            report["kl"] = _divergence(mu.detach(), logvar.detach()).mean()
        return {"loss": reconstruction + self.beta * counted, **report}

    def elbo(
        self, x: Tensor, samples: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the evidence lower bound [N] on log p(x), in nats.

        Args:
            x: integer images [N, C, H, W].
            samples: draws of z (and u) that are averaged for each image.
            generator: source of the noise; torch's global one by default.

        Raises:
            InputError: the decoder is Bernoulli and there are more than 2 levels: the soft-target
                loss is not a log-likelihood.
        """
        soft = self.config.decoder == "bernoulli" and self.config.levels != 2
        rule = "2 levels for the likelihood of a bernoulli decoder (soft targets have none)"
        require("VAE", not soft, rule, levels=self.config.levels)
        require("VAE", samples >= 1, "samples >= 1", samples=samples)
        mu, logvar = self.encode(x)
        total = torch.zeros_like(mu[:, 0])
        for _ in range(samples):
            z, kl = reparameterize(mu, logvar, generator=generator)
            total = total + self.conditional_log_prob(x, z, generator=generator) - kl
        return total / samples

    def bits_per_dim(
        self, x: Tensor, samples: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return an upper bound [N] on the bits per dimension: the negative `elbo`, per pixel."""
        dimensions = math.prod(self.config.image_shape)
        return -self.elbo(x, samples, generator=generator) / (dimensions * math.log(2))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the mean of q(z | x); returns integer images."""
        with evaluating(self):
            return self._levels(self.decode(self.encode(x)[0]))

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
        """Decode the straight lines between means of q: images [N, steps, C, H, W] from a to b.

        Args:
            a: integer images [N, C, H, W], where the lines start.
            b: integer images [N, C, H, W], where they end.
            steps: points on each line, ends included.
        """
        require("VAE", steps >= 1, "steps >= 1", steps=steps)
        with evaluating(self):
            z = interpolate_linearly(self.encode(a)[0], self.encode(b)[0], steps)
            images = self._levels(self.decode(z.flatten(0, 1)))
        return images.view(-1, steps, *images.shape[1:])

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        first: int = 0,
    ) -> Tensor:
        """Draw n latents from the prior and return the means of p(x | z), as levels."""
        require_count("VAE", n)
        z = self._normal(n, self.config.latent_dim, generator=generator, first=first)
        with evaluating(self):
            return self._levels(self.decode(z.to(next(self.parameters()).dtype)))

    def _centre(self, x: Tensor) -> Tensor:
        """Scale levels to what the decoder's mean speaks of: [0, 1], or the middles of the bins."""
        dtype, levels = next(self.parameters()).dtype, self.config.levels
        if self.config.decoder == "bernoulli":
            return x.to(dtype) / (levels - 1)
        return (x.to(dtype) + 0.5) / levels

    def _levels(self, mean: Tensor) -> Tensor:
        levels = self.config.levels
        if self.config.decoder == "bernoulli":
            return (mean * (levels - 1)).round().to(self.level_dtype)
        return (mean * levels).floor().clamp_max(levels - 1).to(self.level_dtype)


def _divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)), in nats per image [N]."""
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar).sum(dim=1)
