"""Models with recurrent layers, in the styles of public code."""

import torch
import torch.nn.functional as F
from torch import nn


class Characters(nn.Module):
    """The character model of many tutorials; output t predicts x[t + 1]."""

    def __init__(self, levels=4, width=6):
        super().__init__()
        self.embed = nn.Embedding(levels, width)
        self.cell = nn.LSTM(width, width, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(width, levels)

    def init_hidden(self, n, like):
        return like.new_zeros(2, n, self.cell.hidden_size), like.new_zeros(2, n, 6)

    def forward(self, x):
        out, _ = self.cell(self.embed(x.long()), self.init_hidden(len(x), self.head.weight))
        return self.head(out)


class Melody(nn.Module):
    """A GRU over time first, whose first state is made from a label."""

    def __init__(self, levels=5, width=4, labels=3):
        super().__init__()
        self.levels = levels
        self.label = nn.Linear(labels, width)
        self.gru = nn.GRU(levels, width)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(width, levels))

    def forward(self, x, label):
        x = F.one_hot(x.long(), self.levels).to(label.dtype).transpose(0, 1)
        x = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
        out, _ = self.gru(x, torch.tanh(self.label(label))[None])
        return self.head(out).permute(1, 2, 0)


class RowsThenPixels(nn.Module):
    """Masked convolutions, an LSTM with projections over all pixels, and convolutions again."""

    def __init__(self, levels=4, width=5):
        super().__init__()
        self.above = nn.Conv2d(1, width, (2, 3), padding=(2, 1))
        self.lstm = nn.LSTM(width + 1, width, proj_size=3, batch_first=True)
        self.rnn = nn.RNN(3, width, nonlinearity="relu", bias=False, batch_first=True)
        self.left = nn.Conv2d(width, width, (1, 2))
        self.head = nn.Conv2d(width, levels, 1)

    def forward(self, x):
        n, _, height, width = x.shape
        above = self.above(x)[:, :, :height]
        before = F.pad(x.flatten(2), (1, -1)).view(x.shape)
        h = torch.cat((above, before), dim=1).flatten(2).transpose(1, 2)
        h = self.rnn(self.lstm(h)[0])[0]
        h = h.transpose(1, 2).reshape(n, -1, height, width)
        return self.head(torch.tanh(self.left(F.pad(h, (1, 0)))) + h)
