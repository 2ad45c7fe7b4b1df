"""Plans of attention: what is kept for it, when it runs, what is printed; and who looks ahead."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast import Categorical, check_causality
from genfast.sampling.plan.describe import describe, total_flop
from genfast.sampling.program import Attend, Buffer, Program
from tests.sampling.test_plan import check, whole

HEADS, DEPTH, LEVELS = 2, 3, 4


class Attending(nn.Module):
    """Attention of a shifted image's pixels; `seen` [heads or 1, positions, positions]."""

    def __init__(self, seen: Tensor, conv: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 5, 1)
        self.query = nn.Conv2d(5, HEADS * DEPTH, 1)
        self.key = nn.Conv2d(5, HEADS * DEPTH, 1)
        self.value = nn.Conv2d(5, HEADS, 1)
        self.head = nn.Conv2d(5 + HEADS, LEVELS, 1)
        self.register_buffer("seen", seen)

    def heads(self, x: Tensor) -> Tensor:
        return x.flatten(2).unflatten(1, (HEADS, -1)).transpose(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        moved = F.pad(x.flatten(2), (1, -1)).view(x.shape)
        h = self.first(moved).tanh()
        parts = (self.heads(layer(h)) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*parts, attn_mask=self.seen)  # here it attends
        y = y.transpose(2, 3).reshape(len(x), HEADS, *x.shape[2:])
        out: Tensor = self.head(torch.cat((h, y), 1))
        return out


def back(height: int, width: int) -> Tensor:
    """How far behind a position in raster order another is."""
    count = height * width
    return torch.arange(count)[:, None] - torch.arange(count)


def attention_of(program: Program) -> Attend:
    (attention,) = (i for i in program.instructions if isinstance(i, Attend))
    return attention


def kept(program: Program) -> list[Buffer]:
    """Where keys and values lie."""
    attention = attention_of(program)
    return [program.buffers[read.source] for read in (*attention.keys, *attention.values)]


def test_all_keys_and_values_are_kept_and_one_query() -> None:
    program = check(Attending(back(3, 4)[None] >= 0), (1, 3, 4), whole(LEVELS))
    assert {(each.rows, each.columns) for each in kept(program)} == {(3, 4)}
    assert sum(each.features for each in kept(program)) == HEADS * (DEPTH + 1)
    attention = attention_of(program)
    assert not attention.when.span
    for read in attention.queries:
        buffer = program.buffers[read.source]
        assert (buffer.rows, buffer.columns) == (1, 1)


@pytest.mark.parametrize(("reach", "columns"), [(1, 1), (2, 2), (5, 5), (40, 12)])
def test_of_a_sound_the_last_few_are_kept(reach: int, columns: int) -> None:
    distance = back(1, 12)
    seen = (distance >= 0) & (distance < reach)
    program = check(Attending(seen[None]), (1, 1, 12), whole(LEVELS))
    assert {(each.rows, each.columns) for each in kept(program)} == {(1, columns)}


@pytest.mark.parametrize(("reach", "rows"), [(2, 1), (5, 1), (6, 2), (10, 2), (11, 3), (99, 6)])
def test_of_an_image_the_last_few_rows_are_kept(reach: int, rows: int) -> None:
    distance = back(6, 5)
    seen = (distance >= 0) & (distance < reach)
    program = check(Attending(seen[None]), (1, 6, 5), whole(LEVELS))
    assert {each.rows for each in kept(program)} == {rows}


def test_the_longest_reach_of_all_heads_counts() -> None:
    distance = back(1, 9)
    seen = torch.stack([(distance >= 0) & (distance < reach) for reach in (2, 4)])
    program = check(Attending(seen), (1, 1, 9), whole(LEVELS))
    assert max(each.columns for each in kept(program)) == 4


def rows_above(height: int, width: int) -> Tensor:
    row = torch.arange(height * width) // width
    return row[:, None] > row


class Above(Attending):
    """Attention to the pixels themselves, of the rows above: nothing in the first row."""

    def forward(self, x: Tensor) -> Tensor:
        h, above = self.first(x).tanh(), self.first(F.pad(x, (0, 0, 1, -1)))
        query, key, value = map(self.heads, (self.query(above), self.key(h), self.value(h)))
        scores = (query @ key.mT).masked_fill(~self.seen, -torch.inf)
        y = (scores.softmax(-1).nan_to_num(0) @ value).transpose(2, 3)
        left = F.pad(x, (1, -1)).expand(-1, 5, -1, -1)
        out: Tensor = self.head(torch.cat((left, y.reshape(len(x), HEADS, *x.shape[2:])), 1))
        return out


def test_attention_to_rows_above_runs_once_per_row() -> None:
    program = check(Above(rows_above(4, 5)), (1, 4, 5), whole(LEVELS))
    assert attention_of(program).when.span


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_seen(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 6, (2,), generator=generator).tolist()
    distance = back(height, width + 1)
    heads = 1 + seed % HEADS
    chance = torch.rand(heads, *distance.shape, generator=generator)
    seen = (distance == 0) | ((distance > 0) & (chance < [0.1, 0.4, 0.8][seed % 3]))
    if seed % 4 == 0:
        seen = seen & ((distance == 0) | rows_above(height, width + 1))
    program = check(Attending(seen), (1, height, width + 1), whole(LEVELS))
    flop = sum(2 * (DEPTH + 1) * int(seen[head % heads].sum()) for head in range(HEADS))
    gemms = 2 * distance.shape[0] * (5 + 5 * HEADS * (2 * DEPTH + 1) + (5 + HEADS) * LEVELS)
    assert total_flop(program) == flop + gemms


def test_heads_that_see_differently_and_their_values_in_one_line() -> None:
    program = check(Attending(back(3, 4)[None] >= 0), (1, 3, 4), whole(LEVELS))
    lines = describe(program).splitlines()
    (line,) = (line for line in lines if "attention" in line)
    assert line.split("->")[0].strip() == "attention of 2 heads to 12"
    assert line.split("->")[1].split()[0] == str(HEADS)
    pixel = next(i for i, each in enumerate(lines) if each.startswith("Once per pixel"))
    assert lines.index(line) > pixel


# Who looks ahead

CAUSAL = back(3, 4) >= 0
LATER = CAUSAL.clone()
LATER[3, 9] = True


def by_head(*seen: Tensor) -> Tensor:
    return torch.stack(seen)


@pytest.mark.parametrize(
    ("seen", "pixel", "sees", "tap"),
    [
        # The shift of the input by one makes keys at q show pixel q - 1.
        (torch.ones(1, 12, 12, dtype=torch.bool), (0, 0), (2, 2), (2, 3)),
        (LATER[None], (0, 3), (2, 0), (2, -2)),
        (by_head(CAUSAL, LATER), (0, 3), (2, 0), (2, -2)),
        ((back(3, 4) >= -1)[None], (0, 0), (0, 0), (0, 1)),
        ((back(3, 4) >= -4)[None], (0, 0), (0, 3), (1, 0)),
    ],
    ids=["no mask", "one entry", "one entry of one head", "one too far", "a row too far"],
)
def test_an_attention_that_looks_ahead_is_named(
    seen: Tensor, pixel: tuple[int, int], sees: tuple[int, int], tap: tuple[int, int]
) -> None:
    report = check_causality(Attending(seen).double(), (1, 3, 4), distribution=Categorical(LEVELS))
    assert not report.causal
    assert report.leak is not None
    assert (report.leak.pixel, report.leak.sees_pixel) == (pixel, sees)
    assert report.leak.tap == tap
    assert "# here it attends" in report.leak.where


def test_a_strict_mask_that_shows_the_pixel_itself_is_named() -> None:
    seen = rows_above(4, 5)
    good = check_causality(Above(seen).double(), (1, 4, 5), distribution=Categorical(LEVELS))
    assert good.causal
    seen[7, 7] = True
    report = check_causality(Above(seen).double(), (1, 4, 5), distribution=Categorical(LEVELS))
    assert report.leak is not None
    assert report.leak.pixel == report.leak.sees_pixel == (1, 2)
    assert report.leak.tap == (0, 0)
    assert "aten.bmm" in report.leak.where
    assert "nan_to_num(0) @ value" in report.leak.where
