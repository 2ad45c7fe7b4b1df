"""Masked convolutions and what is built of them, in the habits found in public code.

Every class keeps and applies its mask in another way, and every model has another idea of what goes
in and what comes out. Nothing is shared between them on purpose.
"""

import threading

import torch
import torch.nn.functional as F
from torch import nn


def raster(height, width, kind):
    """Ones before the centre of a kernel [height, width], and at it for kind B."""
    mask = torch.zeros(height * width)
    mask[: height * width // 2 + (kind == "B")] = 1
    return mask.view(height, width)


class InPlaceConv(nn.Conv2d):
    """Writes the mask into the weight at every forward pass."""

    def __init__(self, mask_type, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", self.weight.data.clone())
        self.mask[:] = raster(*self.kernel_size, mask_type)

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class BatchNormed(nn.Sequential):
    """Mask in place, batch norm, in-place ReLU; reals in [0, 1] in, [N, K, H, W] out."""

    def __init__(self, levels=4, width=6):
        layers = []
        for kind, inputs, kernel in (("A", 1, 7), ("B", width, 3), ("B", width, 3)):
            conv = InPlaceConv(kind, inputs, width, kernel, 1, kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(True)]
        super().__init__(*layers, nn.Conv2d(width, levels, 1))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)


class PlainAttributeConv(nn.Conv2d):
    """Keeps the mask as an attribute that is no buffer, and multiplies out of place."""

    def __init__(self, kind, inputs, outputs, size):
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.mask = raster(size, size, kind).repeat(outputs, inputs, 1, 1)

    def forward(self, x):
        weight = self.weight * self.mask.to(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ResidualTuple(nn.Module):
    """Residual blocks with a bottleneck; returns (logits, an auxiliary number for each image)."""

    def __init__(self, levels=4, width=4):
        super().__init__()
        self.stem = PlainAttributeConv("A", 1, 2 * width, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(2 * width, width, 1),
                nn.ELU(alpha=0.7),
                PlainAttributeConv("B", width, width, 3),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 2 * width, 1),
            )
            for _ in range(3)
        )
        self.head = nn.Conv2d(2 * width, levels, 1)

    def forward(self, x):
        features = self.stem(x)
        for block in self.blocks:
            features = features + block(features)
        logits = self.head(F.relu(features))
        return logits, logits.square().mean(dim=(1, 2, 3))


class SmallMaskConv(nn.Module):
    """A wrapper around a convolution, with a mask [1, 1, k, k] and the weight assigned anew."""

    def __init__(self, inputs, outputs, mask, dilation=1):
        super().__init__()
        size = mask.shape
        padding = tuple(dilation * (side - 1) // 2 for side in size)
        self.conv = nn.Conv2d(inputs, outputs, tuple(size), padding=padding, dilation=dilation)
        self.register_buffer("mask", mask[None, None])

    def forward(self, x):
        self.conv.weight.data = self.conv.weight.data * self.mask
        return self.conv(x)


class DilatedTwoStacks(nn.Module):
    """Integers scaled inside; a vertical and a horizontal stack, dilated; [N, K, C, H, W] out."""

    def __init__(self, levels=5, width=6):
        super().__init__()
        self.levels = levels
        above, left = torch.zeros(3, 3), torch.zeros(1, 3)
        above[:1], left[:, :1] = 1, 1
        self.vertical_stem = SmallMaskConv(1, width, above)
        self.horizontal_stem = SmallMaskConv(1, width, left)
        above_and_row, left_and_self = torch.ones(3, 3), torch.ones(1, 3)
        above_and_row[2:], left_and_self[:, 2:] = 0, 0
        self.vertical = nn.ModuleList()
        self.horizontal = nn.ModuleList()
        self.across = nn.ModuleList()
        self.out = nn.ModuleList()
        for dilation in (1, 2, 1):
            self.vertical.append(SmallMaskConv(width, 2 * width, above_and_row, dilation))
            self.horizontal.append(SmallMaskConv(width, 2 * width, left_and_self, dilation))
            self.across.append(nn.Conv2d(2 * width, 2 * width, 1))
            self.out.append(nn.Conv2d(width, width, 1))
        self.head = nn.Conv2d(width, levels, 1)

    def forward(self, x):
        x = x.to(self.head.weight.dtype) / (self.levels - 1) * 2 - 1
        vertical, horizontal = self.vertical_stem(x), self.horizontal_stem(x)
        for i in range(len(self.vertical)):
            above = self.vertical[i](vertical)
            value, gate = above.chunk(2, dim=1)
            vertical = torch.tanh(value) * torch.sigmoid(gate)
            value, gate = (self.horizontal[i](horizontal) + self.across[i](above)).chunk(2, dim=1)
            horizontal = horizontal + self.out[i](torch.tanh(value) * torch.sigmoid(gate))
        logits = self.head(F.elu(horizontal))
        return logits.reshape(logits.shape[0], self.levels, 1, *logits.shape[2:])


class OnceMaskedConv(nn.Conv2d):
    """Multiplies its weight by the mask when it is made, and never again."""

    def __init__(self, inputs, outputs, size, mask_type="A"):
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.register_buffer("mask", raster(size, size, mask_type), persistent=False)
        self.weight.data.mul_(self.mask)
        self.weight.register_hook(lambda gradient: gradient * self.mask)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NormedDict(nn.Module):
    """Layer norm over channels and dense layers 1 x 1 by permuting; a dict out, channels last."""

    def __init__(self, levels=4, width=6):
        super().__init__()
        self.stem = OnceMaskedConv(1, width, 5)
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(2))
        self.convs = nn.ModuleList(OnceMaskedConv(width, width, 3, "B") for _ in range(2))
        self.dense = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, levels)
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        h = self.stem(x)
        for norm, conv, dense in zip(self.norms, self.convs, self.dense, strict=True):
            h = h + F.gelu(dense(conv(norm(h)).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return {"features": h, "logits": self.head(h.permute(0, 2, 3, 1))}


class CalledConv(nn.Conv2d):
    """Overrides `__call__`, so that hooks never run."""

    def __init__(self, *args, mask, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", mask)

    def __call__(self, x):
        self.weight.data *= self.mask
        return self.forward(x)


class ThirdsOfChannels(nn.Module):
    """Three colours, contiguous thirds, boolean masks, odd and even gates; [N, C, K, H, W] out."""

    def __init__(self, levels=3, width=12):
        super().__init__()
        self.levels = levels
        self.stem = self.conv(3, width, 5, False)
        self.body = nn.ModuleList(self.conv(width, 2 * width, 3, True) for _ in range(2))
        self.head = self.conv(width, 3 * levels, 1, True)

    def conv(self, inputs, outputs, size, self_too):
        before = torch.arange(size * size).view(size, size)
        mask = torch.zeros(outputs, inputs, size, size, dtype=torch.bool)
        mask[:, :] = before < size * size // 2
        into = torch.arange(outputs)[:, None] * 3 // outputs
        of = torch.arange(inputs)[None] * 3 // inputs
        mask[:, :, size // 2, size // 2] = (of <= into) if self_too else (of < into)
        return CalledConv(inputs, outputs, size, mask=mask, padding="same")

    def forward(self, x):
        h = self.stem(x * 2.0 - 1.0)
        for conv in self.body:
            both = conv(h)
            h = h + torch.tanh(both[:, ::2]) * torch.sigmoid(both[:, 1::2])
        out = self.head(h)
        return out.view(-1, 3, self.levels, out.size(2), out.size(3))


class InterleavedConv(nn.Conv2d):
    """Colour groups by channel modulo the colours; the weight is set through `.data`."""

    def __init__(self, *args, mask_type, data_channels=3, **kwargs):
        super().__init__(*args, **kwargs)
        out, into, height, width = self.weight.size()
        mask = torch.zeros(out, into, height, width)
        mask[:, :] = raster(height, width, "A")
        for o in range(data_channels):
            for i in range(o + (mask_type == "B")):
                mask[o::data_channels, i::data_channels, height // 2, width // 2] = 1
        self.register_buffer("mask", mask)

    def forward(self, x):
        self.weight.data.mul_(self.mask)
        return super().forward(x)


class InterleavedColours(nn.Module):
    """Two colours on an image that is not square; halves as gates; [N, K, C, H, W] out."""

    def __init__(self, levels=3, width=8, colours=2):
        super().__init__()
        self.shape = levels, colours
        self.stem = InterleavedConv(
            colours, width, (3, 5), padding=(1, 2), mask_type="A", data_channels=colours
        )
        self.gated = InterleavedConv(
            width, 2 * width, 3, padding=1, mask_type="B", data_channels=colours
        )
        self.head = InterleavedConv(
            width, levels * colours, 1, mask_type="B", data_channels=colours
        )

    def forward(self, x):
        h = F.silu(self.stem(x))
        value, gate = torch.split(self.gated(h), h.shape[1], dim=1)
        h = h + value * gate.sigmoid()
        levels, colours = self.shape
        return self.head(h).reshape(x.shape[0], levels, colours, x.shape[2], x.shape[3])


class CodesWithContext(nn.Module):
    """Codes by an embedding; a label and a map of features as conditions, added in every layer."""

    def __init__(self, codes=6, width=8, labels=3, context=2):
        super().__init__()
        self.embed = nn.Embedding(codes, width)
        self.label = nn.Embedding(labels, 2 * width)
        self.stem = OnceMaskedConv(width, width, 5)
        self.convs = nn.ModuleList(OnceMaskedConv(width, 2 * width, 3, "B") for _ in range(2))
        self.maps = nn.ModuleList(nn.Conv2d(context, 2 * width, 3, padding=1) for _ in range(2))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, codes, 1))

    def forward(self, x, label, context=None):
        h = self.stem(self.embed(x[:, 0].long()).permute(0, 3, 1, 2).contiguous())
        for conv, chart in zip(self.convs, self.maps, strict=True):
            both = conv(h) + self.label(label)[:, :, None, None]
            if context is not None:
                both = both + chart(context)
            h = h + F.glu(both, dim=1)
        return self.head(h)


class OneHotInside(nn.Module):
    """`one_hot` in forward, a lock that no copy can take, and no copying besides."""

    def __init__(self, levels=5, width=6):
        super().__init__()
        self.levels = levels
        self.lock = threading.Lock()
        self.stem = OnceMaskedConv(levels, width, 3, "A")
        self.conv = torch.nn.utils.parametrizations.weight_norm(
            OnceMaskedConv(width, width, 3, "B")
        )
        self.head = nn.Conv2d(width, levels, 1)

    def __deepcopy__(self, memo):
        raise TypeError("this module cannot be copied")

    def __reduce_ex__(self, protocol):
        raise TypeError("this module cannot be pickled")

    def forward(self, x):
        with self.lock:
            one_hot = F.one_hot(x.squeeze(1).long(), self.levels).permute(0, 3, 1, 2)
            h = self.stem(one_hot.to(self.stem.weight.dtype))
            return self.head(F.relu(h + self.conv(F.softplus(h))))
