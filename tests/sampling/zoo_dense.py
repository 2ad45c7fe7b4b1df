"""Masked dense networks over images in raster order, in the habits of public code."""

import torch
from torch import nn


class MaskedLinear(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.ones(outputs, inputs))

    def forward(self, x):
        return nn.functional.linear(x, self.mask * self.weight, self.bias)


class Dense(nn.Module):
    """MADE over binary images whose order is the raster."""

    def __init__(self, height=3, width=4, hidden=20):
        super().__init__()
        size = height * width
        self.net = nn.Sequential(MaskedLinear(size, hidden), nn.ReLU(), MaskedLinear(hidden, size))
        degree = torch.arange(hidden) % (size - 1)
        order = torch.arange(size)
        self.net[0].mask.data.copy_(degree[:, None] >= order[None])
        self.net[2].mask.data.copy_(order[:, None] > degree[None])

    def forward(self, x):
        return self.net(x.flatten(1)).view_as(x)


class TiledOutputs(nn.Module):
    """The masks of the usual MADE: random degrees, and the output's mask once for each level.

    Returns [N, levels * H * W]; conditions are joined to the input, where every unit sees them.
    """

    def __init__(self, height=4, width=3, levels=3, hidden=(16, 14), labels=4, seed=1):
        super().__init__()
        size = height * width
        rng = torch.Generator().manual_seed(seed)
        degrees = torch.cat((torch.arange(size), torch.full((labels,), -1)))
        self.labels, self.layers, self.masks = labels, nn.ModuleList(), []
        for units in hidden:
            new = torch.randint(0, size - 1, (units,), generator=rng)
            self.layers.append(nn.Linear(len(degrees), units))
            self.masks.append((degrees[None] <= new[:, None]).float())
            degrees = new
        self.layers.append(nn.Linear(len(degrees), levels * size))
        self.masks.append((degrees[None] < torch.arange(size)[:, None]).float().repeat(levels, 1))

    def forward(self, x, y):
        label = nn.functional.one_hot(y, self.labels).to(x.dtype)
        h = torch.cat((x.view(len(x), -1), label), dim=1)
        for layer, mask in zip(self.layers, self.masks, strict=True):
            h = h if layer is self.layers[0] else torch.relu(h)
            h = nn.functional.linear(h, layer.weight * mask.to(h.dtype), layer.bias)
        return h


class StepsOfFeatures(nn.Module):
    """One masked layer over the steps of each feature and, in front, numbers of a label."""

    def __init__(self, length=7, features=2, levels=4, numbers=3):
        super().__init__()
        self.label, self.features = nn.Embedding(4, features * numbers), features
        self.mix = MaskedLinear(numbers + length, length)
        self.mix.mask[:, numbers:] = torch.ones(length, length).tril(-1)
        self.head = nn.Conv1d(features, levels, 1)

    def forward(self, x, y):
        x = torch.cat([x**power for power in range(1, self.features + 1)], dim=1)
        label = self.label(y).view(len(x), self.features, -1)
        return self.head(torch.tanh(self.mix(torch.cat((label, x), dim=2))))
