"""Random valid Programs: every kind of instruction and every way of addressing, in odd sizes."""

import random
from dataclasses import replace

import numpy as np
import torch

from genfast.sampling.program import (
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
from tests.sampling.interpreter import Interpreter

FEATURES = (1, 2, 3, 5, 8, 17, 33, 70, 130)
UNARY = ("tanh", "sigmoid", "relu", "neg", "silu")
BINARY = ("add", "sub", "mul", "maximum", "minimum", "lt", "eq")


class Stale(Exception):
    """A number was read that is not there any more, or not yet."""


class Strict(Interpreter):
    def read(self, read, i, j):
        found = super().read(read, i, j)
        if found is not None and np.isnan(found).any():
            raise Stale
        return None if found is None else np.array(found)


class RandomProgram:
    """Builds one program from a seed. Ticks (row, column, phase) say when a number is there."""

    KINDS = ("gemm", "gemm", "gemm", "pointwise", "pointwise", "reduce", "lookup")

    def __init__(self, seed, dtype=torch.float64):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        pick = self.random.choice
        self.height, self.width = pick([(1, 11), (1, 30), (3, 4), (4, 7), (5, 5), (6, 3)])
        self.span = self.width if self.height > 1 else pick([1, 3, 4, 7, self.width])
        self.colours, self.encoded = pick([1, 1, 2, 3]), pick([1, 1, 2, 5])
        sizes = pick([[self.colours], [1] * self.colours])
        self.draws = [(sum(sizes[:n]), size) for n, size in enumerate(sizes)]
        self.tables = self.make_tables()
        self.ordinary = len(self.tables)  # those that any instruction may read
        self.buffers = [self.full(self.colours * self.encoded)]
        self.whens = [None]
        self.instructions = []

    def full(self, features, height=None, width=None):
        height, width = height or self.height, width or self.width
        return Buffer(
            f"b{len(getattr(self, 'buffers', []))}", features, height, width, height, width
        )

    def numbers(self, *size):
        return torch.randn(*size, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def make_tables(self):
        tables = [Table("constant", 9, self.height, self.width, self.numbers(1, 1, 1, 9))]
        tables.append(
            Table("map", 7, self.height, self.width, self.numbers(1, self.height, self.width, 7))
        )
        tables.append(
            Table("columns", 6, self.height, self.width, self.numbers(1, 1, self.width, 6))
        )
        tables.append(Table("label", 8, self.height, self.width, None, 0))
        tables.append(Table("field", 10, self.height, self.width, None, 1, True))
        return tables

    def conditions(self, n):
        generator = torch.Generator().manual_seed(n)
        sizes = [(n, 1, 1, 8), (1, self.height, self.width, 10)]
        return [
            torch.randn(*size, generator=generator, dtype=torch.float64).to(self.dtype)
            for size in sizes
        ]

    def tick(self, when, i, j):
        """When position (i, j) is computed; None if never."""
        row = i * when.row_scale + when.row_offset
        column = j * when.column_scale + when.column_offset
        if not (0 <= row < self.height and -when.before <= column < self.width):
            return None
        if column < 0:
            return row, 0, -1
        if when.span:
            return row, column // self.span * self.span, -1
        return row, column, when.after

    def there(self, read, i, j, tick):
        """Whether a read from (i, j) at this tick sees what is already computed."""
        row, column = i + read.dy, j + read.dx
        if not (read.top <= row < read.bottom and read.left <= column < read.right):
            return True
        if read.table:
            table = self.tables[read.source]
            sizes = (1, 1) if table.condition == 0 else (self.height, self.width)
            if table.data is not None:
                sizes = table.data.shape[1:3]
            places = zip((row, column), sizes, strict=True)
            return all(size == 1 or 0 <= at < size for at, size in places)
        buffer = self.buffers[read.source]
        if not (0 <= row < buffer.height and 0 <= column < buffer.width):
            return False
        if read.source == 0:
            last = max(read.start, read.start + (read.count - 1) * read.step) // self.encoded
            draw = next(n for n, (first, size) in enumerate(self.draws) if last < first + size)
            return (row, column, draw + 1) <= tick
        done = self.tick(self.whens[read.source], row, column)
        return done is not None and done <= tick

    def positions(self, when, up=1, down=1):
        for i in range(when.height):
            for j in range(when.width):
                tick = self.tick(when, i, j)
                if tick is not None:
                    yield i // up * down, j // up * down, tick

    def read(self, when, count, up=1, down=1, fill=True, here=False):
        """A random read of `count` features that is always in time."""
        reach = 1 if self.height > 1 else 6
        for _ in range(60):
            table = self.random.random() < 0.2
            source = self.random.randrange(self.ordinary if table else len(self.buffers))
            step = self.random.choice((1, 1, 1, 2, -1, 0))
            features = (self.tables if table else self.buffers)[source].features
            low, high = sorted((0, (count - 1) * step))
            if high - low >= features:
                continue
            start = self.random.randrange(-low, features - high)
            height, width, aside = self.height, self.width, 0
            if not table:
                height, width = self.buffers[source].height, self.buffers[source].width
                aside = when.column_offset - (self.whens[source] or when).column_offset
            found = Read(
                source, start, step, count,
                self.random.randint(-min(2, self.height - 1), int(self.random.random() < 0.1)),
                self.random.choice([0, aside])
                + self.random.randint(-reach, 1 if self.height > 1 else 0),
                self.random.choice([0, 0, 1]), height - self.random.choice([0, 0, 1]), 0, width,
                round(self.random.uniform(-2, 2), 2) if fill else 0.0, table,
            )  # fmt: skip
            if here and self.random.random() < 0.9:
                found = replace(
                    found, dy=0, dx=self.random.choice([0, aside]), top=0, bottom=height
                )
            at = list(self.positions(when, up, down))
            if all(self.there(found, i, j, tick) for i, j, tick in at):
                return found
        source = self.random.choice([0, 3])
        return Read(source, 0, 0, count, bottom=1 << 60, table=True)

    def when(self):
        height, width = self.height, self.width
        rows = self.random.choice([1, 1, 1, 2]) if height > 1 else 1
        columns = self.random.choice([1, 1, 1, 2])
        row_offset = self.random.choice([0, 0, rows - 1])
        column_offset = self.random.choice([0, 0, 1, columns - 1])
        before = self.random.choice([0, 0, 0, 1, 3])
        if before:  # of the columns left of the scan one may be left out, or one not be there
            column_offset = -before + self.random.choice([-1, 0, 0, 1])
            width -= column_offset
        return When(
            -(-height // rows), -(-width // columns), self.random.random() < 0.4,
            self.random.randint(0, len(self.draws)), rows, row_offset, columns, column_offset,
            before,
        )  # fmt: skip

    def add(self):
        when = self.when()
        if when.span:
            when = replace(when, after=0)
        features = self.random.choice(FEATURES)
        kind = self.random.choice(self.KINDS)
        made = getattr(self, kind)(when, features)
        features = max(each.first + count for each, count in made)
        self.instructions += [each for each, _ in made]
        self.buffers.append(self.full(features, when.height, when.width))
        self.whens.append(when)
        if kind == "gemm" and self.random.random() < 0.5:
            self.rectify(made[-1][0])

    def rectify(self, gemm):
        """The rectifier of a product, and a product of what it leaves."""
        when, out, height = gemm.when, len(self.buffers), self.random.choice([0, 1])
        bounds = (0, gemm.when.height - height, 0, gemm.when.width)
        read = Read(gemm.out, gemm.first, 1, gemm.count, 0, 0, *bounds)
        self.instructions.append(
            Pointwise(out, 0, gemm.count, when, (read,), (), (Step("relu", (0,)),))
        )
        features = self.random.choice(FEATURES)
        weight = self.numbers(gemm.count, features) / (3 * gemm.count) ** 0.5
        taps = (Tap(Read(out, 0, 1, gemm.count), weight),)
        self.instructions.append(Gemm(out + 1, 0, features, when, taps, self.numbers(features)))
        for count in (gemm.count, features):
            self.buffers.append(self.full(count, when.height, when.width))
            self.whens.append(when)

    def gemm(self, when, features):
        up, down = self.random.choice([(1, 1), (1, 1), (2, 1), (1, 2), (2, 2)])
        taps = []
        for _ in range(self.random.randint(1, 5)):
            read = self.read(when, self.random.choice(FEATURES[:-1]), up, down, fill=False)
            phase = (self.random.randrange(up), self.random.randrange(up))
            weight = self.numbers(read.count, features) / (3 * read.count) ** 0.5
            taps.append(Tap(read, weight, phase))
        bias, initial = None, ()
        start = self.random.choice(["zero", "initial", "joined"])
        if self.random.random() < 0.5:
            bias = self.numbers(features)
        if start == "initial":
            initial = (self.read(when, features),)
        elif start == "joined" and features > 1:
            first = self.random.randint(1, features - 1)
            initial = (self.read(when, first), self.read(when, features - first))
        out, first = len(self.buffers), self.random.choice([0, 0, 1, 3])
        made = [(Gemm(out, first, features, when, tuple(taps), bias, initial, up, down), features)]
        if first:
            reads = (self.read(when, first),)
            made.insert(0, (Pointwise(out, 0, first, when, reads, (), ()), first))
        return made

    def pointwise(self, when, features):
        reads = [self.read(when, features) for _ in range(self.random.randint(1, 3))]
        if self.random.random() < 0.3:
            reads.append(self.read(when, 1))
        constants = [round(self.random.uniform(-1, 1), 3) for _ in range(self.random.randint(0, 2))]
        steps, results = [], len(reads) + len(constants)
        for _ in range(self.random.randint(0, 7)):
            op = self.random.choice(UNARY + BINARY)
            args = [self.random.randrange(results) for _ in range(1 if op in UNARY else 2)]
            steps.append(Step(op, tuple(args)))
            results += 1
        if not steps:
            reads, constants = reads[:1], []
        reads, constants = tuple(reads), tuple(constants)
        return [
            (
                Pointwise(len(self.buffers), 0, features, when, reads, constants, tuple(steps)),
                features,
            )
        ]

    def reduce(self, when, features):
        outer, size, inner = (self.random.randint(1, 4) for _ in range(3))
        total = outer * size * inner
        first = self.random.randint(0, total - 1)
        reads = tuple(self.read(when, count) for count in (first, total - first) if count)
        op = self.random.choice(["sum", "max"])
        made = Reduce(len(self.buffers), 0, when, reads, op, outer, size, inner)
        return [(made, outer * inner)]

    def lookup(self, when, features):
        # An index is a truth value: whether one number is below another.
        out = len(self.buffers)
        reads = (self.read(when, 1), self.read(when, 1))
        index = Pointwise(out, 0, 1, when, reads, (), (Step("lt", (0, 1)),))
        self.instructions.append(index)
        self.buffers.append(self.full(1, when.height, when.width))
        self.whens.append(when)
        weight = self.numbers(2, features)
        return [(Lookup(out + 1, 0, when, Read(out, 0, 1, 1), weight), features)]

    def build(self):
        """The program; some of its buffers are rings as small as chance finds them to do."""
        for _ in range(self.random.randint(3, 8)):
            self.add()
        draws = []
        for number, (first, size) in enumerate(self.draws):
            reads = []
            for _ in range(self.random.randint(1, 3)):
                when = When(self.height, self.width, after=number)
                reads.append(self.read(when, self.random.choice(FEATURES), here=True))
            draws.append(Draw(first, size, tuple(reads)))
        program = Program(
            self.colours, self.encoded, self.height, self.width, self.span, self.dtype,
            torch.device("cpu"), tuple(self.buffers), tuple(self.tables), tuple(self.instructions),
            tuple(draws),
        )  # fmt: skip
        return self.shrink(program)

    def shrink(self, program):
        self.interpret(program, 1)
        for number, buffer in enumerate(program.buffers):
            rows = self.random.randint(1, buffer.rows)
            columns = buffer.width if rows > 1 else self.random.randint(1, buffer.columns)
            smaller = list(program.buffers)
            smaller[number] = replace(buffer, rows=rows, columns=columns)
            shrunk = replace(program, buffers=tuple(smaller))
            try:
                self.interpret(shrunk, 1)
            except Stale:
                continue
            program = shrunk
        return program

    def interpret(self, program, n):
        x = self.inputs(n)
        return Strict(program, n, self.conditions(n)).forced(x)

    def inputs(self, n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        size = (n, self.colours * self.encoded, self.height, self.width)
        return torch.randn(size, generator=generator, dtype=torch.float64).to(self.dtype)
