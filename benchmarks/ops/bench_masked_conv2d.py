"""masked_conv2d: one masked convolution of a PixelCNN, forward and backward.

The "-cropped" groups compare with the dense convolution whose kernel keeps only the rows that the
mask leaves open, which is what a careful user writes instead of `weight * mask`.
"""

import pytest
import torch
import torch.nn.functional as F

from benchmarks._harness import IMPLEMENTATIONS, Case, time_case
from genfast.ops import live_taps, masked_conv2d

# name: N, C_in, C_out, kernel size, image size, mask type
SHAPES = {
    "first-mnist-7x7": (16, 1, 64, 7, 28, "A"),
    "first-cifar-7x7": (16, 3, 128, 7, 32, "A"),
    "hidden-digits-3x3": (64, 64, 64, 3, 8, "B"),
    "hidden-mnist-3x3": (16, 64, 64, 3, 28, "B"),
    "hidden-mnist-5x5": (16, 64, 64, 5, 28, "B"),
    "hidden-mnist-7x7": (16, 64, 64, 7, 28, "B"),
    "wide-mnist-3x3": (16, 128, 128, 3, 28, "B"),
    "wide-mnist-7x7": (16, 128, 128, 7, 28, "B"),
    "head-mnist-1x1": (16, 64, 256, 1, 28, "B"),
}
BASELINES = ("masked", "cropped")


def raster_mask(kernel: int, kind: str) -> torch.Tensor:
    position = torch.arange(kernel * kernel).view(kernel, kernel)
    centre = kernel * kernel // 2
    return position < centre if kind == "A" else position <= centre


def case(N: int, C_in: int, C_out: int, kernel: int, size: int, kind: str) -> Case:
    first = kind == "A"  # the image itself needs no gradient
    x = torch.randn(N, C_in, size, size, requires_grad=not first)
    weight = torch.randn(C_out, C_in, kernel, kernel, requires_grad=True)
    bias = torch.randn(C_out, requires_grad=True)
    taps = int(raster_mask(kernel, kind).sum())
    products = N * size * size * C_in * C_out * taps
    # Forward reads x and the live weights, writes the output. Backward reads the gradient, x and
    # the live weights, writes the gradients of x (not in the first layer) and of the weight.
    pixels = N * size * size
    elements = pixels * (C_in * (2 if first else 3) + C_out * 2) + 3 * taps * C_in * C_out
    return Case(
        (x, weight, bias), bytes_moved=4 * elements, flops=2 * products * (2 if first else 3)
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", SHAPES)
def bench_masked_conv2d(benchmark, name: str, baseline: str, implementation: str) -> None:
    kernel, kind = SHAPES[name][3], SHAPES[name][5]
    half = kernel // 2
    sample = case(*SHAPES[name])
    mask = raster_mask(kernel, kind)
    taps = live_taps(mask)
    slope = torch.randn(SHAPES[name][0], SHAPES[name][2], SHAPES[name][4], SHAPES[name][4])

    def masked(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight * mask, bias, padding=half)

    def cropped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        open_rows = (weight * mask)[:, :, : half + 1]
        return F.conv2d(F.pad(x, (half, half, half, 0)), open_rows, bias)

    def ours(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return masked_conv2d(x, weight, mask, bias, padding=half, taps=taps)

    plain = {"masked": masked, "cropped": cropped}[baseline]

    def scalar(function):
        return lambda *inputs: (function(*inputs) * slope).sum()

    def check() -> None:
        wanted = [tensor for tensor in sample.inputs if tensor.requires_grad]
        results = []
        for function in (ours, plain):
            out = function(*sample.inputs)
            results.append((out, *torch.autograd.grad(out, wanted, slope)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())

    benchmark.group = f"masked_conv2d {name} against {baseline}"
    time_case(
        benchmark, implementation, sample, eager=scalar(plain), genfast=scalar(ours), check=check
    )
