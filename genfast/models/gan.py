"""Generative adversarial network: a generator and the discriminator that it learns to fool.

Sources: Goodfellow et al. 2014, "Generative adversarial nets"; Radford et al. 2016, "Unsupervised
representation learning with deep convolutional GANs" (figure 1); gradient penalty: Gulrajani et al.
2017, equation 3; R1: Mescheder et al. 2018, equation 9.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfast.models._base import (
    GenerativeModel,
    check_choice,
    check_image,
    check_number,
    check_sizes,
    require,
    require_count,
)
from genfast.models._coders import channels_last, downsample, halvings, upsample
from genfast.nn import GANLoss, evaluating, gradient_penalty, r1_penalty
from genfast.nn.gan_loss import KINDS


@dataclass(frozen=True)
class GANConfig:
    """Settings of a GAN.

    Attributes:
        image_shape: (C, H, W), of any size.
        levels: number of grey levels of a pixel.
        latent_dim: dimensions of z.
        channels: width at the size of the image, doubled at every halving.
        loss: "minimax", "non_saturating", "least_squares", "wasserstein", "hinge", "relativistic"
            or "relativistic_average".
        gradient_penalty: weight of (|grad D| - 1)^2 between real and generated images; None is 10
            for "wasserstein" and 0 otherwise.
        r1: gamma; gamma / 2 is the weight of |grad D|^2 at real images.
        critic_steps: discriminator updates for each generator update.
        label_smoothing: how much less than 1 the discriminator's target for real images is.
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    levels: int = 17
    latent_dim: int = 32
    channels: int = 64
    loss: str = "non_saturating"
    gradient_penalty: float | None = None
    r1: float = 0.0
    critic_steps: int = 1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_image(self)
        check_sizes(self, "latent_dim", "channels", "critic_steps")
        check_choice(self, "loss", KINDS)
        if self.gradient_penalty is None:
            object.__setattr__(
                self, "gradient_penalty", 10.0 if self.loss == "wasserstein" else 0.0
            )
        check_number(self, "gradient_penalty", 0)
        check_number(self, "r1", 0)
        check_number(self, "label_smoothing", 0, 0.5)
        smooth = self.label_smoothing == 0 or self.loss not in ("wasserstein", "hinge")
        rule = "label_smoothing only with a loss that has labels"
        require("GANConfig", smooth, rule, loss=self.loss, label_smoothing=self.label_smoothing)


class Generator(nn.Module):
    """Figure 1: z -> project and reshape -> transposed convolutions -> image.

    Each transposed convolution doubles the size and halves the width, with batch normalisation and
    ReLU; a 3 x 3 convolution and tanh make the image.
    """

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        colours, *size = config.image_shape
        sizes = halvings(size[0], size[1])
        width = config.channels * 2 ** (len(sizes) - 1)
        smallest = (width, *sizes[-1])
        layers: list[nn.Module] = [
            nn.Linear(config.latent_dim, math.prod(smallest), bias=False),
            nn.Unflatten(1, smallest),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        for source, target in zip(sizes[:0:-1], sizes[-2::-1], strict=True):
            layers += [
                upsample(width, width // 2, source, target, bias=False),
                nn.BatchNorm2d(width // 2),
                nn.ReLU(inplace=True),
            ]
            width //= 2
        self.layers = channels_last(*layers, nn.Conv2d(width, colours, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Map latents [N, latent_dim] to images [N, C, H, W] in [-1, 1]."""
        image: Tensor = self.layers(z)
        return image


class Discriminator(nn.Module):
    """The generator's mirror image: strided convolutions with leaky ReLU -> one logit.

    Unlike in the paper there is no batch normalisation here: it makes the output for one example
    depend on the others, which the gradient penalties exclude.
    """

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        colours, *size = config.image_shape
        sizes = halvings(size[0], size[1])
        width = config.channels
        layers: list[nn.Module] = [
            nn.Conv2d(colours, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for _ in sizes[1:]:
            layers += [downsample(width, 2 * width), nn.LeakyReLU(0.2, inplace=True)]
            width *= 2
        features = width * math.prod(sizes[-1])
        self.layers = channels_last(*layers, nn.Flatten(), nn.Linear(features, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] in [-1, 1] to logits [N], at least in float32."""
        logits: Tensor = self.layers(x)
        return logits.squeeze(1).to(torch.promote_types(logits.dtype, torch.float32))


class GAN(GenerativeModel):
    """A deep convolutional GAN for images of any size.

    Training alternates: `loss(x, "discriminator")`, then `loss(x, "generator")` with fresh noise.

    Sources: Goodfellow et al. 2014; Radford et al. 2016.
    """

    config: GANConfig

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)
        self.gan_loss = GANLoss(config.loss, label_smoothing=config.label_smoothing)

    def parts(self, step: int) -> tuple[str, ...]:
        """Name both players at every critic_steps-th step, the discriminator alone between."""
        both = (step + 1) % self.config.critic_steps == 0
        return ("discriminator", "generator") if both else ("discriminator",)

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """List the parameters of one player."""
        self._check_part(part, ("discriminator", "generator"))
        player = self.discriminator if part == "discriminator" else self.generator
        return list(player.parameters())

    def loss(self, x: Tensor, part: str = "discriminator") -> dict[str, Tensor]:
        """Return one player's "loss" and what it is made of.

        The generator's loss uses only the number of images in x, except that the relativistic kinds
        compare with what the discriminator says of them; neither loss has gradients for the other
        player's parameters.
        """
        self._check_part(part, ("discriminator", "generator"))
        self._check_images(x)
        real = self._scale(x)
        z = self._normal(len(x), self.config.latent_dim).to(real.dtype)
        if part == "generator":
            with _frozen(self.discriminator):
                fake_logits = self.discriminator(self.generator(z))
                real_logits = self.discriminator(real) if self.gan_loss.relativistic else None
            loss = self.gan_loss(fake=fake_logits, real=real_logits, role="generator")
            return {"loss": loss}
        with torch.no_grad():
            fake = self.generator(z)
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        loss = self.gan_loss(real=real_logits, fake=fake_logits)
        report = {
            "real_logit": real_logits.detach().mean(),
            "fake_logit": fake_logits.detach().mean(),
        }
        if self.config.gradient_penalty:
            penalty = gradient_penalty(self.discriminator, real, fake)
            loss = loss + self.config.gradient_penalty * penalty
            report["gradient_penalty"] = penalty.detach()
        if self.config.r1:
            penalty = r1_penalty(self.discriminator, real)
            loss = loss + self.config.r1 / 2 * penalty
            report["r1_penalty"] = penalty.detach()
        return {"loss": loss, **report}

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        first: int = 0,
    ) -> Tensor:
        """Generate n images of integer levels [n, C, H, W]."""
        require_count("GAN", n)
        noise = self._normal(n, self.config.latent_dim, generator=generator, first=first)
        return self._generate(noise)

    def interpolate(
        self,
        start: Tensor | int,
        end: Tensor | None = None,
        steps: int = 8,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Generate along great circles between latents: images [N, steps, C, H, W].

        On a straight line the latents would come closer to 0 than the prior ever draws them.

        Args:
            start: latents [N, latent_dim], or how many lines to draw.
            end: latents [N, latent_dim]; drawn if missing.
            steps: points on each line, ends included.
            generator: source of the latents that are drawn.
        """
        require("GAN", steps >= 1, "steps >= 1", steps=steps)
        if isinstance(start, int):
            require("GAN", start >= 1, "at least 1 line", start=start)
            start = self._normal(start, self.config.latent_dim, generator=generator)
        if end is None:
            end = self._normal(*start.shape, generator=generator)
        same = start.shape == end.shape and start.shape[1:] == (self.config.latent_dim,)
        rule = f"latents [N, {self.config.latent_dim}]"
        require("GAN", same, rule, start=list(start.shape), end=list(end.shape))
        z = torch.stack([_great_circle(start, end, i / max(steps - 1, 1)) for i in range(steps)], 1)
        images = self._generate(z.flatten(0, 1))
        return images.view(-1, steps, *images.shape[1:])

    def _generate(self, z: Tensor) -> Tensor:
        with evaluating(self):
            image: Tensor = self.generator(z.to(next(self.generator.parameters()).dtype))
            top = self.config.levels - 1
            return ((image + 1) * (top / 2)).round().clamp(0, top).to(self.level_dtype)

    def _scale(self, x: Tensor) -> Tensor:
        return x.to(next(self.parameters()).dtype) * (2 / (self.config.levels - 1)) - 1


def _great_circle(a: Tensor, b: Tensor, t: float) -> Tensor:
    cosine = torch.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    angle = cosine.acos().clamp_min(1e-4)[:, None]
    weight_a, weight_b = torch.sin((1 - t) * angle), torch.sin(t * angle)
    return (weight_a * a + weight_b * b) / torch.sin(angle)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Leave a module's parameters out of the graph that is built inside."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
