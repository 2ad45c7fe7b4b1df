"""Settings of the four families for the bundled digits: a few minutes on two slow cores.

They were chosen with the test images in view, so the demo shows the families and ranks nothing.
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, dict[str, Any]]

DEMO: dict[str, Settings] = {
    "pixelcnn": {
        "model": {"channels": 32, "blocks": 4, "head_channels": 64},
        "training": {"epochs": 50, "batch_size": 64, "learning_rate": 2e-3, "ema_decay": 0.99},
    },
    "autoencoder": {
        "model": {"latent_dim": 10},
        "training": {"epochs": 80, "batch_size": 64, "learning_rate": 1e-3},
    },
    "vae": {
        # A deviation for each pixel: a digit's margins are nearly always empty, its middle varies.
        "model": {"latent_dim": 12, "std": "pixel"},
        "training": {
            "epochs": 120,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "optimizer": "adamw",
            "weight_decay": 0.05,
            "ema_decay": 0.99,
        },
    },
    "gan": {
        # A smoothed discriminator (R1, no momentum) keeps 1,500 images from being memorised by it.
        "model": {"channels": 32, "r1": 0.2},
        "training": {
            "epochs": 100,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "betas": (0.0, 0.99),
            "ema_decay": 0.99,
        },
    },
}
"""Family to `model`, fields of its config, and `training`, fields of `TrainingConfig`."""
