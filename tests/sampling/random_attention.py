"""Random valid Programs with attention among their instructions."""

import torch

from genfast.sampling.program import Attend, Read, Table
from tests.sampling.random_programs import RandomProgram

DEPTHS = (1, 2, 3, 5, 8, 15, 16, 17, 33, 40)


class RandomAttention(RandomProgram):
    """Each position attends to what is computed by then, less what chance leaves out."""

    KINDS = ("gemm", "pointwise", "pointwise", "attend", "attend", "attend")

    def attend(self, when, _features):
        pick = self.random.choice
        heads, depth, width = pick([1, 2, 3, 5]), pick(DEPTHS), pick(DEPTHS)
        # A grid of its own, or the whole image.
        height, columns = pick([(when.height, when.width), (self.height, self.width)])
        queries = self.joined(heads * depth, lambda count: self.read(when, count))
        keys, values = (
            self.joined(heads * size, lambda count: self.anywhere(count, height, columns))
            for size in (depth, width)
        )
        seen = [(q // columns, q % columns) for q in range(height * columns)]
        rows = pick([1, heads])
        data = self.numbers(1, when.height, when.width, rows, len(seen))
        hidden = torch.rand(data.shape, generator=self.generator) < pick([0.0, 0.2, 0.8])
        for i in range(when.height):
            for j in range(when.width):
                tick = self.tick(when, i, j)
                if tick is not None:
                    late = [
                        any(not self.there(read, *q, tick) for read in (*keys, *values))
                        for q in seen
                    ]
                    hidden[0, i, j] |= torch.tensor(late)
        data = data.masked_fill(hidden, -torch.inf).flatten(3)
        count, step, spare = data.shape[3], pick([1, 1, 2, -1]), pick([0, 3])
        features = spare + count * abs(step)
        start = features - 1 if step < 0 else spare
        stored = torch.zeros(*data.shape[:3], features, dtype=self.dtype)
        stored[..., [start + step * k for k in range(count)]] = data
        bias = Read(len(self.tables), start, step, count, table=True)
        self.tables.append(Table("bias", features, when.height, when.width, stored))
        made = Attend(
            len(self.buffers), 0, when, queries, keys, values, bias,
            heads, height, columns, round(self.random.uniform(0.1, 1), 2),
        )  # fmt: skip
        return [(made, heads * width)]

    def joined(self, count, read):
        """One to three reads of so many features together."""
        cuts = sorted({self.random.randint(0, count) for _ in range(self.random.choice([0, 1, 2]))})
        ends = [*cuts, count]
        sizes = [end - start for start, end in zip([0, *cuts], ends, strict=True) if end > start]
        return tuple(read(size) for size in sizes)

    def anywhere(self, count, height, width):
        """A read of `count` features from positions of a grid, whenever they are computed."""
        for _ in range(60):
            table = self.random.random() < 0.1
            source = self.random.randrange(self.ordinary if table else len(self.buffers))
            step = self.random.choice((1, 1, 1, 2, -1, 0))
            each = (self.tables if table else self.buffers)[source]
            low, high = sorted((0, (count - 1) * step))
            if high - low >= each.features:
                continue
            start = self.random.randrange(-low, each.features - high)
            dy, dx = self.random.choice([(0, 0), (0, 0), (0, -1), (-1, 0), (0, 1)])
            bounds = (0, each.height, 0, each.width - self.random.choice([0, 0, 1]))
            fill = round(self.random.uniform(-2, 2), 2)
            found = Read(source, start, step, count, dy, dx, *bounds, fill, table)
            if table or (each.height, each.width) == (height, width):
                return found
        return Read(0, 0, 0, count, bottom=self.height, right=self.width)
