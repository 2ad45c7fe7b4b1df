"""Rules of ops that gather neighbouring positions into one, or spread one over several."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch

from genfast.sampling.lower.layout import Axis, Features, Signal, describe, is_features, only_axis
from genfast.sampling.lower.lowering import Lowering, rule
from genfast.sampling.lower.rearrange import join, window
from genfast.sampling.lower.rules.convolutions import KernelAxis, convolve
from genfast.sampling.lower.rules.movement import unsqueeze
from genfast.sampling.values import Conv, ConvTap

aten = torch.ops.aten


def _grid(low: Lowering, x: Signal) -> None:
    """Refuse all but [images, features, rows, columns]."""
    wanted = [Axis.ROW, Axis.COLUMN]
    axes = [only_axis(dim) for dim in x.dims[2:]]
    if axes not in (wanted, wanted[1:]) or not is_features(x.dims[1]):
        low.refuse(f"expected images, features, rows and columns, got {describe(x.dims)}")


def _identity(low: Lowering, x: Signal) -> torch.Tensor:
    return torch.eye(len(x.features), dtype=low.dtype, device=low.device)


@rule(aten.upsample_nearest1d, aten.upsample_nearest2d)
@rule(aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d)
def upsample_nearest(low: Lowering, self: Signal) -> Signal:
    """Every position becomes a square of positions."""
    _grid(low, self)
    return _spread(low, self, {})


@rule(aten.pixel_shuffle)
def pixel_shuffle(low: Lowering, self: Signal, upscale_factor: int) -> Signal:
    _grid(low, self)
    each = upscale_factor**2
    features = torch.arange(len(self.features) // each)
    chosen = {}
    for i, j in product(range(upscale_factor), repeat=2):
        matrix = torch.zeros(len(self.features), len(features), dtype=low.dtype)
        matrix[features * each + i * upscale_factor + j, features] = 1
        chosen[i, j] = matrix.to(low.device)
    return _spread(low, self, chosen)


def _spread(low: Lowering, x: Signal, matrices: dict[tuple[int, int], torch.Tensor]) -> Signal:
    """Position (i, j) of a block of the result holds a matrix of the features of one of x."""
    shape = low.node.shape
    width = shape[-1]
    height = shape[-2] if x.has(Axis.ROW) else 1
    factor = width // x.width
    rows = 1 if height == x.height == 1 else factor
    if (height, width) != (rows * x.height, factor * x.width):
        low.refuse(
            f"it enlarges {x.height} x {x.width} to {height} x {width}, not by one whole factor"
        )
    if x.column_scale % factor or (rows > 1 and x.row_scale % rows):
        low.refuse("its grid would be finer than that of the input")
    same = _identity(low, x)
    taps = [
        ConvTap(0, 0, matrices.get((i, j), same), (i, j))
        for i, j in product(range(rows), range(factor))
    ]
    body = Conv(x.features.sources(), x.height, x.width, taps, None, factor, 1)
    count = taps[0].weight.shape[1]
    scale = (x.row_scale // rows, x.column_scale // factor)
    features = low.emit(body, count, x, size=(height, width), scale=scale)
    return _on(low, x, features, (height, width), scale)


def _on(
    low: Lowering, x: Signal, features: Features, size: tuple[int, int], scale: tuple[int, int]
) -> Signal:
    """A signal of these features on another grid, with the axes of x."""
    sizes = {Axis.ROW: size[0], Axis.COLUMN: size[1], Axis.FEATURE: len(features)}
    dims = tuple(
        tuple(atom._replace(size=sizes.get(atom.axis, atom.size)) for atom in dim) for dim in x.dims
    )
    return Signal(dims, features, *size, *scale, low.node.dtype)


@rule(aten.pixel_unshuffle)
def pixel_unshuffle(low: Lowering, self: Signal, downscale_factor: int) -> Signal:
    _grid(low, self)
    count, factor = len(self.features), downscale_factor
    features = torch.arange(count)
    weight = torch.zeros(count * factor**2, count, factor, factor, dtype=low.dtype)
    for i, j in product(range(factor), repeat=2):
        weight[features * factor**2 + i * factor + j, features, i, j] = 1
    steps = [KernelAxis(factor, 0, 1, factor, False)] * 2
    return convolve(low, self, weight.to(low.device), None, steps, 1)


@rule(aten.avg_pool2d)
def avg_pool2d(
    low: Lowering,
    self: Signal,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Signal:
    kernel, steps = _kernel(kernel_size, stride, padding, [1])
    if ceil_mode or (any(step.padding for step in steps) and not count_include_pad):
        low.refuse("it divides by other counts at the borders")
    divisor = divisor_override or kernel[0] * kernel[1]
    same = _identity(low, self)[:, :, None, None].expand(-1, -1, *kernel)
    return convolve(low, self, same / divisor, None, steps, 1)


@rule(aten.max_pool2d_with_indices)
def max_pool2d(
    low: Lowering,
    self: Signal,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Signal, None]:
    if ceil_mode:
        low.refuse("it takes the maximum of fewer numbers at the borders")
    _, steps = _kernel(kernel_size, stride, padding, dilation)
    x = self
    for dim, step in zip(self.dims[2:], steps, strict=True):
        axis = only_axis(dim)
        if step.kernel == 1 and step.padding == 0:
            continue
        if axis is None:
            low.refuse(f"expected images, features, rows and columns, got {describe(x.dims)}")
        offsets = [step.tap(k)[1] for k in range(step.kernel)]
        size = x.extent(axis) + 2 * step.padding - step.dilation * (step.kernel - 1)
        parts = [window(low, x, axis, offset, size, -torch.inf) for offset in offsets]
        x = parts[0]
        for part in parts[1:]:
            x = low.pointwise("maximum", x, part)
    if all(step.stride == 1 for step in steps):
        return x, None
    chosen = [replace(step, padding=0, dilation=1, kernel=1) for step in steps]
    return convolve(low, x, _identity(low, x)[:, :, None, None], None, chosen, 1), None


def _kernel(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[KernelAxis]]:
    sizes, *rest = (
        list(each) * 2 if len(each) == 1 else list(each)
        for each in (kernel, stride or kernel, padding, dilation)
    )
    steps = [
        KernelAxis(stride, padding, dilation, size, False)
        for stride, padding, dilation, size in zip(*rest, sizes, strict=True)
    ]
    return sizes, steps


# Windows as features


@rule(aten.unfold)
def unfold(low: Lowering, self: Signal, dimension: int, size: int, step: int) -> Signal:
    axis = self.axis(dimension)
    grid = only_axis(self.dims[axis])
    if grid is None or step != 1:
        low.refuse(f"expected windows of rows or columns, one position apart, got step={step}")
    count = self.shape[axis] - size + 1
    parts = [window(low, self, grid, k, count) for k in range(size)]
    return _stacked(low, parts, len(self.dims))


@rule(aten.im2col)
def im2col(
    low: Lowering,
    self: Signal,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Signal:
    _grid(low, self)
    kernel, steps = _kernel(kernel_size, stride, padding, dilation)
    if any(step.stride != 1 for step in steps) or len(self.dims) != 4:
        low.refuse(f"expected windows of an image, one position apart, got stride={stride}")
    parts = []
    for at in product(*(range(size) for size in kernel)):
        x = self
        for axis, step, k in zip((Axis.ROW, Axis.COLUMN), steps, at, strict=True):
            size = x.extent(axis) + 2 * step.padding - step.dilation * (step.kernel - 1)
            x = window(low, x, axis, step.tap(k)[1], size)
        parts.append(x)
    return _stacked(low, parts, 2).view(low.node.shape)


def _stacked(low: Lowering, parts: Sequence[Signal], place: int) -> Signal:
    return join(low, [unsqueeze(low, part, place) for part in parts], place)
