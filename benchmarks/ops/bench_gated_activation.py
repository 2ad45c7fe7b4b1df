"""gated_activation: the gate of a layer of WaveNet and of gated PixelCNN, forward and backward.

Floor, for n gates in float32: forward reads 2 n numbers (4 n with a condition of the shape of x)
and writes n, backward reads those again with n of the gradient and writes 2 n: 8 n or 12 n numbers,
32 or 48 bytes a gate. The arithmetic is some 50 operations a gate each way: with AVX-512 it takes
about as long as the memory of a server does to deliver them to one core.
"""

import pytest
import torch

from benchmarks._harness import IMPLEMENTATIONS, Case, time_case
from genfast.ops import gated_activation, gated_activation_reference

SHAPES = {
    "wavenet": (1, 128, 16_000),
    "gated pixelcnn": (16, 256, 28, 28),
    "digits": (64, 72, 8, 8),
}
CONDITIONS = ("none", "label", "full")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", SHAPES)
def bench_gated_activation(benchmark, name: str, condition: str, implementation: str) -> None:
    shape = SHAPES[name]
    added = {"none": [], "label": [shape[:2]], "full": [shape]}[condition]
    inputs = tuple(torch.randn(each, requires_grad=True) for each in (shape, *added))
    gates = inputs[0].numel() // 2
    slope = torch.randn(shape[0], shape[1] // 2, *shape[2:])

    def scalar(function):
        return lambda *given: torch.dot(function(*given).view(-1), slope.view(-1))

    def check() -> None:
        functions = gated_activation, gated_activation_reference
        results = [torch.autograd.grad(scalar(each)(*inputs), inputs) for each in functions]
        torch.testing.assert_close(gated_activation(*inputs), gated_activation_reference(*inputs))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())

    benchmark.group = f"gated_activation {name}, condition {condition}"
    numbers = 12 if condition == "full" else 8
    sample = Case(inputs, bytes_moved=4 * numbers * gates, flops=100 * gates)
    time_case(
        benchmark,
        implementation,
        sample,
        eager=scalar(gated_activation_reference),
        genfast=scalar(gated_activation),
        check=check,
    )
