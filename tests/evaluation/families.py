"""One tiny stand-in per family, with just the methods that tell the families apart."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SHAPE, LEVELS = (1, 8, 8), 17


@dataclass(frozen=True)
class Config:
    image_shape: tuple[int, int, int] = SHAPE
    levels: int = LEVELS


class Explicit(nn.Module):
    """Draws pixel by pixel: 64 trips through one layer. Uniform over the levels."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.layer = nn.Linear(64, LEVELS)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def log_prob(self, x: Tensor) -> Tensor:
        logits = self.layer(x.flatten(1).float())[:, None].expand(-1, 64, -1)
        return logits.log_softmax(2).gather(2, x.flatten(1).long()[..., None]).sum((1, 2))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        x = torch.zeros(n, 64)
        with torch.no_grad():
            for pixel in range(64):
                p = self.layer(x).softmax(1)
                x[:, pixel] = torch.multinomial(p, 1, generator=generator)[:, 0].float()
        return x.view(n, *SHAPE).byte()


class Coder(nn.Module):
    """Encodes into five numbers and back; draws from a Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.encoder = nn.Linear(64, 5)
        self.decoder = nn.Linear(5, 64)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(1).float() / (LEVELS - 1))

    def decode(self, z: Tensor) -> Tensor:
        levels = self.decoder(z).sigmoid() * (LEVELS - 1)
        return levels.round().byte().view(-1, *SHAPE)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        t = torch.linspace(0, 1, steps)[None, :, None]
        z = torch.lerp(self.encode(a)[:, None], self.encode(b)[:, None], t)
        return self.decode(z.flatten(0, 1)).view(len(a), steps, *SHAPE)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            return self.decode(torch.randn(n, 5, generator=generator))


class Bounded(Coder):
    """A coder with a bound of -100 nats on the log-likelihood of every image, a little noisy."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = super().encode(x)
        return mean, torch.zeros_like(mean)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])

    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        return self.reconstruct(a)[:, None].expand(-1, steps, -1, -1, -1)

    def elbo(self, x: Tensor, samples: int = 1) -> Tensor:
        return -100 + torch.randn(samples, len(x)).mean(0) * 0.1


class Implicit(nn.Module):
    """Maps noise of seven numbers to an image; plays against another network."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.generator = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 64))
        self.discriminator = nn.Linear(64, 1)

    def parts(self, step: int) -> tuple[str, ...]:
        return ("discriminator", "generator")

    def draw(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            images = self.generator(z).sigmoid() * (LEVELS - 1)
        return images.round().byte().view(-1, *SHAPE)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        return self.draw(torch.randn(n, 7, generator=generator))

    def interpolate(self, n: int, *, steps: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n * steps, 7, generator=generator)
        return self.draw(z).view(n, steps, *SHAPE)


FAMILIES = {"pixelcnn": Explicit, "autoencoder": Coder, "vae": Bounded, "gan": Implicit}
