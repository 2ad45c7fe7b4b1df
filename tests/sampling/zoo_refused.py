"""Models that cannot be taken: what they do has no incremental rule, or depends on the numbers."""

import torch
from torch import nn


class Recurrent(nn.Module):
    """A cell in a loop over time steps; output t predicts x[t + 1]."""

    def __init__(self, levels=4, width=6):
        super().__init__()
        self.embed = nn.Embedding(levels, width)
        self.cell = nn.LSTMCell(width, width)
        self.head = nn.Linear(width, levels)

    def forward(self, x):
        state, seen = None, []
        for step in self.embed(x.long()).unbind(1):
            state = self.cell(step, state)
            seen.append(state[0])
        return self.head(torch.stack(seen, dim=1))


class LooksAtNumbers(nn.Module):
    """Decides by the pixels' values how to scale them."""

    def __init__(self, levels=4):
        super().__init__()
        self.conv = nn.Conv2d(1, levels, (2, 3), padding=(2, 1))

    def forward(self, x):
        if x.max() > 1:
            x = x / 3
        return self.conv(x)[:, :, : x.shape[2]]
