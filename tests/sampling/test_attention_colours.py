"""Attention whose heads, and features within a head, are known at different times of the scan."""

import random

import pytest
import torch
from torch import Tensor, nn

from genfast import Categorical, compile_sampler
from genfast.sampling import sample_naive
from tests.sampling.architecture_layers import PaddedConv, RankedConv

WIDTH = 3


class Coloured(nn.Module):
    """Attention between features of ranks 0 .. colours, and three that know the rows above only.

    A head knows what the largest rank of its queries and keys and that of a value know: those of
    some values are computed once per row, of others before or between the draws of a pixel.
    """

    def __init__(self, chance: random.Random, shape: tuple[int, int, int], levels: int):
        super().__init__()
        self.levels, (colours, height, width) = levels, shape

        def ranks(count: int) -> tuple[int, ...]:
            return tuple(chance.randint(0, colours) for _ in range(count))

        def heads_ranks(each: tuple[int, ...], count: int) -> tuple[int, ...]:
            return tuple(rank for rank in each for _ in range(count))

        self.heads, depth, size = chance.randint(1, 3), chance.randint(1, 3), chance.randint(1, 4)
        first, scored, valued = ranks(WIDTH), ranks(self.heads), ranks(self.heads * size)
        known = (*first, 0, 0, 0)
        self.first = RankedConv(tuple(range(1, colours + 1)), first, (3, 3))
        self.above = PaddedConv(colours, 3, (2, 3), around=True, down=1)
        self.query, self.key = (
            RankedConv(known, heads_ranks(scored, depth), (1, 1)) for _ in range(2)
        )
        self.value = RankedConv(known, valued, (1, 1))
        early = [chance.random() < 0.4 for _ in range(self.heads)]
        for layer in (self.query, self.key):
            layer.mask[torch.tensor(early).repeat_interleave(depth), :WIDTH] = 0
        self.value.mask[torch.tensor([chance.random() < 0.4 for _ in valued]), :WIDTH] = 0
        seen = tuple(map(max, heads_ranks(scored, size), valued))
        colour = tuple(range(colours)) * levels
        self.head = RankedConv((*known, *seen), colour, (1, 1))
        self.register_buffer("seen", self.masks(chance, height, width))

    def masks(self, chance: random.Random, height: int, width: int) -> Tensor:
        count = height * width
        row, back = torch.arange(count) // width, torch.arange(count)[:, None] - torch.arange(count)
        kinds = {
            "all": back >= 0,
            "rows above": row[:, None] > row,
            "near": (back >= 0) & (back < chance.randint(1, count)),
            "some": (back >= 0) & (torch.rand(count, count) < 0.5),
        }
        return torch.stack([kinds[chance.choice(list(kinds))] for _ in range(self.heads)])

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.to(self.head.weight.dtype) * 0.7 - 0.5
        h = torch.cat((self.first(pixels), self.above(pixels)), dim=1)
        query, key, value = (
            layer(h).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
            for layer in (self.query, self.key, self.value)
        )
        scores = (query @ key.mT).masked_fill(~self.seen, -torch.inf)
        y = (scores.softmax(-1).nan_to_num(0) @ torch.tanh(value)).transpose(2, 3)
        out: Tensor = self.head(torch.cat((h, y.reshape(len(x), -1, *x.shape[2:])), dim=1))
        return out.view(len(x), self.levels, *x.shape[1:])


def model_of(seed: int) -> tuple[nn.Module, tuple[int, int, int], int]:
    chance = random.Random(seed)
    shape = (chance.randint(1, 3), chance.randint(1, 4), chance.randint(1, 4))
    levels = chance.randint(2, 4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Coloured(chance, shape, levels).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model, shape, levels


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("seed", range(24))
def test_the_same_symbols_as_the_naive_loop(seed: int, executor: str) -> None:
    model, shape, levels = model_of(seed)
    symbols = Categorical(levels, layout="KC")
    drawn = compile_sampler(model, shape, symbols, executor=executor).sample(2, seed=seed)
    naive = sample_naive(model, 2, event_shape=shape, distribution=symbols, seed=seed)
    assert torch.equal(drawn, naive)


def test_attention_runs_once_per_row_and_between_draws() -> None:
    times = set()
    for seed in range(24):
        model, shape, levels = model_of(seed)
        for line in str(
            compile_sampler(model, shape, Categorical(levels, layout="KC"))
        ).splitlines():
            if line.startswith("Once per"):
                title = line
            if "attention of" in line:
                times.add(title)
    draws = {f"Once per pixel, after {done} of 3 draws:" for done in range(2)}
    assert times >= {"Once per row:", *draws}
