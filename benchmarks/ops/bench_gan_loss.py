"""gan_loss: forward and backward of the discriminator's losses."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks._harness import IMPLEMENTATIONS, Case, time_case
from genfast.ops import gan_loss, gan_loss_reference

# Logits, half of them fake: one per image of a DCGAN batch; patches; a reduction's own speed.
COUNTS = {"dcgan": 64, "patch discriminator": 32 * 30 * 30, "large": 1_000_000}
KINDS = (
    "minimax",
    "non_saturating",
    "least_squares",
    "wasserstein",
    "hinge",
    "relativistic",
    "relativistic_average",
)


def eager(kind: str, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    if kind == "least_squares":
        return 0.5 * (fake.square().mean() + (real - 1).square().mean())
    if kind == "wasserstein":
        return fake.mean() - real.mean()
    if kind == "hinge":
        return F.relu(1 + fake).mean() + F.relu(1 - real).mean()
    if kind == "relativistic":
        return F.softplus(fake - real).mean()
    if kind == "relativistic_average":
        return F.softplus(fake - real.mean()).mean() + F.softplus(fake.mean() - real).mean()
    return F.softplus(fake).mean() + F.softplus(-real).mean()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COUNTS)
def bench_gan_loss(benchmark, name: str, kind: str, implementation: str) -> None:
    count = COUNTS[name]
    fake, real = (3 * torch.randn(count // 2)).requires_grad_(), torch.randn(count // 2)
    inputs = fake, real.requires_grad_()

    def plain(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return eager(kind, fake, real)

    def ours(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return gan_loss(fake=fake, real=real, kind=kind)

    def check() -> None:
        losses = ours(*inputs), gan_loss_reference(fake=fake, real=real, kind=kind)
        torch.testing.assert_close(*losses)
        for a, b in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
            torch.testing.assert_close(a, b)

    benchmark.group = f"gan_loss {name} {kind} ({count})"
    # Forward reads the logits and writes the slopes; backward reads those and writes gradients.
    sample = Case(inputs, bytes_moved=4 * count * 4)
    time_case(benchmark, implementation, sample, eager=plain, genfast=ours, check=check)
