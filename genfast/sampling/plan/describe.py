"""The printed form of a Program: what runs per row and per pixel, its arithmetic, its caches."""

import math
from collections.abc import Iterator

import torch

from genfast.sampling.program import (
    Attend,
    Gemm,
    Instruction,
    Lookup,
    Pointwise,
    Program,
    Reduce,
    When,
)


def describe(program: Program) -> str:
    """Return the plan for a person: instructions, FLOP per pixel, bytes of cache per image."""
    kind = "sound" if program.height == 1 else "image"
    shape = f"{program.colours} x {program.height} x {program.width}"
    name = str(program.dtype).removeprefix("torch.")
    lines = [f"Sampler of one {kind} of {shape} symbols in {name}"]
    span = "row" if program.height > 1 else f"span of {program.span} samples"
    groups = {f"Once per {span}": [i for i in program.instructions if i.when.span]}
    for draw in range(len(program.draws) + 1):
        title = "Once per pixel" if program.height > 1 else "Once per sample"
        if len(program.draws) > 1 or draw == len(program.draws):
            title += f", after {draw} of {len(program.draws)} draws"
        groups[title] = [
            i for i in program.instructions if not i.when.span and i.when.after == draw
        ]
    for title, instructions in groups.items():
        if instructions:
            lines.append(f"{title}:")
            lines += [f"  {line}" for line in _lines(program, instructions)]
    pixels = program.height * program.width
    early = sum(_flop(program, i) for i in program.instructions if i.when.span)
    late = sum(_flop(program, i) for i in program.instructions if not i.when.span)
    share = early / max(early + late, 1)
    lines.append(
        f"Arithmetic: {_si((early + late) / pixels)}FLOP a pixel, {share:.0%} of it once per {span}"
    )
    lines.append(f"Weights: {_si(weight_bytes(program))}B")
    lines.append(f"Caches: {_si(cache_bytes(program))}B an image")
    return "\n".join(lines)


def cache_bytes(program: Program) -> int:
    """Return the bytes that all buffers of one image take."""
    size = torch.empty((), dtype=program.dtype).element_size()
    return size * sum(b.features * b.rows * b.columns for b in program.buffers)


def weight_bytes(program: Program) -> int:
    """Return the bytes of all weights, tables and biases."""
    size = torch.empty((), dtype=program.dtype).element_size()
    return size * sum(_weights(instruction) for instruction in program.instructions)


def total_flop(program: Program) -> int:
    """Return the floating-point operations of one image; those of products only."""
    return sum(_flop(program, i) for i in program.instructions)


def _lines(program: Program, instructions: list[Instruction]) -> Iterator[str]:
    pieces: dict[tuple[int, type], list[Instruction]] = {}
    for instruction in instructions:
        when = instruction.when
        if (when.height, when.width) == (1, 1) != (program.height, program.width):
            pieces.setdefault((instruction.out, type(instruction)), []).append(instruction)
    for instruction in instructions:
        same = pieces.get((instruction.out, type(instruction)), [])
        if len(same) > 1 and instruction is same[0]:
            yield _pieces(program, same)
        if len(same) > 1:
            continue
        buffer = program.buffers[instruction.out]
        width = _width(instruction)
        where = buffer.name
        part = (
            "" if width == buffer.features else f"[{instruction.first}:{instruction.first + width}]"
        )
        every = instruction.when
        scale = ""
        if (every.row_scale, every.column_scale) != (1, 1):
            scale = f", every {every.row_scale} x {every.column_scale} pixels"
        if every.before > 0:
            scale += f", {every.before} before the first"
        yield f"{_what(instruction):<44} -> {width:>4}  {where}{part}{scale}"


def _pieces(program: Program, instructions: list[Instruction]) -> str:
    """Return one line for what computes the features of a single position, each in its time."""
    kind = type(instructions[0]).__name__.lower()
    text = f"{kind}, in {len(instructions)} pieces as pixels are known"
    width = sum(map(_width, instructions))
    return f"{text:<44} -> {width:>4}  {program.buffers[instructions[0].out].name}"


def _what(instruction: Instruction) -> str:
    if isinstance(instruction, Gemm):
        width = sum(tap.read.count for tap in instruction.taps)
        extra = " + sums" if instruction.initial else ""
        return f"gemm {width} in {len(instruction.taps)} taps{extra}"
    if isinstance(instruction, Pointwise):
        steps = ", ".join(step.op for step in instruction.steps) or "copy"
        return f"pointwise {steps}"
    if isinstance(instruction, Reduce):
        return f"{instruction.op} of {instruction.size}"
    if isinstance(instruction, Attend):
        return f"attention of {instruction.heads} heads to {instruction.height * instruction.width}"
    return f"lookup in {instruction.weight.shape[0]} rows"


def _width(instruction: Instruction) -> int:
    if isinstance(instruction, Gemm | Pointwise):
        return instruction.count
    if isinstance(instruction, Reduce):
        return instruction.outer * instruction.inner
    if isinstance(instruction, Attend):
        return sum(read.count for read in instruction.values)
    return int(instruction.weight.shape[1])


def _weights(instruction: Instruction) -> int:
    if isinstance(instruction, Gemm):
        bias = 0 if instruction.bias is None else instruction.bias.numel()
        return bias + sum(tap.weight.numel() for tap in instruction.taps)
    return instruction.weight.numel() if isinstance(instruction, Lookup) else 0


def _flop(program: Program, instruction: Instruction) -> int:
    """Return the operations of one image: those of products."""
    if isinstance(instruction, Attend):
        return _attend_flop(program, instruction)
    if not isinstance(instruction, Gemm):
        return 0
    return sum(
        2 * tap.weight.numel() * _times(program, instruction.when, instruction.up, tap.phase)
        for tap in instruction.taps
    )


def _attend_flop(program: Program, instruction: Attend) -> int:
    """Return the operations of an attention, for the positions that are seen."""
    bias = program.tables[instruction.bias.source].data
    assert bias is not None
    read = instruction.bias
    rows, columns = _computed(program, instruction.when)
    scores = bias[0, ..., read.start : read.start + read.count]
    scores = scores.expand(instruction.when.height, instruction.when.width, -1)
    seen = int((scores[rows.start : rows.stop, columns.start : columns.stop] > -torch.inf).sum())
    pairs = seen * instruction.heads * instruction.height * instruction.width // read.count
    return (
        2
        * pairs
        * (_width(instruction) + sum(each.count for each in instruction.keys))
        // instruction.heads
    )


def _times(program: Program, when: When, up: int, phase: tuple[int, int]) -> int:
    """Return how many positions of a phase an instruction computes."""
    axes = zip(_computed(program, when), phase, strict=True)
    return math.prod(
        len(range(places.start + (first - places.start) % up, places.stop, up))
        for places, first in axes
    )


def _computed(program: Program, when: When) -> tuple[range, range]:
    """Return which rows and columns of its grid an instruction computes."""
    rows = (when.height, when.row_scale, when.row_offset, 0, program.height)
    columns = (when.width, when.column_scale, when.column_offset, -when.before, program.width)
    return _inside(*rows), _inside(*columns)


def _inside(count: int, scale: int, offset: int, low: int, high: int) -> range:
    """Return for which k below count k * scale + offset lies in low .. high - 1."""
    first = max(0, -((offset - low) // scale))
    return range(first, max(first, min(count, (high - 1 - offset) // scale + 1)))


def _si(number: float) -> str:
    if number < 1000:
        return f"{number:.0f} "
    power = min(int(math.log10(number) // 3), 4)
    return f"{number / 1000**power:.3g} {' kMGT'[power]}"
