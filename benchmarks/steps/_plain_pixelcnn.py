"""PixelCNN and gated PixelCNN in plain PyTorch, for one colour, as careful users write them.

Parameters have the names and shapes of genfast's models. Of a masked kernel only the rows and
columns that the mask leaves open are convolved; a 1 x 1 kernel of mask B needs no mask at all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.models import GatedPixelCNNConfig, PixelCNNConfig


def scaled(x: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Levels as numbers in -1 .. 1, channels last: oneDNN then reorders least."""
    numbers = x.to(dtype) * (2 / (levels - 1)) - 1
    return numbers.contiguous(memory_format=torch.channels_last)


def nats(logits: Tensor, x: Tensor) -> Tensor:
    """The mean over images of the cross entropy of logits [N, K, H, W], channels last.

    As rows of classes: the same numbers as [N, K, H, W] take longer.
    """
    rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    return F.cross_entropy(rows, x.flatten().long(), reduction="sum") / len(x)


class RowsAbove(nn.Conv2d):
    """A convolution of mask B, by the rows of its kernel that are open."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size)
        half = kernel_size // 2
        mask = torch.ones(half + 1, kernel_size)
        mask[half, half + 1 :] = 0
        self.register_buffer("open", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        half = self.kernel_size[0] // 2
        weight = self.weight[:, :, : half + 1] * self.open
        # Rows that are cut off again cost less than a padded copy of the input.
        return F.conv2d(x, weight, self.bias, padding=half)[:, :, : x.shape[2]]


class FirstRows(nn.Conv2d):
    """A convolution of mask A over one channel, masked: cropped it takes longer than dense."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(1, channels, kernel_size, padding=kernel_size // 2)
        mask = torch.ones(kernel_size**2)
        mask[kernel_size**2 // 2 :] = 0
        self.register_buffer("open", mask.view(kernel_size, kernel_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.open, self.bias, padding=self.padding)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(2 * channels, channels, 1),
            nn.ReLU(),
            RowsAbove(channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PixelCNN(nn.Module):
    def __init__(self, config: PixelCNNConfig) -> None:
        super().__init__()
        self.levels, width = config.levels, 2 * config.channels
        self.stem = FirstRows(width, config.kernel_size)
        self.blocks = nn.Sequential(*(ResidualBlock(config.channels) for _ in range(config.blocks)))
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, config.head_channels, 1),
            nn.ReLU(),
            nn.Conv2d(config.head_channels, config.levels, 1),
        )

    def loss(self, x: Tensor, part: str) -> Tensor:
        image = scaled(x, self.levels, self.stem.weight.dtype)
        return nats(self.head(self.blocks(self.stem(image))), x)


class GatedLayer(nn.Module):
    def __init__(self, config: GatedPixelCNNConfig, is_first: bool, is_last: bool) -> None:
        super().__init__()
        channels, inputs = config.channels, 1 if is_first else config.channels
        kernel = config.kernel_size if is_first else config.inner_kernel_size
        self.reach, self.is_first, self.is_last = kernel // 2, is_first, is_last
        self.vertical = nn.Conv2d(inputs, 2 * channels, (self.reach + 1, kernel))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal = nn.Conv2d(inputs, 2 * channels, (1, kernel))
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        reach, height = self.reach, vertical.shape[2]
        rows = F.conv2d(vertical, self.vertical.weight, self.vertical.bias, padding=reach)
        rows = rows[:, :, :height]
        above = self.across(F.pad(rows, (0, 0, 1, -1)))
        if self.is_first:  # mask A: without the pixel itself
            row, weight = F.pad(horizontal, (reach, -1)), self.horizontal.weight[..., :reach]
        else:
            row, weight = F.pad(horizontal, (reach, 0)), self.horizontal.weight[..., : reach + 1]
        mixed = F.conv2d(row, weight, self.horizontal.bias) + above
        out = self.out(gate(mixed))
        return rows if self.is_last else gate(rows), out if self.is_first else out + horizontal


def gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedPixelCNN(nn.Module):
    def __init__(self, config: GatedPixelCNNConfig) -> None:
        super().__init__()
        self.levels, last = config.levels, config.layers - 1
        self.layers = nn.ModuleList(
            GatedLayer(config, index == 0, index == last) for index in range(config.layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(config.channels, config.head_channels, 1),
            nn.ReLU(),
            nn.Conv2d(config.head_channels, config.levels, 1),
        )

    def loss(self, x: Tensor, part: str) -> Tensor:
        vertical = horizontal = scaled(x, self.levels, self.head[1].weight.dtype)
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal)
        return nats(self.head(horizontal), x)
