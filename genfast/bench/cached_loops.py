"""What a careful user writes without this package: caches in PyTorch, and a Python loop.

The published ways, made for our own models so that all figures are of the same weights: rows and
pixels for the gated PixelCNN (Ramachandran et al. 2017, "Fast Generation for Convolutional
Autoregressive Models"), queues for WaveNet (Paine et al. 2016, "Fast Wavenet Generation
Algorithm"). Both are exact; tests hold them to the full forward.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.models.gated_pixelcnn import Gate, GatedLayer, GatedPixelCNN
from genfast.models.wavenet import DilatedLayer, WaveNet
from genfast.nn import MaskedConv2d

Draw = Callable[[Tensor], Tensor]
"""Logits [N, K] of the next symbol to levels [N]."""


class CachedGatedPixelCNN:
    """A gated PixelCNN of one colour, without conditioning, sampled row by row and pixel by pixel.

    1. After row r is drawn, the vertical stack is computed for row r alone, from a cache of its
       last rows in each layer.
    2. At each pixel, the horizontal stack is computed for this pixel alone, from a cache of the
       row's last pixels in each layer: one matrix product a layer over the open taps.
    """

    def __init__(self, model: GatedPixelCNN) -> None:
        config = model.config
        assert config.image_shape[0] == 1
        assert not config.classes
        assert not config.embedding
        self.config = config
        self.layers = [cast(GatedLayer, layer) for layer in model.layers]
        assert not self.layers[0].is_residual
        self.taps, self.weights, self.biases = [], [], []
        for layer in self.layers:
            conv = layer.horizontal
            weight = _masked(conv)[:, :, 0, : layer.reach + layer.is_residual]
            self.taps.append(weight.shape[2])
            self.weights.append(weight.permute(0, 2, 1).flatten(1).contiguous())
            self.biases.append(cast(Tensor, conv.bias))
        self.outs = [
            (_masked(layer.out)[:, :, 0, 0], cast(Tensor, layer.out.bias)) for layer in self.layers
        ]
        self.head = [
            (_masked(conv)[:, :, 0, 0], cast(Tensor, conv.bias))
            for conv in model.head
            if isinstance(conv, MaskedConv2d)
        ]

    @torch.inference_mode()
    def sample(self, n: int, draw: Draw) -> Tensor:
        """Draw levels [n, 1, H, W], each by `draw` from its logits."""
        _, height, width = self.config.image_shape
        self._start(n, width)
        levels = self.weights[0].new_zeros(n, 1, height, width, dtype=torch.int64)
        for row in range(height):
            above = self._rows(levels[:, :, row - 1]) if row else None
            self._start_row()
            for column in range(width):
                seen = levels[:, 0, row, column - 1 : column] if column else None
                logits = self._pixel(seen, above, column)
                levels[:, 0, row, column] = draw(logits)
        return levels

    @torch.inference_mode()
    def logits(self, levels: Tensor) -> Tensor:
        """Return logits [N, K, 1, H, W] of given levels [N, 1, H, W], by the same steps."""
        height, width = levels.shape[2:]
        out: list[Tensor] = []

        def given(logits: Tensor) -> Tensor:
            row, column = divmod(len(out), width)
            out.append(logits)
            return levels[:, 0, row, column].long()

        self.sample(len(levels), given)
        return torch.stack(out, dim=2).view(len(levels), -1, 1, height, width)

    def _start(self, n: int, width: int) -> None:
        weight = self.weights[0]
        self.caches = []
        for layer in self.layers:
            rows, inputs = layer.reach + 1, layer.vertical.in_channels
            self.caches.append(weight.new_zeros(n, inputs, rows, width))
        self.n = n

    def _rows(self, levels: Tensor) -> list[Tensor]:
        """Take a finished row [n, 1, W]; return what each layer passes across to the next one."""
        new = self._scale(levels)
        across = []
        for layer, cache in zip(self.layers, self.caches, strict=True):
            cache.copy_(torch.cat((cache[:, :, 1:], new[:, :, None]), dim=2))
            rows = layer.vertical(cache)
            across.append(layer.across(rows)[:, :, 0])
            if layer.vertical_gate is not None:  # the last layer's goes nowhere else
                new = _gate(layer.vertical_gate, rows)[:, :, 0]
        return across

    def _start_row(self) -> None:
        self.queues = [
            weight.new_zeros(self.n, taps, weight.shape[1] // taps)
            for weight, taps in zip(self.weights, self.taps, strict=True)
        ]

    def _pixel(self, seen: Tensor | None, above: list[Tensor] | None, column: int) -> Tensor:
        """Return the next pixel's logits [n, K]; `seen` [n, 1] is the pixel to its left."""
        x = None if seen is None else self._scale(seen)
        for index, layer in enumerate(self.layers):
            queue = self.queues[index]
            if x is not None:
                queue = torch.cat((queue[:, 1:], x[:, None]), dim=1)
                self.queues[index] = queue
            mixed = F.linear(queue.flatten(1), self.weights[index], self.biases[index])
            if above is None:
                mixed = mixed + cast(Tensor, layer.across.bias)
            else:
                mixed = mixed + above[index][:, :, column]
            out = F.linear(_gate(layer.horizontal_gate, mixed), *self.outs[index])
            x = out + x if layer.is_residual and x is not None else out
        for weight, bias in self.head:
            x = F.linear(F.relu(cast(Tensor, x)), weight, bias)
        return cast(Tensor, x)

    def _scale(self, levels: Tensor) -> Tensor:
        return levels.to(self.weights[0].dtype) * (2 / (self.config.levels - 1)) - 1


class QueuedWaveNet:
    """A WaveNet with a softmax and one-hot input, without conditioning: a queue for each layer.

    Each sample passes each layer once: the oldest entry of the layer's queue and the newest input
    give its output, one matrix product a layer and one each for residual and skip.
    """

    def __init__(self, model: WaveNet) -> None:
        config = model.config
        assert config.input == "one-hot"
        assert config.output == "softmax"
        assert config.kernel_size == 2
        assert not config.classes
        assert not config.features
        self.config = config
        self.layers = [cast(DilatedLayer, layer) for layer in model.layers]
        self.stem = model.stem
        self.weights = [layer.dilated.weight.permute(0, 2, 1).flatten(1) for layer in self.layers]
        self.head = [conv for conv in model.head if isinstance(conv, nn.Conv1d)]

    @torch.inference_mode()
    def sample(self, n: int, steps: int, draw: Draw) -> Tensor:
        """Draw levels [n, 1, steps], each by `draw` from its logits."""
        zeros = self.stem.weight.new_zeros
        levels = zeros(n, 1, steps, dtype=torch.int64)
        before = last = zeros(n, self.config.levels)
        queues = [zeros(layer.dilated.reach, n, weight.shape[1] // 2)
                  for layer, weight in zip(self.layers, self.weights, strict=True)]  # fmt: skip
        stem = self.stem.weight.permute(0, 2, 1).flatten(1)
        for step in range(steps):
            if step:
                before, last = last, F.one_hot(levels[:, 0, step - 1], self.config.levels)
                last = last.to(stem.dtype)
            x = F.linear(torch.cat((before, last), dim=1), stem, self.stem.bias)
            skips: Tensor | None = None
            for layer, weight, queue in zip(self.layers, self.weights, queues, strict=True):
                slot = step % len(queue)
                gates = F.linear(torch.cat((queue[slot], x), dim=1), weight, layer.dilated.bias)
                queue[slot] = x
                f, g = gates.chunk(2, dim=1)
                z = torch.tanh(f) * torch.sigmoid(g)
                skip = F.linear(z, layer.skip.weight[:, :, 0], layer.skip.bias)
                skips = skip if skips is None else skips + skip
                if layer.residual is not None:
                    x = x + F.linear(z, layer.residual.weight[:, :, 0], layer.residual.bias)
            out = cast(Tensor, skips)
            for conv in self.head:
                out = F.linear(F.relu(out), conv.weight[:, :, 0], conv.bias)
            levels[:, 0, step] = draw(out)
        return levels

    @torch.inference_mode()
    def logits(self, levels: Tensor) -> Tensor:
        """Return logits [N, K, 1, T] of given levels [N, 1, T], by the same steps."""
        out: list[Tensor] = []

        def given(logits: Tensor) -> Tensor:
            out.append(logits)
            return levels[:, 0, len(out) - 1].long()

        self.sample(len(levels), levels.shape[2], given)
        return torch.stack(out, dim=2)[:, :, None]


def _masked(conv: MaskedConv2d) -> Tensor:
    return (conv.weight * conv.mask.to(conv.weight.dtype)).detach()


def _gate(gate: Gate, x: Tensor) -> Tensor:
    assert gate.of_label is None
    assert gate.of_embedding is None
    f, g = x.chunk(2, dim=1)
    return torch.tanh(f) * torch.sigmoid(g)
