"""Models with causal self-attention, in the styles of public code."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Pixels(nn.Module):
    """Pixels of an image as one sequence behind a start token; one head, in two products."""

    def __init__(self, levels=4, width=8, shift="cat", labels=0):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.embed = nn.Embedding(levels, width)
        self.label = nn.Embedding(labels, width) if labels else None
        self.qkv = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, levels)
        self.shift = shift

    def forward(self, x, label=None):
        n, _, height, width = x.shape
        x = x.long().flatten(1)
        if self.shift == "all":
            first = self.start.expand(n, -1, -1) if label is None else self.label(label)[:, None]
            h = torch.cat((first, self.embed(x)), dim=1)
            return self.head(self.attend(h)[:, :-1]).mT.reshape(n, -1, height, width)
        if self.shift == "token":
            x = F.pad(x, (1, 0), value=self.embed.num_embeddings - 1)[:, :-1]
        h = self.embed(x)
        if self.shift == "cat":
            first = self.start.expand(n, -1, -1)
            if self.label is not None:
                first = self.label(label)[:, None]
            h = torch.cat((first, h[:, :-1]), dim=1)
        elif self.shift == "cut":
            h = torch.cat((self.start.expand(n, -1, -1), h), dim=1)[:, :-1]
        elif self.shift == "pad":
            h = F.pad(h, (0, 0, 1, 0))[:, :-1]
        return self.head(self.attend(h)).transpose(1, 2).reshape(n, -1, height, width)

    def attend(self, h):
        query, key, value = self.qkv(h).chunk(3, dim=-1)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        later = torch.ones(scores.shape[1:]).triu(1).bool()
        return h + scores.masked_fill(later, -torch.inf).softmax(-1) @ value


class Coloured(Pixels):
    """Each colour of each pixel a token, placed by row, column and colour, behind a start token.

    Outputs [N, colours, levels, H, W], [N, levels, colours, H, W] or [N, tokens, levels], by
    `axes`. The start token stands before all tokens, or, `shifted`, before all but the last.
    """

    def __init__(self, shape, levels=5, width=8, labels=0, axes="CK", shifted=False):
        super().__init__(levels, width, labels=labels)
        colours, height, width_ = shape
        self.row = nn.Parameter(torch.randn(height, 1, 1, width))
        self.column = nn.Parameter(torch.randn(width_, 1, width))
        self.colour = nn.Embedding(colours, width)
        self.axes, self.shifted = axes, shifted

    def forward(self, x, label=None):
        n, colours, height, width = x.shape
        h = self.embed(x.long().permute(0, 2, 3, 1)) + self.colour.weight + self.column + self.row
        h = h.flatten(1, 3)
        first = self.start.expand(n, -1, -1) if label is None else self.label(label)[:, None]
        if self.shifted:
            h = self.head(self.attend(torch.cat((first, h[:, :-1]), dim=1)))
        else:
            h = self.head(self.attend(torch.cat((first, h), dim=1)))[:, :-1]
        if self.axes == "flat":
            return h
        order = (0, 3, 4, 1, 2) if self.axes == "CK" else (0, 4, 3, 1, 2)
        return h.view(n, height, width, colours, -1).permute(order)


class Mixed(Pixels):
    """Pixels of all colours at once as one sequence behind a start token, all of them."""

    def __init__(self, colours, parameters, width=8):
        super().__init__(parameters, width)
        self.embed = nn.Linear(colours, width)

    def forward(self, x):
        n, _, height, width = x.shape
        h = self.embed(x.flatten(2).transpose(1, 2))
        h = self.attend(torch.cat((self.start.expand(n, -1, -1), h), dim=1))
        return self.head(h[:, :-1]).transpose(1, 2).unflatten(2, (height, width))


class Language(nn.Module):
    """A decoder of tokens: pre-norm blocks, one product for queries, keys and values."""

    def __init__(self, tokens=6, width=12, heads=3, layers=2, length=11, fused=True):
        super().__init__()
        self.embed, self.position = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(LanguageBlock(width, heads, fused) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        h = self.embed(tokens.long()) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class LanguageBlock(nn.Module):
    def __init__(self, width, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1))
        self.back = nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.2)
        self.register_buffer("mask", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def attend(self, h):
        n, t, c = h.shape
        query, key, value = (
            each.view(n, t, self.heads, c // self.heads).transpose(1, 2)
            for each in self.qkv(h).split(c, dim=2)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            scores = (query @ key.transpose(-2, -1)) * (1 / math.sqrt(key.shape[-1]))
            mask = self.mask[:, :, :t, :t]
            scores = scores * mask - 1e10 * (1 - mask)
            y = self.drop(F.softmax(scores, dim=-1).type_as(h)) @ value
        return self.out(y.transpose(1, 2).contiguous().view(n, t, c))

    def forward(self, h):
        h = h + self.attend(self.norm1(h))
        return h + self.back(self.dense(self.norm2(h)))


class Captioned(nn.Module):
    """A decoder behind a start token, two tokens of a label and those of a caption.

    An encoder has read the caption, each word those behind it too. The last prediction is left
    out, or with `following` those of all that stands before the tokens.
    """

    def __init__(self, tokens=5, width=8, length=9, words=3, following=False):
        super().__init__()
        self.before, self.following = 3 + words, following
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.label = nn.Embedding(4, 2 * width)
        self.word, self.token = nn.Embedding(7, width), nn.Embedding(tokens, width)
        self.reader = nn.TransformerEncoderLayer(width, 2, 12, batch_first=True)
        self.position = nn.Parameter(torch.randn(self.before + length, width))
        self.blocks = nn.ModuleList(LanguageBlock(width, 2, True) for _ in range(2))
        self.head = nn.Linear(width, tokens)

    def forward(self, x, label, caption):
        n = len(x)
        label = self.label(label).view(n, 2, -1)
        caption = self.reader(self.word(caption))
        h = torch.cat((self.start.expand(n, -1, -1), label, caption, self.token(x.long())), dim=1)
        h = h + self.position
        for block in self.blocks:
            h = block(h)
        h = self.head(h)
        return h[:, self.before :] if self.following else h[:, self.before - 1 : -1]


class Codes(nn.Module):
    """A decoder of codes behind given indices of the same vocabulary, such as a class or a text."""

    def __init__(self, codes=5, vocabulary=12, width=8, length=9, given=1):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(1, length + given, width))
        self.block, self.head = LanguageBlock(width, 2, False), nn.Linear(width, codes)

    def forward(self, x, given):
        all_codes = torch.cat((given, x.long()), dim=1)
        h = self.token(all_codes[:, :-1])
        h = self.block(h + self.position[:, : h.shape[1]])
        return self.head(h)[:, given.shape[1] - 1 :]


class Encoder(nn.Module):
    """PyTorch's own encoder layers under a mask of -inf."""

    def __init__(self, tokens=5, width=8, length=9, norm_first=False):
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.position = nn.Parameter(torch.randn(1, length, width))
        layer = nn.TransformerEncoderLayer(
            width, 2, 16, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens)

    def forward(self, x):
        h = self.embed(x.long()) + self.position
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=h.dtype)
        return self.head(self.layers(h, mask=mask, is_causal=True))


class SequenceFirst(nn.Module):
    """nn.MultiheadAttention on [T, N, C] behind a start token, masked by an additive triangle.

    With `labels`, a label stands before all tokens instead, and the last prediction is dropped.
    """

    def __init__(self, tokens=4, width=6, weights=True, labels=0):
        super().__init__()
        self.embed, self.start = nn.Embedding(tokens, width), nn.Parameter(torch.randn(width))
        self.label = nn.Embedding(labels, width) if labels else None
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2)
        self.head = nn.Linear(width, tokens)
        self.weights = weights

    def forward(self, x, label=None):
        h = self.embed(x.long().t())
        if self.label is not None:
            h = torch.cat([self.label(label)[None], h], dim=0)
        else:
            h = torch.cat([torch.ones(1, x.shape[0], 1, dtype=h.dtype) * self.start, h[:-1]], dim=0)
        mask = torch.full((len(h), len(h)), -float("inf"), dtype=h.dtype)
        mask = torch.triu(mask, diagonal=1)
        y = self.norm(h)
        h = h + self.attention(y, y, y, attn_mask=mask, need_weights=self.weights)[0]
        return self.head(h[: x.shape[1]]).permute(1, 2, 0)


class Grid(nn.Module):
    """Attention over a feature map of masked convolutions, to the pixels strictly before."""

    def __init__(self, levels=4, channels=8, heads=2, shape=(4, 5), forgive=False):
        super().__init__()
        self.heads, self.forgive = heads, forgive
        self.above = nn.Conv2d(1, channels, (2, 3), padding=(2, 1))
        self.left = nn.Conv2d(1, channels, (1, 2), padding=(0, 2))
        self.query = nn.Conv2d(channels + 2, channels, 1)
        self.key = nn.Conv2d(channels + 3, channels, 1)
        self.value = nn.Conv2d(channels + 1, 2 * channels, 1)
        self.head = nn.Conv2d(3 * channels, levels, 1)
        height, width = shape
        rows = torch.linspace(-0.5, 0.5, height).view(1, 1, -1, 1).expand(1, 1, height, width)
        columns = torch.linspace(-0.5, 0.5, width).view(1, 1, 1, -1).expand(1, 1, height, width)
        self.register_buffer("background", torch.cat([rows, columns], 1))
        before = torch.ones(height * width, height * width).tril(-1)
        self.register_buffer("before", before)
        start = torch.ones(height * width, 1)
        start[0] = 0
        self.register_buffer("start", start)

    def forward(self, x):
        n, _, height, width = x.shape
        h = F.elu(self.above(x)[:, :, :height] + self.left(x)[:, :, :, :width])
        background = self.background.expand(n, -1, -1, -1)

        def heads(y):
            return y.view(n, self.heads, -1, height * width).transpose(2, 3)

        query = heads(self.query(torch.cat([h, background], 1)))
        key = heads(self.key(torch.cat([x, h, background], 1)))
        value = heads(self.value(torch.cat([x, h], 1)))
        scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1])
        if self.forgive:
            scores = scores.masked_fill(self.before == 0, -torch.inf)
            weights = torch.softmax(scores, -1).masked_fill(self.before == 0, 0)
        else:
            scores = scores.masked_fill(self.before == 0, -1e4)
            weights = torch.softmax(scores, 3) * self.start
        seen = torch.matmul(weights, value).transpose(2, 3)
        seen = seen.reshape(n, -1, height, width)
        return self.head(torch.cat([h, seen], 1))


class Rotary(nn.Module):
    """Rotated queries, fewer keys than queries, slopes by distance, a temperature a head."""

    def __init__(self, tokens=5, heads=4, depth=6, groups=2):
        super().__init__()
        self.heads, self.groups, self.depth = heads, groups, depth
        width = heads * depth
        self.embed = nn.Embedding(tokens, width)
        self.query = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(width, 2 * groups * depth, bias=False)
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, tokens)

    def rotate(self, x):
        half = self.depth // 2
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / 10 ** torch.arange(half)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(self, x):
        n, t = x.shape
        h = self.embed(x.long())
        y = self.norm(h)
        query = self.rotate(self.query(y).view(n, t, self.heads, self.depth))
        key, value = self.pair(y).view(n, t, 2, self.groups, self.depth).unbind(2)
        key, value = (
            each.repeat_interleave(self.heads // self.groups, dim=2)
            for each in (self.rotate(key), value)
        )
        scores = torch.einsum("bihd,bjhd->bhij", query, key) * self.temperature
        distance = torch.arange(t) - torch.arange(t)[:, None]
        scores = scores + distance.view(1, t, t) / 2 ** torch.arange(self.heads).view(-1, 1, 1)
        scores = torch.where(distance <= 0, scores, torch.finfo(scores.dtype).min)
        y = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value)
        return self.head(h + y.reshape(n, t, -1))


class Banded(nn.Module):
    """Values times transposed weights; each sample sees its last few neighbours only."""

    def __init__(self, levels=6, channels=6, reach=3):
        super().__init__()
        self.reach = reach
        self.first = nn.Conv1d(1, channels, 2)
        self.q, self.k = nn.Conv1d(channels, 4, 1), nn.Conv1d(channels, 4, 1)
        self.v = nn.Conv1d(channels, channels, 1)
        self.head = nn.Conv1d(channels, levels, 1)

    def forward(self, x):
        h = self.first(F.pad(x, (2, 0)))[:, :, :-1]
        energy = torch.bmm(self.q(h).permute(0, 2, 1), self.k(h))
        back = torch.arange(h.shape[2])[:, None] - torch.arange(h.shape[2])
        energy = energy.masked_fill(~((back >= 0) & (back < self.reach)), float("-inf"))
        weights = torch.softmax(energy, dim=-1)
        return self.head(h + torch.bmm(self.v(h), weights.permute(0, 2, 1)))
