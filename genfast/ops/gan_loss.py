"""The losses of generative adversarial networks on logits."""

from typing import Literal

import torch
import torch.nn.functional as F

Kind = Literal["minimax", "non_saturating", "least_squares", "wasserstein", "hinge"]
Role = Literal["discriminator", "generator"]


def gan_loss(
    *,
    fake: torch.Tensor,
    real: torch.Tensor | None = None,
    kind: Kind = "non_saturating",
    role: Role = "discriminator",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Loss of one player."""
    return gan_loss_reference(
        fake=fake, real=real, kind=kind, role=role, label_smoothing=label_smoothing
    )


def gan_loss_reference(
    *,
    fake: torch.Tensor,
    real: torch.Tensor | None = None,
    kind: Kind = "non_saturating",
    role: Role = "discriminator",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """`gan_loss` in plain PyTorch."""
    if role == "generator":
        if kind == "minimax":
            return -F.softplus(fake).mean()
        if kind == "non_saturating":
            return F.softplus(-fake).mean()
        if kind == "least_squares":
            return 0.5 * (fake - 1).square().mean()
        return -fake.mean()
    assert real is not None
    if kind in ("minimax", "non_saturating"):
        return (F.softplus(-real) + label_smoothing * real).mean() + F.softplus(fake).mean()
    if kind == "least_squares":
        return 0.5 * ((real - (1 - label_smoothing)).square().mean() + fake.square().mean())
    if kind == "wasserstein":
        return fake.mean() - real.mean()
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
