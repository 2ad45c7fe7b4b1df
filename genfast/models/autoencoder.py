"""Autoencoder: a code of few numbers from which the image can be rebuilt.

Sources: Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks"
(figure 1); denoising: Vincent et al. 2008, "Extracting and composing robust features".
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

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
from genfast.nn import evaluating


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of an autoencoder.

    Attributes:
        image_shape: (C, H, W).
        levels: number of grey levels of a pixel.
        architecture: "dense" (fully connected) or "conv".
        latent_dim: numbers in the code.
        hidden: widths of the dense encoder, first to last; the decoder mirrors them.
        channels: width of the convolutional encoder at full size, doubled at every halving.
        noise_std: standard deviation of the noise on the encoder's input, in units of the whole
            grey scale; above 0 it makes a denoising autoencoder.
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    levels: int = 17
    architecture: str = "conv"
    latent_dim: int = 16
    hidden: tuple[int, ...] = (256, 128)
    channels: int = 32
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        check_image(self)
        check_choice(self, "architecture", ("dense", "conv"))
        check_sizes(self, "latent_dim", "channels")
        check_widths(self, "hidden")
        check_number(self, "noise_std", 0)


class Autoencoder(GenerativeModel):
    """x -> encoder -> z -> decoder -> x, trained on the squared error.

    An autoencoder has no prior on z, hence no samples of its own. `sample` decodes draws from a
    Gaussian fitted to the codes of the training images: their mean and covariance are followed
    during training and kept in the buffers `latent_mean` and `latent_covariance`.

    Sources: Hinton and Salakhutdinov 2006; Vincent et al. 2008 for `noise_std`.
    """

    config: AutoencoderConfig
    latent_mean: Tensor
    latent_covariance: Tensor
    latent_batches: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        shape, latent_dim = config.image_shape, config.latent_dim
        if config.architecture == "dense":
            self.encoder = dense_encoder(shape, config.hidden, latent_dim)
            self.decoder = dense_decoder(shape, config.hidden, latent_dim)
        else:
            self.encoder = conv_encoder(shape, config.channels, latent_dim)
            self.decoder = conv_decoder(shape, config.channels, latent_dim)
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_covariance", torch.eye(latent_dim))
        self.register_buffer("latent_batches", torch.zeros((), dtype=torch.int64))

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes [N, latent_dim] of integer images."""
        self._check_images(x)
        z: Tensor = self.encoder(self._scale(x))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return images [N, C, H, W] in [0, 1] for codes; `reconstruct` gives levels."""
        return cast(Tensor, self.decoder(z)).sigmoid()

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        """Return "loss", the squared error summed over the image and averaged over the batch.

        "mean_squared_error" is the same per pixel. Both measure grey in [0, 1]. In training mode
        the call also updates the Gaussian that `sample` draws from.
        """
        self._check_part(part, ("model",))
        self._check_images(x)
        target = self._scale(x)
        seen = target
        if self.config.noise_std > 0:
            seen = target + torch.randn_like(target) * self.config.noise_std
        z = self.encoder(seen)
        if self.training:
            self._follow(z.detach().to(self.latent_mean))
        # Under autocast the decoder's output is in half precision, which cannot sum over pixels.
        error = (self.decode(z).to(target.dtype) - target).square()
        loss = error.flatten(1).sum(dim=1).mean()
        return {"loss": loss, "mean_squared_error": error.detach().mean()}

    def reconstruct(self, x: Tensor) -> Tensor:
        """Encode and decode integer images; returns integer images."""
        with evaluating(self):
            return self._levels(self.decode(self.encode(x)))

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
        """Decode the straight lines between codes: images [N, steps, C, H, W] from a to b.

        Args:
            a: integer images [N, C, H, W], where the lines start.
            b: integer images [N, C, H, W], where they end.
            steps: points on each line, ends included.
        """
        require("Autoencoder", steps >= 1, "steps >= 1", steps=steps)
        with evaluating(self):
            z = interpolate_linearly(self.encode(a), self.encode(b), steps)
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
        """Decode n codes drawn from the Gaussian fitted to the training codes."""
        require_count("Autoencoder", n)
        noise = self._normal(n, self.config.latent_dim, generator=generator, first=first)
        with evaluating(self):
            # Not Cholesky: codes that do not fill all dimensions have a singular covariance.
            variances, directions = torch.linalg.eigh(self.latent_covariance.float())
            spread = directions * variances.clamp_min(0).sqrt()
            z = self.latent_mean.float() + noise @ spread.T
            return self._levels(self.decode(z.to(self.latent_mean.dtype)))

    def _follow(self, z: Tensor) -> None:
        """Move the running mean and covariance of the codes towards this batch's.

        The first 100 batches weigh the same; later ones weigh 1 / 100, to follow the encoder.
        """
        self.latent_batches += 1
        rate = (1 / self.latent_batches).clamp_min(0.01).to(z)
        mean = z.mean(dim=0)
        centred, shift = z - mean, mean - self.latent_mean
        with torch.autocast(z.device.type, enabled=False):
            within = centred.T @ centred / len(z)
        # The covariance of a mixture of the two: weights 1 - rate and rate.
        between = (1 - rate) * torch.outer(shift, shift)
        self.latent_covariance += rate * (within + between - self.latent_covariance)
        self.latent_mean += rate * shift

    def _scale(self, x: Tensor) -> Tensor:
        return x.to(self.latent_mean.dtype) / (self.config.levels - 1)

    def _levels(self, image: Tensor) -> Tensor:
        return (image * (self.config.levels - 1)).round().to(self.level_dtype)
