"""What the tests run in other processes, to be killed there."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # torch's optimizers import it, which takes seconds
from torch import Tensor

from genfast.models import create
from genfast.training import checkpoint, fit
from tests.training.fakes import SHAPE, Fake, images

FAMILIES: dict[str, dict[str, Any]] = {
    "pixelcnn": {"channels": 4, "blocks": 1, "head_channels": 4, "kernel_size": 3},
    "gated_pixelcnn": {"channels": 4, "layers": 1, "head_channels": 4, "kernel_size": 3},
    "pixelcnn_plus_plus": {"filters": 2, "resnets": 1, "mixtures": 2},
    "autoencoder": {"latent_dim": 3, "hidden": (8,)},
    "vae": {"latent_dim": 3, "hidden": (8,)},
    "gan": {"latent_dim": 3, "channels": 4, "critic_steps": 2},
}


class SlowFake(Fake):
    """Takes its time for each step, so that a signal finds it at work."""

    pause = 0.002

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        time.sleep(self.pause)
        return super().loss(x, part)


def train(run: Path, name: str = "fake", **fields: Any) -> None:
    """Train, or go on training, until all is done."""
    torch.set_num_threads(1)
    data = images(48)
    if name == "fake":
        torch.manual_seed(3)
        model: Any = SlowFake()
    else:
        torch.manual_seed(3)
        model = create(name, image_shape=SHAPE, levels=data.levels, **FAMILIES[name])
    defaults = {
        "epochs": 5,
        "batch_size": 5,
        "ema_decay": 0.9,
        "checkpoint_every": 2,
        "log_every": 3,
        "sample_every": 7,
        "sample_count": 2,
        "progress": False,
    }
    fit(model, data, run=run, resume=True, **{**defaults, **fields})


def save_forever(run: Path) -> None:
    """Save one checkpoint after the other; everything in a checkpoint tells its step."""
    for step in range(1, 100_000):
        tensors = {"x": torch.full((2000,), float(step))}
        checkpoint.save(run, step, tensors, tensors, {"step": step})


if __name__ == "__main__":
    SlowFake.pause = float(sys.argv[2])
    train(Path(sys.argv[1]), epochs=int(sys.argv[3]), progress=True)
