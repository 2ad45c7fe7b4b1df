"""Programs planned by hand for small causal models, and the same models as plain convolutions."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from genfast.sampling.program import (
    Attend,
    Buffer,
    Draw,
    Gemm,
    Lookup,
    Pointwise,
    Program,
    Read,
    Reduce,
    Step,
    Table,
    Tap,
    When,
)

CPU = torch.device("cpu")


@dataclass
class Planned:
    """A program and what it must compute: x [n, features, H, W] -> parameters of each draw."""

    program: Program
    direct: Any
    conditions: Any = None  # n -> list of condition tables


def normal(generator, *size, dtype=torch.float64):
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)


def taps_of(source, weight, *, first=0, keep=lambda dy, dx: True, bounds=None):
    """Taps of a centred convolution weight [out, in, kh, kw]; those not kept must be zero."""
    taps = []
    _, features, high, wide = weight.shape
    for y in range(high):
        for x in range(wide):
            dy, dx = y - high // 2, x - wide // 2
            if keep(dy, dx):
                read = Read(source, first, 1, features, dy, dx, **(bounds or {}))
                taps.append(Tap(read, weight[:, :, y, x].T.contiguous()))
    return tuple(taps)


def before(dy, dx):
    return dy < 0 or (dy == 0 and dx < 0)


def mask_kernel(weight, keep):
    high, wide = weight.shape[2:]
    for y in range(high):
        for x in range(wide):
            if not keep(y - high // 2, x - wide // 2):
                weight[:, :, y, x] = 0
    return weight


def masked_stack(seed, colours, encoded, height, width, layers=2, kernel=3, dtype=torch.float64):
    """A PixelCNN: masked convolutions with ReLUs, its features in one block per colour.

    Every buffer keeps the rows its readers see, and no more.
    """
    generator = torch.Generator().manual_seed(seed)
    block = 4
    rows = kernel // 2 + 1
    inputs = colours * encoded
    buffers = [Buffer("x", inputs, height, width, rows, width)]
    instructions, weights = [], []
    sizes = [encoded] + [block] * layers
    for layer in range(layers):
        per_in, per_out = sizes[layer], sizes[layer + 1]
        weight = normal(generator, colours * per_out, colours * per_in, kernel, kernel, dtype=dtype)
        bias = normal(generator, colours * per_out, dtype=dtype)
        centre = weight[:, :, kernel // 2, kernel // 2]
        middle = centre.clone()
        mask_kernel(weight, before)
        out_group = torch.arange(colours * per_out) // per_out
        in_group = torch.arange(colours * per_in) // per_in
        sees = (
            in_group[None] < out_group[:, None]
            if layer == 0
            else (in_group[None] <= out_group[:, None])
        )
        centre.copy_(middle * sees)
        weights.append((weight, bias))
        last = layer == layers - 1
        buffers.append(
            Buffer(f"layer {layer}", colours * per_out, height, width, 1 if last else rows, width)
        )
        for colour in range(colours):
            mine = slice(colour * per_out, (colour + 1) * per_out)
            taps = list(taps_of(layer, weight[mine], keep=before))
            seen = (colour if layer == 0 else colour + 1) * per_in
            if seen:
                taps.append(Tap(Read(layer, 0, 1, seen), centre[mine, :seen].T.contiguous()))
            when = When(height, width, after=colour)
            instructions.append(
                Gemm(layer + 1, mine.start, per_out, when, tuple(taps), bias[mine].clone())
            )
            if not last:
                instructions.append(
                    Pointwise(
                        layer + 1, mine.start, per_out, when,
                        (Read(layer + 1, mine.start, 1, per_out),), (), (Step("relu", (0,)),),
                    )
                )  # fmt: skip
    # Grouped by draw: a colour's instructions run together.
    instructions.sort(key=lambda each: each.when.after)
    draws = tuple(Draw(c, 1, (Read(layers, c * block, 1, block),)) for c in range(colours))
    program = Program(
        colours, encoded, height, width, width, dtype, CPU, tuple(buffers), (),
        tuple(instructions), draws,
    )  # fmt: skip

    def direct(x):
        for layer, (weight, bias) in enumerate(weights):
            x = F.conv2d(x if layer == 0 else x.relu(), weight, bias, padding=kernel // 2)
        return list(x.split(block, dim=1))

    return Planned(program, direct)


def two_stacks(seed, height, width):
    """A vertical stack computed by rows beside a horizontal one computed by pixels."""
    generator = torch.Generator().manual_seed(seed)
    above = mask_kernel(normal(generator, 6, 1, 3, 3), lambda dy, dx: dy < 0)
    up_to = mask_kernel(normal(generator, 6, 6, 3, 3), lambda dy, dx: dy <= 0)
    left = mask_kernel(normal(generator, 5, 1, 3, 5), lambda dy, dx: dy == 0 and dx < 0)
    across = normal(generator, 5, 6, 1, 1)
    head = normal(generator, 3, 5, 1, 1)
    biases = [normal(generator, size) for size in (6, 6, 3)]
    row, pixel = When(height, width, span=True), When(height, width)
    buffers = (
        Buffer("x", 1, height, width, 2, width),
        Buffer("v1", 6, height, width, 2, width),
        Buffer("v2", 6, height, width, 1, width),
        Buffer("v to h", 5, height, width, 1, width),
        Buffer("h", 5, height, width, 1, 1),
        Buffer("logits", 3, height, width, 1, 1),
    )
    instructions = (
        Gemm(1, 0, 6, row, taps_of(0, above, keep=lambda dy, dx: dy < 0), biases[0]),
        Gemm(2, 0, 6, row, taps_of(1, up_to, keep=lambda dy, dx: dy <= 0), biases[1]),
        Gemm(3, 0, 5, row, taps_of(2, across)),
        Gemm(
            4, 0, 5, pixel, taps_of(0, left, keep=lambda dy, dx: dy == 0 and dx < 0),
            None, (Read(3, 0, 1, 5),),
        ),
        Pointwise(4, 0, 5, pixel, (Read(4, 0, 1, 5),), (), (Step("tanh", (0,)),)),
        Gemm(5, 0, 3, pixel, taps_of(4, head), biases[2]),
    )  # fmt: skip
    draws = (Draw(0, 1, (Read(5, 0, 1, 3),)),)
    program = Program(
        1, 1, height, width, width, torch.float64, CPU, buffers, (), instructions, draws
    )

    def direct(x):
        v1 = F.conv2d(x, above, biases[0], padding=1)
        v2 = F.conv2d(v1, up_to, biases[1], padding=1)
        h = torch.tanh(F.conv2d(x, left, padding=(1, 2)) + F.conv2d(v2, across))
        return [F.conv2d(h, head, biases[2])]

    return Planned(program, direct)


def sound(seed, width, dilation=11, span=4):
    """Two dilated layers of a sound: one computed by spans, for its tap is far enough back."""
    generator = torch.Generator().manual_seed(seed)
    far, near = normal(generator, 4, 2, 1), normal(generator, 4, 2, 1)
    second = normal(generator, 3, 4, 2)
    # Predicts the next sample: its output at t sees x up to t.
    buffers = (
        Buffer("x", 2, 1, width, 1, dilation + 1),
        Buffer("far", 4, 1, width, 1, span),
        Buffer("h", 4, 1, width, 1, 4),
        Buffer("out", 3, 1, width, 1, 2),
    )
    by_span, by_pixel = When(1, width, span=True), When(1, width, after=1)
    instructions = (
        Gemm(1, 0, 4, by_span, (Tap(Read(0, 0, 1, 2, 0, -dilation), far[:, :, 0].T),)),
        Gemm(
            2, 0, 4, by_pixel, (Tap(Read(0, 0, 1, 2), near[:, :, 0].T),),
            None, (Read(1, 0, 1, 4),),
        ),
        Gemm(
            3, 0, 3, by_pixel,
            (
                Tap(Read(2, 0, 1, 4, 0, -3), second[:, :, 0].T),
                Tap(Read(2, 0, 1, 4), second[:, :, 1].T),
            ),
        ),
    )  # fmt: skip
    draws = (Draw(0, 1, (Read(3, 0, 1, 3, 0, -1, left=0),)),)
    program = Program(1, 2, 1, width, span, torch.float64, CPU, buffers, (), instructions, draws)

    def direct(x):
        h = F.conv1d(F.pad(x[:, :, 0], (dilation, 0)), torch.cat((far, near), 2), dilation=dilation)
        out = F.conv1d(F.pad(h, (3, 0)), second, dilation=3)
        return [F.pad(out, (1, 0))[:, :, None, :-1]]

    return Planned(program, direct)


def behind_tokens(seed, width, tokens, span=4):
    """Attention and a dilated layer behind given tokens, the last of which predicts the first.

    Position j holds token j or sample j - tokens. The far tap is added up by spans.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = width + tokens
    given = normal(generator, 1, 1, tokens, 4)
    known, pair, near, far, head = (
        normal(generator, *size) for size in [(2, 4), (4, 6), (6, 5), (4, 5), (5, 3)]
    )
    later = torch.ones(grid, grid).triu(1).bool()
    bias = normal(generator, grid, grid).masked_fill(later, -torch.inf)
    tables = (Table("tokens", 4, 1, tokens, given), Table("bias", grid, 1, grid, bias[None, None]))
    buffers = (
        Buffer("x", 2, 1, width, 1, 1),
        Buffer("h", 4, 1, grid, 1, max(span, tokens) + 1),
        Buffer("pair", 6, 1, grid, 1, grid),
        Buffer("seen", 6, 1, grid, 1, tokens + 1),
        Buffer("far", 5, 1, grid, 1, tokens + span),
        Buffer("out", 5, 1, grid, 1, 1),
        Buffer("logits", 3, 1, grid, 1, 1),
    )
    before = When(1, grid, after=1, column_offset=-tokens, before=tokens)
    last = When(1, grid, after=1, column_offset=-tokens, before=1)
    by_span = When(1, grid, span=True, column_offset=-tokens, before=1)
    own = {"bottom": 1, "left": 0, "right": tokens, "table": True}
    instructions = (
        Gemm(
            1, 0, 4, before, (Tap(Read(0, 0, 1, 2, 0, -tokens, left=0), known),),
            None, (Read(0, 0, 1, 4, **own),),
        ),
        Gemm(2, 0, 6, before, (Tap(Read(1, 0, 1, 4), pair),)),
        Gemm(4, 0, 5, by_span, (Tap(Read(1, 0, 1, 4, 0, -span, left=0), far),)),
        Attend(
            3, 0, before, (Read(1, 0, 1, 4),), (Read(2, 0, 1, 4),), (Read(2, 0, 1, 6),),
            Read(1, 0, 1, grid, table=True), 2, 1, grid, 0.7,
        ),
        Gemm(5, 0, 5, last, (Tap(Read(3, 0, 1, 6), near),), None, (Read(4, 0, 1, 5),)),
        Gemm(6, 0, 3, last, (Tap(Read(5, 0, 1, 5), head),)),
    )  # fmt: skip
    draws = (Draw(0, 1, (Read(6, 0, 1, 3, 0, tokens - 1),)),)
    program = Program(
        1, 2, 1, width, span, torch.float64, CPU, buffers, tables, instructions, draws
    )

    def direct(x):
        h = torch.cat((given[0].expand(len(x), -1, -1), x[:, :, 0].mT @ known), 1)
        both = h @ pair
        query, key = h.unflatten(2, (2, 2)), both[..., :4].unflatten(2, (2, 2))
        scores = torch.einsum("nihd,njhd->nhij", query, key) * 0.7 + bias
        seen = scores.softmax(3) @ both.unflatten(2, (2, 3)).transpose(1, 2)
        out = seen.transpose(1, 2).flatten(2) @ near + F.pad(h, (0, 0, span, 0))[:, :grid] @ far
        return [(out @ head)[:, tokens - 1 : -1].mT[:, :, None]]

    return Planned(program, direct)


def strided(seed, height, width):
    """Down by two and up again: a grid of its own, and taps that take turns."""
    generator = torch.Generator().manual_seed(seed)
    down = normal(generator, 4, 1, 2, 3)  # rows -2, -1; columns -1, 0, 1 of position (2i, 2j)
    up = normal(generator, 4, 3, 2, 2)
    bias = normal(generator, 3)
    low, wide = (height + 1) // 2, (width + 1) // 2
    buffers = (
        Buffer("x", 1, height, width, 3, width),
        Buffer("down", 4, low, wide, 1, wide),
        Buffer("up", 3, height, width, 1, 2),
    )
    taps = tuple(
        Tap(Read(0, 0, 1, 1, y - 2, x - 1), down[:, :, y, x].T.contiguous())
        for y in range(2)
        for x in range(3)
    )
    instructions = (
        Gemm(
            1, 0, 4, When(low, wide, row_scale=2, column_scale=2), taps,
            up=1, down=2,
        ),
        Gemm(
            2, 0, 3, When(height, width),
            tuple(
                Tap(Read(1, 0, 1, 4), up[:, :, y, x].contiguous(), (y, x))
                for y in range(2)
                for x in range(2)
            ),
            bias, up=2, down=1,
        ),
    )  # fmt: skip
    draws = (Draw(0, 1, (Read(2, 0, 1, 3),)),)
    program = Program(
        1, 1, height, width, width, torch.float64, CPU, buffers, (), instructions, draws
    )

    def direct(x):
        padded = F.pad(x, (1, 1 + width % 2, 2, 0))
        small = F.conv2d(padded, down, stride=2)[:, :, :low, :wide]
        return [F.conv_transpose2d(small, up, bias, stride=2)[:, :, :height, :width]]

    return Planned(program, direct)


def everything(seed, height, width):
    """Lookups, reductions, fills, constant and condition tables, features read in strides."""
    generator = torch.Generator().manual_seed(seed)
    codes = normal(generator, 5, 6)
    field = normal(generator, 1, height, 1, 6)
    buffers = (
        Buffer("x", 1, height, width, 1, width),
        Buffer("code", 6, height, width, 2, width),
        Buffer("peak", 3, height, width, 1, 1),
        Buffer("norm", 2, height, width, 1, 1),
        Buffer("out", 6, height, width, 1, 1),
    )
    tables = (
        Table("field", 6, height, width, field),
        Table("label", 6, height, width, None, 0),
        Table("map", 2, height, width, None, 1, True),
    )
    now, late = When(height, width), When(height, width, after=1)
    instructions = (
        # The code of the pixel to the left; code 0 before the first one.
        Lookup(1, 0, late, Read(0, 0, 1, 1), codes),
        Pointwise(
            2, 0, 3, now,
            (
                Read(1, 0, 2, 3, 0, -1, left=0, fill=-2.5),
                Read(1, 5, -2, 3, -1, 0, top=0, fill=1.5),
                Read(2, 0, 1, 1, table=True),
            ),
            (0.25,),
            (Step("maximum", (0, 1)), Step("mul", (4, 3)), Step("add", (5, 2))),
        ),
        Reduce(3, 0, now, (Read(2, 0, 1, 3), Read(0, 0, 0, 1, 5, 0)), "max", 2, 2, 1),
        Reduce(
            4, 0, now,
            (Read(0, 0, 1, 6, table=True), Read(1, 0, 1, 6, table=True)),
            "sum", 1, 2, 6,
        ),
        Pointwise(
            4, 0, 6, now, (Read(4, 0, 1, 6), Read(3, 1, 0, 6)), (), (Step("mul", (0, 1)),)
        ),
    )  # fmt: skip
    draws = (Draw(0, 1, (Read(4, 3, 1, 3), Read(4, 0, 1, 3), Read(2, 1, 0, 1, table=True))),)
    program = Program(
        1, 1, height, width, width, torch.float64, CPU, buffers, tables, instructions, draws
    )

    def conditions(n):
        g = torch.Generator().manual_seed(seed + n)
        return [normal(g, n, 1, 1, 6), normal(g, 1, height, width, 2)]

    def direct(x):
        label, spatial = conditions(len(x))
        code = codes[x[:, 0].long()]  # [n, H, W, 6]
        left = F.pad(code[:, :, :-1, 0::2], (0, 0, 1, 0), value=-2.5)
        up = F.pad(code[:, :-1, :, [5, 3, 1]], (0, 0, 0, 0, 1, 0), value=1.5)
        peak = torch.maximum(left, up) * 0.25 + spatial[..., :1]
        norm = torch.maximum(peak[..., 2:3], torch.zeros(()))  # a read far outside sees 0
        out = (field + label) * norm
        joined = torch.cat(
            (out[..., 3:], out[..., :3], spatial[..., 1:].expand(len(x), -1, -1, -1)), 3
        )
        return [joined.permute(0, 3, 1, 2)]

    return Planned(program, direct, conditions)


def inputs(planned, n, seed=0):
    program = planned.program
    generator = torch.Generator().manual_seed(seed)
    size = (n, program.colours * program.encoded, program.height, program.width)
    if any(isinstance(each, Lookup) for each in program.instructions):
        return torch.randint(0, 5, size, generator=generator).double()
    return normal(generator, *size).to(program.dtype)
