"""masked_conv2d: the convolutions of a PixelCNN and of a gated one, forward and backward.

Groups compare with `weight * mask` ("masked"), or with the dense convolution whose kernel keeps
only the rows and columns that the mask leaves open, which is what a careful user writes instead
("cropped"). The gate, tanh of half of the channels times sigmoid of the others, is part of both
sides where the group says so. PyTorch's side has its images in the layout in which it is faster,
NCHW or channels last, tried out here; ours has them in NCHW.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from benchmarks._harness import IMPLEMENTATIONS, Case, forward_backward, time_case
from genfast.ops import live_taps, masked_conv2d

Sides = tuple[int, int, int, int]  # left, right, top, bottom


@dataclass(frozen=True)
class Shape:
    """One convolution of N images of size x size; `kind` is mask A, mask B or an open kernel."""

    N: int
    C_in: int
    C_out: int
    kernel: tuple[int, int]
    size: int
    kind: str
    sides: Sides
    condition: bool = False  # an addend of the output's shape, from the other stack

    @property
    def mask(self) -> torch.Tensor:
        height, width = self.kernel
        position = torch.arange(height * width).view(height, width)
        centre = height // 2 * width + width // 2
        open_until = {"A": centre, "B": centre + 1, "open": height * width}[self.kind]
        return position < open_until


def centred(N: int, C_in: int, C_out: int, kernel: tuple[int, int], size: int, kind: str) -> Shape:
    height, width = kernel[0] // 2, kernel[1] // 2
    return Shape(N, C_in, C_out, kernel, size, kind, (width, width, height, height))


def vertical(N: int, C_in: int, C_out: int, reach: int, size: int) -> Shape:
    """The vertical stack of a gated PixelCNN: the rows above and the own one."""
    kernel, sides = (reach + 1, 2 * reach + 1), (reach, reach, reach, 0)
    return Shape(N, C_in, C_out, kernel, size, "open", sides)


SHAPES = {
    "first-mnist-7x7": centred(16, 1, 64, (7, 7), 28, "A"),
    "first-cifar-7x7": centred(16, 3, 128, (7, 7), 32, "A"),
    "hidden-digits-3x3": centred(64, 64, 64, (3, 3), 8, "B"),
    "hidden-mnist-3x3": centred(16, 64, 64, (3, 3), 28, "B"),
    "hidden-mnist-5x5": centred(16, 64, 64, (5, 5), 28, "B"),
    "hidden-mnist-7x7": centred(16, 64, 64, (7, 7), 28, "B"),
    "wide-mnist-3x3": centred(16, 128, 128, (3, 3), 28, "B"),
    "wide-mnist-7x7": centred(16, 128, 128, (7, 7), 28, "B"),
    "head-mnist-1x1": centred(16, 64, 256, (1, 1), 28, "B"),
}
GATED = {
    "gated-mnist-3x3": centred(16, 64, 128, (3, 3), 28, "B"),
    "gated-mnist-5x5": centred(16, 64, 128, (5, 5), 28, "B"),
    "gated-mnist-7x7": centred(16, 64, 128, (7, 7), 28, "B"),
    "vertical-first-4x7": vertical(16, 1, 128, 3, 28),
    "vertical-2x3": vertical(16, 64, 128, 1, 28),
    "horizontal-first-1x7": centred(16, 1, 128, (1, 7), 28, "A"),
    "horizontal-1x3": centred(16, 64, 128, (1, 3), 28, "B"),
    "row-above-1x1": Shape(16, 128, 128, (1, 1), 28, "open", (0, 0, 1, -1), condition=True),
}
GROUPS = [
    *((name, baseline) for name in SHAPES for baseline in ("masked", "cropped")),
    *((name, "cropped, with the gate") for name in (*SHAPES, *GATED)),
]


def case(shape: Shape) -> Case:
    first = shape.C_in <= 3  # the image itself needs no gradient
    size = shape.size
    x = torch.randn(shape.N, shape.C_in, size, size, requires_grad=not first)
    taps = int(shape.mask.sum())
    weight = torch.randn(shape.C_out, shape.C_in, *shape.kernel)
    weight = (weight / (taps * shape.C_in) ** 0.5).requires_grad_()
    bias = torch.randn(shape.C_out, requires_grad=True)
    inputs = [x, weight, bias]
    if shape.condition:
        inputs.append(torch.randn(shape.N, shape.C_out, size, size, requires_grad=True))
    products = shape.N * size * size * shape.C_in * shape.C_out * taps
    # Forward reads x and the live weights, writes the output. Backward reads the gradient, x and
    # the live weights, writes the gradients of x (not in the first layer) and of the weight.
    elements = shape.N * size * size * (shape.C_in * (2 if first else 3) + shape.C_out * 2)
    elements += 3 * taps * shape.C_in * shape.C_out
    return Case(tuple(inputs), bytes_moved=4 * elements, flops=2 * products * (2 if first else 3))


def plain(shape: Shape, baseline: str) -> Callable[..., torch.Tensor]:
    """What a user writes in PyTorch."""
    mask = shape.mask
    left, right, top, bottom = shape.sides
    height, width = (int(mask.any(axis).nonzero().max()) + 1 for axis in (1, 0))

    def masked(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight * mask, bias, padding=(top, left))

    def cropped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        below, beside = shape.kernel[0] - height, shape.kernel[1] - width
        sides = (left, right - beside, top, bottom - below)
        kernel = weight if shape.kind == "open" else (weight * mask)[:, :, :height, :width]
        return F.conv2d(F.pad(x, sides) if any(sides) else x, kernel, bias)

    def gated(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *condition: torch.Tensor
    ) -> torch.Tensor:
        a, b = sum(condition, cropped(x, weight, bias)).chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)

    return {"masked": masked, "cropped": cropped}.get(baseline, gated)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() < 4:
        return tensor
    moved = tensor.detach().contiguous(memory_format=torch.channels_last)
    return moved.requires_grad_(tensor.requires_grad)


def seconds(step: Callable[[], object], repeats: int = 3) -> float:
    step()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("name", "baseline"), GROUPS)
def bench_masked_conv2d(benchmark, name: str, baseline: str, implementation: str) -> None:
    shape = (SHAPES | GATED)[name]
    sample = case(shape)
    mask, with_gate = shape.mask, baseline.endswith("gate")
    taps = live_taps(mask)
    channels = shape.C_out // 2 if with_gate else shape.C_out
    slope = torch.randn(shape.N, channels, shape.size, shape.size)
    eager = plain(shape, baseline)

    def ours(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        addend: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return masked_conv2d(
            x,
            weight,
            mask,
            bias,
            addend=addend,
            activation="gate" if with_gate else None,
            padding=shape.sides,
            taps=taps,
        )

    def scalar(
        function: Callable[..., torch.Tensor], slope: torch.Tensor
    ) -> Callable[..., torch.Tensor]:
        return lambda *inputs: (function(*inputs) * slope).sum()

    def check() -> None:
        wanted = [tensor for tensor in sample.inputs if tensor.requires_grad]
        results = []
        for function in (ours, eager):
            out = function(*sample.inputs)
            results.append((out, *torch.autograd.grad(out, wanted, slope)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())

    benchmark.group = f"masked_conv2d {name} against {baseline}"
    if implementation == "genfast":
        timed, form = sample, scalar(ours, slope)
    else:
        last = Case(tuple(map(channels_last, sample.inputs)), sample.bytes_moved, sample.flops)
        ways = [(sample, scalar(eager, slope)), (last, scalar(eager, channels_last(slope)))]
        timed, form = min(ways, key=lambda way: seconds(forward_backward(way[1], way[0].inputs)))
    time_case(benchmark, implementation, timed, eager=form, genfast=form, check=check)
