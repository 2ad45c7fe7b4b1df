"""WaveNet in plain PyTorch, with one-hot inputs and a softmax, as careful users write it.

Parameters have the names and shapes of genfast's model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.models import WaveNetConfig


class CausalConv1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        reach = (self.kernel_size[0] - 1) * self.dilation[0]
        return super().forward(F.pad(x, (reach, 0)))


class DilatedLayer(nn.Module):
    def __init__(self, config: WaveNetConfig, dilation: int, is_last: bool) -> None:
        super().__init__()
        gates, stream = config.gate_channels, config.residual_channels
        self.dilated = CausalConv1d(stream, 2 * gates, config.kernel_size, dilation=dilation)
        self.residual = None if is_last else nn.Conv1d(gates, stream, 1)
        self.skip = nn.Conv1d(gates, config.skip_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.dilated(x).chunk(2, dim=1)
        z = torch.tanh(a) * torch.sigmoid(b)
        return x if self.residual is None else x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__()
        self.levels, last = config.levels, config.layers - 1
        self.stem = CausalConv1d(config.levels, config.residual_channels, config.kernel_size)
        self.layers = nn.ModuleList(
            DilatedLayer(config, 2 ** (index % config.cycle), index == last)
            for index in range(config.layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(config.skip_channels, config.head_channels, 1),
            nn.ReLU(),
            nn.Conv1d(config.head_channels, config.levels, 1),
        )

    def loss(self, x: Tensor, part: str) -> Tensor:
        symbols = torch.arange(self.levels, device=x.device)[:, None]
        stream = self.stem(F.pad((x == symbols).to(self.stem.weight.dtype), (1, -1)))
        skips: Tensor | None = None
        for layer in self.layers:
            stream, skip = layer(stream)
            skips = skip if skips is None else skips + skip
        logits = self.head(skips)
        return F.cross_entropy(logits, x[:, 0].long(), reduction="sum") / len(x)
