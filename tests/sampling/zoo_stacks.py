"""Gated and PixelCNN++-like models: padding, cropping and shifting instead of masks."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class BlindSpot(nn.Module):
    """One gated stack of masked convolutions, as first published: some pixels are never seen.

    The last row of each kernel is cut by zeroing the weight in `make_causal`, before every pass.
    """

    def __init__(self, levels=4, width=6, labels=3):
        super().__init__()
        self.embedding = nn.Embedding(labels, 2 * width)
        sizes = [1, width, width]
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, 2 * width, 5 if inputs == 1 else 3, padding=2 if inputs == 1 else 1)
            for inputs in sizes
        )
        self.out = nn.Sequential(nn.Conv2d(width, 16, 1), nn.ReLU(True), nn.Conv2d(16, levels, 1))

    def make_causal(self):
        for i, layer in enumerate(self.layers):
            middle = layer.kernel_size[0] // 2
            layer.weight.data[:, :, middle + 1 :].zero_()
            layer.weight.data[:, :, middle, middle + (i > 0) :].zero_()

    def forward(self, x, labels):
        self.make_causal()
        h = x
        for i, layer in enumerate(self.layers):
            both = layer(h) + self.embedding(labels).view(-1, layer.out_channels, 1, 1)
            value, gate = both.chunk(2, 1)
            gated = value.tanh() * gate.sigmoid()
            h = gated if i == 0 else h + gated
        return self.out(h)


class GatedLayer(nn.Module):
    """Two stacks by convolutions padded on all sides and cropped; skips summed outside."""

    def __init__(self, inputs, width, size, first):
        super().__init__()
        half = size // 2
        self.first = first
        self.rows = nn.Conv2d(inputs, 2 * width, (half + 1, size), padding=(half + first, half))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        columns = half if first else half + 1
        self.columns = nn.Conv2d(inputs, 2 * width, (1, columns), padding=(0, half))
        self.skip = nn.Conv2d(width, width, 1)
        self.residual = nn.Conv2d(width, width, 1)

    def gate(self, both):
        value, gate = torch.chunk(both, 2, dim=1)
        return torch.tanh(value) * torch.sigmoid(gate)

    def forward(self, vertical, horizontal):
        _, _, height, width = vertical.shape
        rows = self.rows(vertical)[:, :, :height, :]
        columns = self.columns(horizontal)[:, :, :, :width]
        out = self.gate(columns + self.link(rows))
        skip, out = self.skip(out), self.residual(out)
        return self.gate(rows), out if self.first else out + horizontal, skip


class NoBlindSpot(nn.Module):
    """Gated PixelCNN with vertical and horizontal stack and a sum of skips."""

    def __init__(self, levels=4, width=5, layers=3):
        super().__init__()
        self.first = GatedLayer(1, width, 5, first=True)
        self.rest = nn.ModuleList(GatedLayer(width, width, 3, False) for _ in range(layers))
        self.post = nn.Conv2d(width, levels, 1)

    def forward(self, x):
        vertical, horizontal, total = self.first(x, x)
        for layer in self.rest:
            vertical, horizontal, skip = layer(vertical, horizontal)
            total = total + skip
        return self.post(F.relu(total))


def concat_elu(x):
    return F.elu(torch.cat([x, -x], dim=1))


class DownShifted(nn.Module):
    """A convolution that sees rows up to its own and all columns around; weight norm."""

    def __init__(self, inputs, outputs, size=(2, 3), stride=1, norm=weight_norm):
        super().__init__()
        side = (size[1] - 1) // 2
        self.pad = nn.ZeroPad2d((side, side, size[0] - 1, 0))
        self.conv = norm(nn.Conv2d(inputs, outputs, size, stride=stride))

    def forward(self, x):
        return self.conv(self.pad(x))


class DownRightShifted(nn.Module):
    """The same, which sees columns up to its own."""

    def __init__(self, inputs, outputs, size=(2, 2), stride=1, norm=weight_norm):
        super().__init__()
        self.pad = nn.ZeroPad2d((size[1] - 1, 0, size[0] - 1, 0))
        self.conv = norm(nn.Conv2d(inputs, outputs, size, stride=stride))

    def forward(self, x):
        return self.conv(self.pad(x))


class UpShifted(nn.Module):
    """A transposed convolution by two, cropped so that it looks not down, nor right if asked."""

    def __init__(self, inputs, outputs, size, right, norm=weight_norm):
        super().__init__()
        self.size, self.right = size, right
        self.deconv = norm(nn.ConvTranspose2d(inputs, outputs, size, stride=2, output_padding=1))

    def forward(self, x):
        x = self.deconv(x)
        height, width = x.shape[2:]
        if self.right:
            return x[:, :, : height - self.size[0] + 1, : width - self.size[1] + 1]
        side = (self.size[1] - 1) // 2
        return x[:, :, : height - self.size[0] + 1, side : width - side]


class DenseChannels(nn.Module):
    """A dense layer over the channels: permute, view as rows, weight-normed Linear, and back."""

    def __init__(self, inputs, outputs, norm):
        super().__init__()
        self.linear = norm(nn.Linear(inputs, outputs))

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        n, height, width, channels = x.size()
        out = self.linear(x.contiguous().view(n * height * width, channels))
        return out.view(n, height, width, -1).permute(0, 3, 1, 2)


class GatedResnet(nn.Module):
    """Concatenated ELU, a convolution, a link to another stack, dropout, a gate."""

    def __init__(self, width, conv, linked, norm):
        super().__init__()
        self.first = conv(2 * width, width, norm=norm)
        self.link = DenseChannels(2 * linked * width, width, norm) if linked else None
        self.dropout = nn.Dropout2d(0.5)
        self.second = conv(2 * width, 2 * width, norm=norm)

    def forward(self, x, other=None):
        h = self.first(concat_elu(x))
        if other is not None:
            h += self.link(concat_elu(other))
        value, gate = torch.chunk(self.second(self.dropout(concat_elu(h))), 2, dim=1)
        return x + value * torch.sigmoid(gate)


def shift_down(x):
    return nn.ZeroPad2d((0, 0, 1, 0))(x[:, :, :-1])


def shift_right(x):
    return nn.ZeroPad2d((1, 0, 0, 0))(x[:, :, :, :-1])


def old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


class PlusPlus(nn.Module):
    """PixelCNN++ in small: two resolutions, long skips, an added channel of ones, mixture numbers.

    The channel of ones is kept from the first pass, as long as the batch is no larger.
    """

    def __init__(self, outputs, colours=3, width=4, norm=weight_norm):
        super().__init__()
        self.ones = None
        self.first_rows = DownShifted(colours + 1, width, (2, 3), norm=norm)
        self.first_above = DownShifted(colours + 1, width, (1, 3), norm=norm)
        self.first_left = DownRightShifted(colours + 1, width, (2, 1), norm=norm)
        self.rows_down = nn.ModuleList(GatedResnet(width, DownShifted, 0, norm) for _ in range(2))
        self.left_down = nn.ModuleList(
            GatedResnet(width, DownRightShifted, 1, norm) for _ in range(2)
        )
        self.halve_rows = DownShifted(width, width, stride=2, norm=norm)
        self.halve_left = DownRightShifted(width, width, stride=2, norm=norm)
        self.rows_up = nn.ModuleList(GatedResnet(width, DownShifted, 1, norm) for _ in range(2))
        self.left_up = nn.ModuleList(
            GatedResnet(width, DownRightShifted, 2, norm) for _ in range(2)
        )
        self.double_rows = UpShifted(width, width, (2, 3), False, norm=norm)
        self.double_left = UpShifted(width, width, (2, 2), True, norm=norm)
        self.out = DenseChannels(width, outputs, norm)

    def with_ones(self, x):
        if self.ones is None or self.ones.shape[0] < x.shape[0]:
            self.ones = torch.ones(x.shape[0], 1, *x.shape[2:], dtype=x.dtype)
        return torch.cat((x, self.ones[: x.shape[0]]), 1)

    def forward(self, x):
        x = self.with_ones(x)
        rows = shift_down(self.first_rows(x))
        left = shift_down(self.first_above(x)) + shift_right(self.first_left(x))
        rows1 = self.rows_down[0](rows)
        left1 = self.left_down[0](left, rows1)
        rows2, left2 = self.halve_rows(rows1), self.halve_left(left1)
        rows3 = self.rows_down[1](rows2)
        left3 = self.left_down[1](left2, rows3)
        rows4 = self.rows_up[0](rows3, rows2)
        left4 = self.left_up[0](left3, torch.cat((rows4, left2), 1))
        rows5, left5 = self.double_rows(rows4), self.double_left(left4)
        rows6 = self.rows_up[1](rows5, rows1)
        left6 = self.left_up[1](left5, torch.cat((rows6, left1), 1))
        return self.out(F.elu(left6))
