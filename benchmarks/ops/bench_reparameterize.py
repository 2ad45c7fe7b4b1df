"""reparameterize: forward and backward of z and the KL term."""

from functools import partial

import pytest
import torch

from benchmarks._harness import IMPLEMENTATIONS, Case, time_case
from genfast.ops import philox_normal, reparameterize, reparameterize_reference

SHAPES = {
    "vae-mnist": (128, 20),
    "vae-faces": (64, 512),
    "large": (65_536, 256),
}


def case(N: int, D: int) -> Case:
    inputs = tuple(torch.randn(N, D, requires_grad=True) for _ in range(2))
    # Forward reads mu, logvar and writes z; backward reads them again with grad_z, writes two.
    return Case(inputs, bytes_moved=4 * N * D * (3 + 5) + 4 * N * 2)


def eager(
    mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor | None = None
) -> torch.Tensor:
    noise = torch.randn_like(mu) if noise is None else noise
    z = mu + torch.exp(0.5 * logvar) * noise
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
    return z.sum() + kl.sum()


def fused(mu: torch.Tensor, logvar: torch.Tensor, seed: int | None = None) -> torch.Tensor:
    z, kl = reparameterize(mu, logvar, seed=seed)
    return z.sum() + kl.sum()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SHAPES)
def bench_reparameterize(benchmark, name: str, implementation: str) -> None:
    sample = case(*SHAPES[name])

    def check() -> None:
        ours = reparameterize(*sample.inputs, seed=1)
        plain = reparameterize_reference(*sample.inputs, torch.tensor([1]))
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    benchmark.group = f"reparameterize {name} {SHAPES[name]}"
    mu = sample.inputs[0]
    noise = philox_normal(mu.shape, seed=1, device=mu.device).to(mu.dtype)
    time_case(
        benchmark,
        implementation,
        sample,
        eager=eager,
        genfast=fused,
        check=check,
        compared=(partial(eager, noise=noise), partial(fused, seed=1)),
    )
