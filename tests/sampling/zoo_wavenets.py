"""WaveNets with different ideas of time, of what goes in, and of what conditions them."""

import torch
import torch.nn.functional as F
from torch import nn


class CausalConv1d(nn.Conv1d):
    """Pads on both sides and cuts off what was padded on the right."""

    def __init__(self, inputs, outputs, size, dilation=1, shift=0):
        super().__init__(inputs, outputs, size, dilation=dilation)
        self.padding = (self.dilation[0] * (size - 1) + shift,)
        self.shift = shift

    def forward(self, x):
        return super().forward(x)[:, :, : x.shape[-1]]


class SameStep(nn.Module):
    """Output t predicts x[t]; samples by value [N, 1, T], scaled inside; logits [N, K, T]."""

    def __init__(self, levels=8, width=6, dilations=(1, 2, 4, 1)):
        super().__init__()
        self.levels = levels
        self.stem = CausalConv1d(1, width, 2, shift=1)
        self.layers = nn.ModuleList(CausalConv1d(width, 2 * width, 2, d) for d in dilations)
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.skip = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, levels, 1)
        )

    def forward(self, x):
        h, total = self.stem(2 * x / (self.levels - 1) - 1), 0
        for layer, residual, skip in zip(self.layers, self.residual, self.skip, strict=True):
            both = layer(h)
            gated = torch.tanh(both[:, : h.shape[1]]) * torch.sigmoid(both[:, h.shape[1] :])
            total = total + skip(gated)
            h = residual(gated) + h
        return self.head(total)


class NextStep(nn.Module):
    """Output t predicts x[t + 1]; one-hot [N, K, T] in; local and global conditions.

    The local condition comes with a quarter of the steps and is stretched by a transposed
    convolution; sums are scaled by the root of one half.
    """

    def __init__(self, levels=6, width=6, local=3, speakers=4):
        super().__init__()
        self.first = nn.Conv1d(levels, width, 1)
        self.stretch = nn.ConvTranspose1d(local, local, 4, stride=4)
        self.speaker = nn.Embedding(speakers, width)
        dilations = (1, 2, 4)
        self.convs = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2 * d, dilation=d) for d in dilations
        )
        self.local = nn.ModuleList(nn.Conv1d(local, 2 * width, 1, bias=False) for _ in dilations)
        self.world = nn.ModuleList(nn.Conv1d(width, 2 * width, 1, bias=False) for _ in dilations)
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.skip = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.last = nn.ModuleList([nn.Conv1d(width, width, 1), nn.Conv1d(width, levels, 1)])

    def forward(self, x, c=None, g=None):
        steps = x.size(-1)
        if c is not None:
            c = self.stretch(c)
            assert c.size(-1) == steps
        if g is not None:
            g = self.speaker(g).unsqueeze(-1).expand(-1, -1, steps)
        h, skips = self.first(x), None
        for i, conv in enumerate(self.convs):
            a, b = conv(h)[:, :, :steps].split(h.size(1), dim=1)
            for condition, project in ((c, self.local[i]), (g, self.world[i])):
                if condition is not None:
                    more_a, more_b = project(condition).split(h.size(1), dim=1)
                    a, b = a + more_a, b + more_b
            gated = torch.tanh(a) * torch.sigmoid(b)
            s = self.skip[i](gated)
            skips = s if skips is None else (skips + s) * 0.5**0.5
            h = (self.residual[i](gated) + h) * 0.5**0.5
        return self.last[1](F.relu(self.last[0](F.relu(skips))))


class Primed(nn.Module):
    """Dilated convolutions over the steps that a label stands for and the sound after them."""

    def __init__(self, levels=6, width=5, steps=3, dilations=(1, 2, 4, 12)):
        super().__init__()
        self.steps, self.width = steps, width
        self.label, self.embed = nn.Embedding(4, width * steps), nn.Embedding(levels, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=d) for d in dilations)
        self.out = nn.Conv1d(width, levels, 1)

    def forward(self, x, label):
        steps = self.label(label).view(-1, self.width, self.steps)
        h = torch.cat((steps, self.embed(x.long()).transpose(1, 2)[:, :, :-1]), 2)
        for layer in self.layers:
            a, b = layer(F.pad(h, (layer.dilation[0], 0))).chunk(2, 1)
            h = h + torch.tanh(a) * torch.sigmoid(b)
        return self.out(h)[:, :, self.steps - 1 :]


class Valid(nn.Module):
    """No padding at all: T samples in, T - field + 1 predictions of the next sample out."""

    def __init__(self, outputs=2, width=5, dilations=(1, 2, 4)):
        super().__init__()
        self.field = 1 + sum(dilations)
        self.first = nn.Conv1d(1, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=d) for d in dilations)
        self.gates = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=d) for d in dilations)
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for d in dilations)
        self.last = nn.Conv1d(width, outputs, 1)

    def forward(self, x):
        length = x.size(2) - self.field + 1
        h, total = self.first(x), 0.0
        for filters, gates, skip in zip(self.filters, self.gates, self.skips, strict=True):
            gated = torch.tanh(filters(h)) * torch.sigmoid(gates(h))
            h = gated + h[:, :, -gated.size(2) :]
            total = total + skip(gated)[:, :, -length:]
        return self.last(F.leaky_relu(total, 0.1))


class Codes(nn.Module):
    """Mu-law codes [N, T] through an embedding; starts from a learned code; logits [N, T, K]."""

    def __init__(self, levels=8, width=6):
        super().__init__()
        self.embedding = nn.Embedding(levels, width)
        self.start = nn.Parameter(torch.randn(1, width, 1))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=d) for d in (1, 3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.head = nn.Linear(width, levels)

    def forward(self, codes):
        h = self.embedding(codes.long()).transpose(1, 2)
        h = torch.cat([self.start.expand(h.shape[0], -1, -1), h[:, :, :-1]], dim=2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            more = conv(F.pad(h, (2 * conv.dilation[0], 0)))
            h = h + F.mish(norm(more.transpose(1, 2)).transpose(1, 2))
        return self.head(h.transpose(1, 2))
