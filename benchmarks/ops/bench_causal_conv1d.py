"""causal_conv1d: one layer of a WaveNet, forward and backward, against its parts in PyTorch.

Floor, for one moment with k taps, R, G and S channels, in multiplications and additions:

    convolution               4 k R G     forward, again in the backward, twice for its gradients
    residual and skip         2 G (R + S) forward, twice for their gradients
    gate                      about 50 G each way

With k=2, R=G=64, S=128 that is 57,344 forward and 147,456 backward, 204,800 together (172,032 for
PyTorch, which keeps what we compute again), or 3.3 GFLOP for 16,000 moments. Memory, forward: x and
the condition once, out and skip once: R + 2 G + R + S numbers a moment; backward: x, the condition,
both gradients, grad_h written and read again, grad_x: 3 R + S + 6 G.

On one core of a Xeon with AVX-512 the register tiles reach 177 GFLOP/s, so that the products alone
take 18.5 ms; eager takes 43 to 48 ms. Twice its speed would leave 4 ms for 1 million gates each way
(1.7 ms) and 74 MB at the speed of a copy (5 ms): the products bound the ratio, not their form.

A profile of this case: products 20 of 29 ms, as fast as a matrix product of MKL there, copies
of rows into tiles 3.5, gates 2; the rest is page faults, transposed tiles, and sums. Asking for the
next tile's rows ahead of time (prefetches spread over the products) made it slower by 2%.
"""

import pytest
import torch

from benchmarks._harness import IMPLEMENTATIONS, Case, time_case
from genfast.ops import causal_conv1d, causal_conv1d_reference

# name: N, T, channels R, G and S, taps
LAYERS = {
    "wavenet": (1, 16_000, 64, 64, 128, 2),
    "small batch": (8, 2_000, 32, 32, 64, 2),
}
DILATIONS = {"wavenet": (1, 32, 512), "small batch": (16,)}
CONDITIONS = ("none", "full")
CASES = [(name, d, c) for name in LAYERS for d in DILATIONS[name] for c in CONDITIONS]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("name", "dilation", "condition"), CASES)
def bench_causal_conv1d(
    benchmark, name: str, dilation: int, condition: str, implementation: str
) -> None:
    N, T, R, G, S, taps = LAYERS[name]
    shapes = {
        "x": (N, R, T),
        "weight": (2 * G, R, taps),
        "bias": (2 * G,),
        "skip_weight": (S, G, 1),
        "skip_bias": (S,),
        "residual_weight": (R, G, 1),
        "residual_bias": (R,),
    }
    if condition == "full":
        shapes["condition"] = (N, 2 * G, T)
    inputs = tuple(
        (0.1 * torch.randn(shape) if name.endswith("weight") else torch.randn(shape))
        .detach()
        .requires_grad_()
        for name, shape in shapes.items()
    )
    slopes = torch.randn(N * R * T), torch.randn(N * S * T)

    def scalar(function):
        def loss(*given):
            outputs = function(**dict(zip(shapes, given, strict=True)), dilation=dilation)
            pairs = zip(outputs, slopes, strict=True)
            return sum(torch.dot(out.view(-1), slope) for out, slope in pairs)

        return loss

    def check() -> None:
        functions = causal_conv1d, causal_conv1d_reference
        results = [torch.autograd.grad(scalar(each)(*inputs), inputs) for each in functions]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())

    benchmark.group = f"causal_conv1d {name}, dilation {dilation}, condition {condition}"
    products = 4 * taps * R * G * 4 + 2 * G * (R + S) * 3
    conditions = 2 * G if condition == "full" else 0
    numbers = 5 * R + 2 * S + 4 * G + 2 * conditions
    sample = Case(inputs, bytes_moved=4 * N * T * numbers, flops=N * T * (products + 100 * G))
    time_case(
        benchmark,
        implementation,
        sample,
        eager=scalar(causal_conv1d_reference),
        genfast=scalar(causal_conv1d),
        check=check,
    )
