"""Settings of the four families for the bundled digits: a few minutes on two slow cores."""

from __future__ import annotations

from typing import Any

Settings = dict[str, dict[str, Any]]

DEMO: dict[str, Settings] = {
    "pixelcnn": {
        "model": {"channels": 32, "blocks": 4, "head_channels": 64},
        "training": {"epochs": 20, "batch_size": 64, "learning_rate": 2e-3, "ema_decay": 0.99},
    },
    "autoencoder": {
        "model": {"latent_dim": 10},
        "training": {"epochs": 60, "batch_size": 64, "learning_rate": 1e-3},
    },
    "vae": {
        "model": {"latent_dim": 10},
        "training": {"epochs": 100, "batch_size": 64, "learning_rate": 1e-3},
    },
    "gan": {
        "model": {"channels": 32},
        "training": {
            "epochs": 100,
            "batch_size": 64,
            "learning_rate": 2e-4,
            "betas": (0.5, 0.999),
            "ema_decay": 0.99,
        },
    },
}
"""Family to `model`, fields of its config, and `training`, fields of `TrainingConfig`."""
