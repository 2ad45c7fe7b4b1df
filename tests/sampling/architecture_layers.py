"""Layers of random causal architectures, each with the part that a mutation breaks.

Channels have ranks: a channel of rank r at a pixel may know what was drawn before the pixel and the
pixel's own first r colours. Masks follow from ranks, whatever the order of the channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "elu": lambda x: F.elu(x, alpha=0.6),
    "leaky": lambda x: F.leaky_relu(x, 0.3),
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "clamp": lambda x: x.clamp(min=-0.5, max=2.0),
    "concat_elu": lambda x: F.elu(torch.cat((x, -x), dim=1)),
}
GATES = {
    "none": lambda x: x,
    "halves": lambda x: torch.tanh(x.chunk(2, dim=1)[0]) * torch.sigmoid(x.chunk(2, dim=1)[1]),
    "odd and even": lambda x: torch.tanh(x[:, ::2]) * torch.sigmoid(x[:, 1::2]),
    "glu": lambda x: F.glu(x, dim=1),
}
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Mutation:
    """What makes a model look ahead: `apply(model)` breaks the layer at `path`."""

    kind: str
    path: str
    apply: Callable[[nn.Module], None]

    def __repr__(self) -> str:
        return f"{self.kind} in {self.path}"


def activated(ranks: Ranks, activation: str) -> Ranks:
    return ranks * 2 if activation == "concat_elu" else ranks


def gated(ranks: Ranks, gate: str) -> Ranks:
    half = len(ranks) // 2
    if gate == "none":
        return ranks
    pairs = (
        zip(ranks[::2], ranks[1::2], strict=True)
        if gate == "odd and even"
        else zip(ranks[:half], ranks[half:], strict=True)
    )
    return tuple(map(max, pairs))


class RankedConv(nn.Conv2d):
    """A masked convolution of any kernel size, odd or even, kept to its size by padding.

    `style` is how the mask is kept and applied: "buffer", "in place", "attribute", "once" or, for
    kernels of 1 x 1, "dense" (a matrix product over permuted axes).
    """

    def __init__(self, into, out, size, dilation=(1, 1), style="buffer", bias=True):
        super().__init__(len(into), len(out), size, dilation=dilation, bias=bias)
        self.style = style
        height, width = size
        place = torch.arange(height * width).view(height, width)
        centre = (height // 2) * width + width // 2
        allowed = torch.tensor(into)[None] <= torch.tensor(out)[:, None]
        mask = (place < centre).to(self.weight).expand(self.weight.shape).clone()
        mask[:, :, height // 2, width // 2] = allowed.to(self.weight)
        if style == "attribute":
            self.mask = mask
        else:
            self.register_buffer("mask", mask, persistent=style != "once")
        if style == "once":
            self.weight.data *= mask

    def allow(self, out, into, row, column):
        """Let one tap through, as a wrong mask would."""
        self.mask[out, into, row, column] = 1
        self.weight.data[out, into, row, column] = 1.5

    def forward(self, x):
        sizes = zip(self.kernel_size, self.dilation, strict=True)
        before = [(side // 2 * step, (side - 1 - side // 2) * step) for side, step in sizes]
        (top, bottom), (left, right) = before
        if self.style == "in place":
            self.weight.data *= self.mask
        masked = self.style in ("buffer", "attribute", "dense")
        weight = self.weight * self.mask.to(self.weight) if masked else self.weight
        if self.style == "dense" and self.kernel_size == (1, 1):
            return F.linear(x.movedim(1, -1), weight[:, :, 0, 0], self.bias).movedim(-1, 1)
        if (top, left) == (bottom, right):
            return F.conv2d(x, weight, self.bias, 1, (top, left), self.dilation)
        return F.conv2d(
            F.pad(x, (left, right, top, bottom)), weight, self.bias, 1, 0, self.dilation
        )


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def norm(kind: str, ranks: Ranks, dimensions: int = 2) -> tuple[nn.Module, Ranks]:
    """Make a layer of norm and tell the ranks after it."""
    width = len(ranks)
    if kind == "batch":
        layer = nn.BatchNorm2d(width) if dimensions == 2 else nn.BatchNorm1d(width)
        nn.init.normal_(layer.running_mean, std=0.3)
        nn.init.uniform_(layer.running_var, 0.5, 2.0)
        return layer, ranks
    if kind == "layer":
        return ChannelNorm(width), (max(ranks),) * width
    return nn.Identity(), ranks


class Window(nn.Module):
    """Cuts a window [N, C, rows, columns]; its offsets are what may be wrong."""

    def __init__(self, row_offset=0, column_offset=0):
        super().__init__()
        self.row_offset, self.column_offset = row_offset, column_offset

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        top, left = self.row_offset, self.column_offset
        return x[:, :, top : top + rows, left : left + columns]


class PaddedConv(nn.Module):
    """Pads before, perhaps one more than needed, convolves, and cuts: what PixelCNN++ is made of.

    Output (r, c) sees rows up to r - down, and columns up to c - right, or all around if `around`.
    """

    def __init__(self, into, out, size, stride=(1, 1), around=False, down=0, right=0):
        super().__init__()
        self.conv = nn.Conv2d(into, out, size, stride=stride)
        side = (size[1] - 1) // 2
        left, after = (side, size[1] - 1 - side) if around else (size[1] - 1 + right, 0)
        # A stride more than needed, so that a window too far on has something to show.
        self.pad = nn.ZeroPad2d((left, after + stride[1], size[0] - 1 + down, stride[0]))
        self.window = Window()

    def forward(self, x):
        rows, columns = (
            (side - 1) // step + 1 for side, step in zip(x.shape[2:], self.conv.stride, strict=True)
        )
        return self.window(self.conv(self.pad(x)), rows, columns)


class Stretch(nn.Module):
    """A transposed convolution back to a given size."""

    def __init__(self, into, out, size, stride, around):
        super().__init__()
        extra = tuple(min(step - 1, 1) for step in stride)
        self.conv = nn.ConvTranspose2d(into, out, size, stride=stride, output_padding=extra)
        self.window = Window(0, (size[1] - 1) // 2 if around else 0)

    def forward(self, x, rows, columns):
        out = self.conv(x)
        left = self.window.column_offset
        # One more than needed, so that a window too far on has something to show.
        lacking = max(0, rows + 1 - out.shape[2]), max(0, columns + left + 1 - out.shape[3])
        return self.window(F.pad(out, (0, lacking[1], 0, lacking[0])), rows, columns)


class PaddedConv1d(nn.Module):
    """The same along a line; `shift` more steps back; "valid" pads nothing and cuts nothing."""

    def __init__(self, into, out, size, dilation=1, shift=0, valid=False):
        super().__init__()
        self.valid = valid
        self.conv = nn.Conv1d(into, out, size, dilation=dilation)
        self.before, self.offset = (size - 1) * dilation + shift, 0

    def forward(self, x):
        if self.valid:
            return self.conv(x)
        out = self.conv(F.pad(x, (self.before, 2)))
        return out[:, :, self.offset : self.offset + x.shape[2]]
