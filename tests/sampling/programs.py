"""Programs of well-known models, most planned by hand; beside them the same PyTorch modules."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from genfast.sampling.capture.model import capture
from genfast.sampling.lower.lowering import lower
from genfast.sampling.plan.planner import plan
from genfast.sampling.program import (
    Buffer,
    Draw,
    Gemm,
    Pointwise,
    Program,
    Read,
    Step,
    Tap,
    When,
)

CPU = torch.device("cpu")
GATE = (Step("tanh", (0,)), Step("sigmoid", (1,)), Step("mul", (2, 3)))


@dataclass
class Made:
    program: Program
    module: nn.Module  # logits [n, K, H, W] of x [n, 1, H, W]


class Maker:
    """Collects buffers and instructions of a Program."""

    def __init__(self, height, width, span, dtype):
        self.height, self.width, self.span, self.dtype = height, width, span, dtype
        self.buffers = []
        self.instructions = []

    def buffer(self, features, rows=1, columns=None):
        columns = self.width if columns is None else columns
        number = len(self.buffers)
        self.buffers.append(Buffer(f"b{number}", features, self.height, self.width, rows, columns))
        return number

    def when(self, span, after=0):
        return When(self.height, self.width, span=span, after=after)

    def conv(self, source, conv, offsets, out, span, initial=()):
        """Convolution with weight [out, in, kh, kw]; offsets: (y, x, dy, dx) of the taps used."""
        weight = conv.weight.detach()
        bounds = {"top": 0, "bottom": self.height, "left": 0, "right": self.width}
        taps = tuple(
            Tap(
                Read(source, 0, 1, weight.shape[1], dy, dx, **bounds),
                weight[:, :, y, x].T.contiguous(),
            )
            for y, x, dy, dx in offsets
        )
        bias = None if initial else conv.bias
        self.instructions.append(
            Gemm(out, 0, weight.shape[0], self.when(span), taps, bias, tuple(initial))
        )

    def pointwise(self, out, count, reads, steps, span, constants=()):
        self.instructions.append(
            Pointwise(out, 0, count, self.when(span), tuple(reads), tuple(constants), tuple(steps))
        )

    def program(self, logits, levels):
        draws = (Draw(0, 1, (Read(logits, 0, 1, levels),)),)
        return Program(
            1, 1, self.height, self.width, self.span, self.dtype, CPU,
            tuple(self.buffers), (), tuple(self.instructions), draws,
        )  # fmt: skip


def settled(module, seed, dtype):
    """The module with weights that keep numbers of the size of one through many layers."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 25
        drawn = torch.randn(parameter.shape, generator=generator) / fan**0.5
        parameter.data = drawn.to(dtype)
        parameter.requires_grad_(False)
    return module.eval()


class Gated(nn.Module):
    """A gated PixelCNN: vertical stack of 2 x 3, horizontal of 1 x 2."""

    def __init__(self, layers, channels, levels):
        super().__init__()
        c = channels
        sizes = [1] + [c] * layers
        self.vertical = nn.ModuleList(nn.Conv2d(s, 2 * c, (2, 3)) for s in sizes[:-1])
        self.across = nn.ModuleList(nn.Conv2d(2 * c, 2 * c, 1) for _ in range(layers))
        self.horizontal = nn.ModuleList(
            nn.Conv2d(s, 2 * c, (1, 1 if n == 0 else 2), bias=False)
            for n, s in enumerate(sizes[:-1])
        )
        self.out = nn.ModuleList(nn.Conv2d(c, c, 1) for _ in range(layers))
        self.head = nn.ModuleList([nn.Conv2d(c, c, 1), nn.Conv2d(c, levels, 1)])

    def forward(self, x):
        v = F.pad(x, (0, 0, 1, 0))[:, :, :-1]
        h = F.pad(x, (1, 0))[:, :, :, :-1]
        for n, vertical in enumerate(self.vertical):
            pre = vertical(F.pad(v, (1, 1, 1, 0)))
            a, b = pre.chunk(2, 1)
            v = torch.tanh(a) * torch.sigmoid(b)
            seen = h if n == 0 else F.pad(h, (1, 0))
            a, b = (self.horizontal[n](seen) + self.across[n](pre)).chunk(2, 1)
            mixed = self.out[n](torch.tanh(a) * torch.sigmoid(b))
            h = mixed if n == 0 else h + mixed
        return self.head[1](F.relu(self.head[0](F.relu(h))))


def gated(layers=15, channels=128, levels=256, height=28, width=28, seed=0, dtype=torch.float32):
    net = settled(Gated(layers, channels, levels), seed, dtype)
    make = Maker(height, width, width, dtype)
    c = channels
    x = make.buffer(1, rows=3)
    v, h = x, x
    pre, gate = make.buffer(2 * c), make.buffer(c, columns=1)
    mixed = make.buffer(2 * c, columns=1)
    across = [make.buffer(2 * c) for _ in range(layers)]
    for n in range(layers):
        lift = 1 if n == 0 else 0
        offsets = [(y, k, y - 1 - lift, k - 1) for y in range(2) for k in range(3)]
        make.conv(v, net.vertical[n], offsets, pre, True)
        v = make.buffer(c, rows=2)
        make.pointwise(v, c, (Read(pre, 0, 1, c), Read(pre, c, 1, c)), GATE, True)
        make.conv(pre, net.across[n], [(0, 0, 0, 0)], across[n], True)
    for n in range(layers):
        offsets = [(0, 0, 0, -1)] if n == 0 else [(0, k, 0, k - 1) for k in range(2)]
        start = (Read(across[n], 0, 1, 2 * c),)
        make.conv(h, net.horizontal[n], offsets, mixed, False, initial=start)
        make.pointwise(gate, c, (Read(mixed, 0, 1, c), Read(mixed, c, 1, c)), GATE, False)
        added = make.buffer(c, columns=1)
        make.conv(gate, net.out[n], [(0, 0, 0, 0)], added, False)
        if n == 0:
            h = make.buffer(c, columns=2)
            make.pointwise(h, c, (Read(added, 0, 1, c),), (), False)
        else:
            before, h = h, make.buffer(c, columns=2)
            reads = (Read(before, 0, 1, c), Read(added, 0, 1, c))
            make.pointwise(h, c, reads, (Step("add", (0, 1)),), False)
    logits = head(make, net.head, h, c, c, levels)
    return Made(make.program(logits, levels), net)


def head(make, convs, source, channels, hidden, levels):
    """Relu, 1 x 1, relu, 1 x 1."""
    relu = (Step("relu", (0,)),)
    buffers = [make.buffer(size, columns=1) for size in (channels, hidden, hidden, levels)]
    make.pointwise(buffers[0], channels, (Read(source, 0, 1, channels),), relu, False)
    make.conv(buffers[0], convs[0], [(0, 0, 0, 0)], buffers[1], False)
    make.pointwise(buffers[2], hidden, (Read(buffers[1], 0, 1, hidden),), relu, False)
    make.conv(buffers[2], convs[1], [(0, 0, 0, 0)], buffers[3], False)
    return buffers[3]


class Plain(nn.Module):
    """A PixelCNN: 7 x 7 with mask A, then residual blocks of 1 x 1, 3 x 3, 1 x 1."""

    def __init__(self, blocks, channels, levels):
        super().__init__()
        h = channels
        self.first = nn.Conv2d(1, 2 * h, 7, padding=3)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [nn.Conv2d(2 * h, h, 1), nn.Conv2d(h, h, 3, padding=1), nn.Conv2d(h, 2 * h, 1)]
            )
            for _ in range(blocks)
        )
        self.head = nn.ModuleList([nn.Conv2d(2 * h, 2 * h, 1), nn.Conv2d(2 * h, levels, 1)])

    def mask(self):
        for conv, centre in [(self.first, 0), *((block[1], 1) for block in self.blocks)]:
            middle = conv.weight.shape[-1] // 2
            conv.weight.data[:, :, middle + 1 :] = 0
            conv.weight.data[:, :, middle, middle + centre :] = 0

    def forward(self, x):
        x = self.first(x)
        for one, two, three in self.blocks:
            x = x + three(F.relu(two(F.relu(one(F.relu(x))))))
        return self.head[1](F.relu(self.head[0](F.relu(x))))


def plain(blocks=15, channels=32, levels=256, height=28, width=28, seed=0, dtype=torch.float32):
    """Taps in rows above run once a row, the others at the pixel."""
    net = settled(Plain(blocks, channels, levels), seed, dtype)
    net.mask()
    make = Maker(height, width, width, dtype)
    h = channels
    x = make.buffer(1, rows=4)
    relu = (Step("relu", (0,)),)

    def above(source, conv, size, out):
        offsets = [(y, k, y - size, k - size) for y in range(size) for k in range(2 * size + 1)]
        make.conv(source, conv, offsets, out, True)

    starts, hidden = [make.buffer(2 * h)], []
    above(x, net.first, 3, starts[0])
    for block in net.blocks:
        hidden.append(make.buffer(h, rows=2))
        starts.append(make.buffer(h))
        above(hidden[-1], block[1], 1, starts[-1])
    features = make.buffer(2 * h, columns=1)
    left = [(3, k, 0, k - 3) for k in range(3)]
    make.conv(x, net.first, left, features, False, (Read(starts[0], 0, 1, 2 * h),))
    for n, (one, _two, three) in enumerate(net.blocks):
        two = net.blocks[n][1]
        active, small, squeezed, busy = (make.buffer(s, columns=1) for s in (2 * h, h, h, h))
        make.pointwise(active, 2 * h, (Read(features, 0, 1, 2 * h),), relu, False)
        make.conv(active, one, [(0, 0, 0, 0)], small, False)
        make.pointwise(hidden[n], h, (Read(small, 0, 1, h),), relu, False)
        left = [(1, k, 0, k - 1) for k in range(2)]
        make.conv(hidden[n], two, left, squeezed, False, (Read(starts[n + 1], 0, 1, h),))
        make.pointwise(busy, h, (Read(squeezed, 0, 1, h),), relu, False)
        wide, total = make.buffer(2 * h, columns=1), make.buffer(2 * h, columns=1)
        make.conv(busy, three, [(0, 0, 0, 0)], wide, False)
        reads = (Read(features, 0, 1, 2 * h), Read(wide, 0, 1, 2 * h))
        make.pointwise(total, 2 * h, reads, (Step("add", (0, 1)),), False)
        features = total
    logits = head(make, net.head, features, 2 * h, 2 * h, levels)
    return Made(make.program(logits, levels), net)


class Wave(nn.Module):
    """A WaveNet on one number a sample: x [n, 1, 1, T] -> [n, levels, 1, T]."""

    def __init__(self, residual, skip, levels, dilations):
        super().__init__()
        self.dilations = dilations
        self.first = nn.Conv2d(1, residual, (1, 2))
        self.dilated = nn.ModuleList(
            nn.Conv2d(residual, 2 * residual, (1, 2), dilation=d) for d in dilations
        )
        self.out = nn.ModuleList(nn.Conv2d(residual, residual, 1) for _ in dilations)
        self.skip = nn.ModuleList(nn.Conv2d(residual, skip, 1) for _ in dilations)
        self.head = nn.ModuleList([nn.Conv2d(skip, levels, 1), nn.Conv2d(levels, levels, 1)])

    def forward(self, x):
        x = self.first(F.pad(x, (2, 0))[:, :, :, :-1])
        total = 0
        for n, dilation in enumerate(self.dilations):
            a, b = self.dilated[n](F.pad(x, (dilation, 0))).chunk(2, 1)
            gate = torch.tanh(a) * torch.sigmoid(b)
            total = total + self.skip[n](gate)
            x = x + self.out[n](gate)
        return self.head[1](F.relu(self.head[0](F.relu(total))))


def wavenet(
    residual=64, skip=128, levels=256, depth=10, stacks=2, length=4096, span=64, seed=0,
    dtype=torch.float32,
):  # fmt: skip
    """Taps that reach back beyond a span run once a span."""
    dilations = [2**n for _ in range(stacks) for n in range(depth)]
    net = settled(Wave(residual, skip, levels, dilations), seed, dtype)
    make = Maker(1, length, span, dtype)
    r = residual
    x = make.buffer(1, columns=4)
    features = make.buffer(r, columns=2 if dilations[0] == 1 else dilations[0] + span)
    make.conv(x, net.first, [(0, 0, 0, -2), (0, 1, 0, -1)], features, False)
    skips = None
    mixed, gate, added, part = (make.buffer(s, columns=1) for s in (2 * r, r, r, skip))
    for n, dilation in enumerate(dilations):
        far, here = (0, 0, 0, -dilation), (0, 1, 0, 0)
        if dilation >= span:
            start = make.buffer(2 * r, columns=span)
            make.conv(features, net.dilated[n], [far], start, True)
            initial = (Read(start, 0, 1, 2 * r),)
            make.conv(features, net.dilated[n], [here], mixed, False, initial)
        else:
            make.conv(features, net.dilated[n], [far, here], mixed, False)
        make.pointwise(gate, r, (Read(mixed, 0, 1, r), Read(mixed, r, 1, r)), GATE, False)
        # The skip sum begins with the sum so far; its bias is added to the weights' own sums.
        make.conv(gate, net.skip[n], [(0, 0, 0, 0)], part, False)
        total = make.buffer(skip, columns=1)
        if skips is None:
            make.pointwise(total, skip, (Read(part, 0, 1, skip),), (), False)
        else:
            reads = (Read(skips, 0, 1, skip), Read(part, 0, 1, skip))
            make.pointwise(total, skip, reads, (Step("add", (0, 1)),), False)
        skips = total
        make.conv(gate, net.out[n], [(0, 0, 0, 0)], added, False)
        reach = dilations[n + 1] if n + 1 < len(dilations) else 0
        before, features = features, make.buffer(r, columns=min(length, reach + span))
        reads = (Read(before, 0, 1, r), Read(added, 0, 1, r))
        make.pointwise(features, r, reads, (Step("add", (0, 1)),), False)
    logits = head(make, net.head, skips, skip, levels, levels)
    return Made(make.program(logits, levels), net)


class Recurrent(nn.Module):
    """An LSTM over the pixels of an image in raster order, moved on by one."""

    def __init__(self, width, levels):
        super().__init__()
        self.lstm = nn.LSTM(1, width, 2, batch_first=True)
        self.head = nn.Conv2d(width, levels, 1)

    def forward(self, x):
        moved = F.pad(x.flatten(2), (1, -1)).transpose(1, 2)
        h = self.lstm(moved)[0].transpose(1, 2)
        return self.head(h.unflatten(2, x.shape[2:]))


def recurrent(width=70, levels=33, height=4, columns=5, seed=0, dtype=torch.float32):
    module = settled(Recurrent(width, levels), seed, dtype)
    captured = capture(module, torch.zeros(2, 1, height, columns, dtype=dtype), {})
    draws = [(0, 1, list(range(levels)))]
    return Made(plan(lower(captured), 1, 1, draws, None, dtype, CPU), module)
