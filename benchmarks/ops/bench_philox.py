"""philox: filling a tensor with normals (no gradient), against torch's own generator."""

import pytest
import torch

from benchmarks._harness import IMPLEMENTATIONS, Case, needs_float32, time_case
from genfast.ops import philox_normal, philox_reference

COUNTS = {"latent": 128 * 20, "image batch": 64 * 3 * 32 * 32, "large": 4_000_000}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", COUNTS)
def bench_philox(benchmark, name: str, implementation: str) -> None:
    needs_float32()
    count = COUNTS[name]
    # The harness times gradients; a scalar factor gives it one without adding traffic.
    sample = Case((torch.ones((), requires_grad=True),), bytes_moved=4 * count)

    def eager(factor: torch.Tensor) -> torch.Tensor:
        return factor * torch.randn(count, device=factor.device)[0]

    def ours(factor: torch.Tensor) -> torch.Tensor:
        return factor * philox_normal((count,), device=factor.device)[0]

    # torch's generator has other numbers: what is compared is the definition of ours.
    seed = torch.tensor([1], device=sample.inputs[0].device)
    plain = philox_reference((count,), seed, 0, normal=True)

    def defined(factor: torch.Tensor) -> torch.Tensor:
        return factor * plain[0]

    def seeded(factor: torch.Tensor) -> torch.Tensor:
        return factor * philox_normal((count,), seed=1, device=factor.device)[0]

    def check() -> None:
        numbers = philox_normal((count,), seed=1, device=plain.device)
        torch.testing.assert_close(numbers, plain, rtol=1e-6, atol=1e-6)

    benchmark.group = f"philox {name} ({count})"
    time_case(
        benchmark,
        implementation,
        sample,
        eager=eager,
        genfast=ours,
        check=check,
        compared=(defined, seeded),
    )
