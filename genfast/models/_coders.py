"""Encoders and decoders between images and feature vectors, dense and convolutional."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Size = tuple[int, int]


def halvings(height: int, width: int, smallest: int = 4) -> list[Size]:
    """List the sizes of an image halved, rounding down, until its shorter side is small enough.

    A 4 x 4 convolution with stride 2 and padding 1 goes from each size to the next one;
    `upsample` goes back, whatever was rounded.
    """
    sizes = [(height, width)]
    while min(sizes[-1]) > smallest:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def downsample(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Conv2d:
    """Make the convolution from one size to the next of `halvings`."""
    return nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)


def upsample(
    in_channels: int, out_channels: int, source: Size, target: Size, *, bias: bool = True
) -> nn.ConvTranspose2d:
    """Make the transposed convolution from one size of `halvings` back to the one before."""
    odd = (target[0] - 2 * source[0], target[1] - 2 * source[1])
    return nn.ConvTranspose2d(
        in_channels, out_channels, 4, stride=2, padding=1, output_padding=odd, bias=bias
    )


def channels_last(*layers: nn.Module) -> nn.Sequential:
    """Put layers in a row, the weights of convolutions with their channels innermost in memory.

    Feature maps then take that order too. It is the one that convolutions compute in, on CPUs and
    on tensor cores: nothing is reordered between them. Activations after them may work in place,
    for a convolution, and a batch normalisation, needs its output no more.
    """
    row = nn.Sequential(*layers)
    row.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # its types lack this
    return row


def dense_encoder(shape: tuple[int, int, int], hidden: Sequence[int], features: int) -> nn.Module:
    """Image [N, C, H, W] -> fully connected layers of the hidden widths -> [N, features]."""
    return nn.Sequential(nn.Flatten(), *_dense(math.prod(shape), hidden, features))


def dense_decoder(shape: tuple[int, int, int], hidden: Sequence[int], features: int) -> nn.Module:
    """The mirror image of `dense_encoder`: [N, features] -> logits [N, C, H, W]."""
    layers = _dense(features, list(reversed(hidden)), math.prod(shape))
    return nn.Sequential(*layers, nn.Unflatten(1, shape))


def conv_encoder(shape: tuple[int, int, int], channels: int, features: int) -> nn.Module:
    """Image [N, C, H, W] -> strided convolutions, each halving the size -> [N, features]."""
    sizes = halvings(*shape[1:])
    layers: list[nn.Module] = [nn.Conv2d(shape[0], channels, 3, padding=1), nn.ReLU(inplace=True)]
    width = channels
    for _ in sizes[1:]:
        layers += [downsample(width, 2 * width), nn.ReLU(inplace=True)]
        width *= 2
    last = nn.Linear(width * math.prod(sizes[-1]), features)
    return channels_last(*layers, nn.Flatten(), last)


def conv_decoder(shape: tuple[int, int, int], channels: int, features: int) -> nn.Module:
    """The mirror image of `conv_encoder`: [N, features] -> logits [N, C, H, W]."""
    sizes = halvings(*shape[1:])
    width = channels * 2 ** (len(sizes) - 1)
    smallest = (width, *sizes[-1])
    layers: list[nn.Module] = [nn.Linear(features, math.prod(smallest)), nn.Unflatten(1, smallest)]
    for source, target in zip(sizes[:0:-1], sizes[-2::-1], strict=True):
        layers += [nn.ReLU(inplace=True), upsample(width, width // 2, source, target)]
        width //= 2
    return channels_last(*layers, nn.ReLU(inplace=True), nn.Conv2d(width, shape[0], 3, padding=1))


def interpolate_linearly(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Return points [N, steps, D] on the lines from a [N, D] to b [N, D], ends included."""
    t = a.new_tensor([step / max(steps - 1, 1) for step in range(steps)])[:, None]
    return a[:, None] * (1 - t) + b[:, None] * t


def _dense(inputs: int, hidden: Sequence[int], outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return [*layers, nn.Linear(inputs, outputs)]
