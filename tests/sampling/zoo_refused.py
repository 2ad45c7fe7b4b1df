"""Models that cannot be taken: what they do has no incremental rule, or depends on the numbers."""

from torch import nn


class Recurrent(nn.Module):
    """An LSTM along a sound; output t predicts x[t + 1]."""

    def __init__(self, levels=4, width=6):
        super().__init__()
        self.embed = nn.Embedding(levels, width)
        self.cell = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, levels)

    def forward(self, x):
        return self.head(self.cell(self.embed(x.long()))[0])


class LooksAtNumbers(nn.Module):
    """Decides by the pixels' values how to scale them."""

    def __init__(self, levels=4):
        super().__init__()
        self.conv = nn.Conv2d(1, levels, (2, 3), padding=(2, 1))

    def forward(self, x):
        if x.max() > 1:
            x = x / 3
        return self.conv(x)[:, :, : x.shape[2]]
