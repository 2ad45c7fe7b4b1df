"""Tiny models that keep to the training contract, and what to compare runs by."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genfast.data import ImageDataset
from genfast.training.checkpoint import list_checkpoints, read

LEVELS = 5
SHAPE = (1, 4, 4)


@dataclass(frozen=True)
class FakeConfig:
    image_shape: tuple[int, int, int] = SHAPE
    levels: int = LEVELS
    width: int = 8


class Fake(nn.Module):
    """One part; with a buffer that training changes, and noise from torch's global generator."""

    def __init__(self, config: FakeConfig | None = None) -> None:
        super().__init__()
        self.config = config or FakeConfig()
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, self.config.width),
            nn.BatchNorm1d(self.config.width),
            nn.Dropout(0.2),
            nn.Linear(self.config.width, size),
        )

    def parts(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        return list(self.parameters())

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        target = x.float() / (LEVELS - 1)
        noisy = target + 0.1 * torch.randn_like(target)
        error = (self.layers(noisy) - target.flatten(1)).square()
        return {"loss": error.sum(1).mean(), "worst": error.max().detach()}

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, progress: bool = False
    ) -> Tensor:
        torch.rand(3)  # a sampler that also draws from the global generator
        was_training = self.training
        self.eval()
        with torch.no_grad():
            pixels = self.layers(torch.rand(n, *SHAPE, generator=generator))
        self.train(was_training)
        return (pixels.view(n, *SHAPE) * (LEVELS - 1)).round().clamp(0, LEVELS - 1).byte()


class TwoPartFake(Fake):
    """Two parts that train alternately, the second at every other step only."""

    def __init__(self, config: FakeConfig | None = None) -> None:
        super().__init__(config)
        self.critic = nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], 1)

    def parts(self, step: int) -> tuple[str, ...]:
        return ("discriminator", "generator") if step % 2 else ("discriminator",)

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        owner = self.critic if part == "discriminator" else self.layers
        return list(owner.parameters())

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        real = x.float().flatten(1) / (LEVELS - 1)
        fake = self.layers(torch.randn_like(real))
        if part == "generator":
            return {"loss": -self.critic(fake).mean()}
        loss = (self.critic(fake) - self.critic(real)).mean()
        return {"loss": loss + 0.1 * self.critic.weight.square().sum()}


FAKES = {"fake": Fake, "two_parts": TwoPartFake}


def images(count: int = 40, levels: int = LEVELS, seed: int = 0) -> ImageDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, levels, (count, *SHAPE), generator=generator)
    return ImageDataset(pixels, levels=levels, name="noise")


def make(name: str) -> Any:
    torch.manual_seed(3)
    return FAKES[name]()


def fingerprint(run: Path) -> str:
    """Hash of everything that decides the future of a run: all but the clock."""
    newest = read(list_checkpoints(run)[0])
    position = newest.state["position"]
    for clock in ("seconds", "row_seconds"):
        position.pop(clock)
    digest = hashlib.sha256(json.dumps([newest.step, newest.state], sort_keys=True).encode())
    for tensors in (newest.weights(), newest.training()):
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A log without what the clock decides."""
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
        for row in rows
    ]
