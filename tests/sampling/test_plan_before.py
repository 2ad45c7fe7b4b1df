"""Plans of what stands before the scan: tokens of a prompt, steps of a label, left columns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.errors import CausalityError, UnsupportedModelError
from genfast.sampling.plan.describe import describe, total_flop
from genfast.sampling.plan.schedule import Clock
from genfast.sampling.plan.storage import ring
from genfast.sampling.probe.dependence import NEVER
from genfast.sampling.program import Attend, Gemm, Program, When
from tests.sampling.test_plan import check, program_of, shifted_right, whole

LEVELS, WIDTH, LENGTH = 3, 4, 9


class Prompted(nn.Module):
    """Attention of a sequence behind tokens; `after` are put behind it, which all may see."""

    def __init__(self, tokens: int, first: int, after: int = 0) -> None:
        super().__init__()
        self.first, self.length, self.after = first, LENGTH, after
        self.tokens = nn.Parameter(torch.randn(1, tokens, WIDTH))
        self.embed = nn.Linear(1, WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, LEVELS)
        count = tokens + LENGTH
        seen = torch.ones(count, count).tril().bool()
        seen[:, count - after :] = True
        self.register_buffer("seen", seen)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.mT)
        parts = (self.tokens.expand(len(x), -1, -1), h)
        h = torch.cat(parts[::-1] if self.after else parts, dim=1)
        query, key, value = (f(h.tanh())[:, None] for f in (self.query, self.key, self.value))
        h = F.scaled_dot_product_attention(query, key, value, self.seen)[:, 0]
        out: Tensor = self.head(h)[:, self.first : self.first + self.length].mT
        return out


def attention_of(program: Program) -> Attend:
    (attention,) = (i for i in program.instructions if isinstance(i, Attend))
    return attention


def longest(program: Program) -> int:
    return max(each.when.before for each in program.instructions)


@pytest.mark.parametrize("tokens", [2, 3, 12])
def test_tokens_before_a_sequence_whose_last_predicts_the_first(tokens: int) -> None:
    program = check(Prompted(tokens, tokens - 1), (1, LENGTH), whole(LEVELS), "current")
    attention = attention_of(program)
    assert attention.when == When(1, tokens + LENGTH, False, 1, 1, 0, 1, -tokens, before=1)
    assert longest(program) == tokens
    for read in (*attention.keys, *attention.values):
        # No prediction needs the last sample.
        assert program.buffers[read.source].columns == tokens + LENGTH - 1
    (query,) = attention.queries
    assert program.buffers[query.source].columns == 1


def test_tokens_before_a_sequence_that_predicts_the_next() -> None:
    def pixels(out: Tensor) -> Tensor:
        return shifted_right(out, 1, LENGTH)

    program = check(Prompted(3, 3), (1, LENGTH), whole(LEVELS), pixels=pixels)
    assert attention_of(program).when.before == 0
    assert longest(program) == 3


def test_one_token_needs_no_column_before_the_scan() -> None:
    assert longest(check(Prompted(1, 0), (1, LENGTH), whole(LEVELS))) == 0


def test_every_product_of_a_token_is_counted() -> None:
    program = check(Prompted(4, 3), (1, LENGTH), whole(LEVELS), "current")
    # Keys and values of all positions, queries, attention and the head of those that predict.
    # What the last sample gives is computed too, for no reader.
    products = WIDTH * LENGTH + 2 * WIDTH**2 * (4 + LENGTH)
    products += (WIDTH**2 + WIDTH * LEVELS) * (1 + LENGTH)
    products += 2 * WIDTH * sum(range(4, 4 + LENGTH + 1))
    assert total_flop(program) == 2 * products
    lines = describe(program).splitlines()
    assert sum(line.endswith(", 4 before the first") for line in lines) >= 2
    assert sum(line.endswith(", 1 before the first") for line in lines) >= 2


def test_a_prediction_cut_too_late_is_refused() -> None:
    x = torch.zeros(2, 1, LENGTH).double()
    with pytest.raises(CausalityError, match=r"pixel \(0, 0\).* depends on pixel \(0, 0\)"):
        program_of(Prompted(3, 3).double(), x, whole(LEVELS), "current")


def test_tokens_behind_a_sequence_that_all_see_are_refused() -> None:
    x = torch.zeros(2, 1, LENGTH).double()
    with pytest.raises(UnsupportedModelError, match="before any regular order"):
        program_of(Prompted(3, 0, after=3).double(), x, whole(LEVELS))


class Steps(nn.Module):
    """Causal convolutions over given steps and the samples after them."""

    def __init__(self, steps: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.randn(1, 1, steps))
        widths = [1, *(WIDTH for _ in dilations)]
        self.layers = nn.ModuleList(
            nn.Conv1d(a, WIDTH, 2, dilation=d) for a, d in zip(widths, dilations, strict=False)
        )
        self.head = nn.Conv1d(WIDTH, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat((self.steps.expand(len(x), -1, -1), x[:, :, :-1]), dim=2)
        for layer in self.layers:
            h = layer(F.pad(h, (layer.dilation[0], 0))).tanh()
        out: Tensor = self.head(h)[:, :, self.steps.shape[2] - 1 :]
        return out


@pytest.mark.parametrize("steps", [2, 5, 30])
@pytest.mark.parametrize("dilations", [(1, 2), (1, 8, 3), (16, 1, 9)])
def test_convolutions_over_steps_and_samples(steps: int, dilations: tuple[int, ...]) -> None:
    program = check(Steps(steps, dilations), (1, 20), whole(LEVELS), "current")
    assert longest(program) > 0
    # A tap a span back or more is added up by spans, of which the first takes the steps as well.
    far = sum(d >= program.span for d in dilations[1:])
    spans = [i for i in program.instructions if isinstance(i, Gemm) and i.when.span]
    assert len(spans) >= far
    for each in spans:
        reach = min(each.when.before + program.span, each.when.width)
        assert program.buffers[each.out].columns == reach


class Columns(nn.Module):
    """Columns that are learned, left of every row of an image."""

    def __init__(self, columns: int, height: int) -> None:
        super().__init__()
        self.columns = nn.Parameter(torch.randn(1, 1, height, columns))
        self.above, self.left = nn.Conv2d(1, WIDTH, (2, 3)), nn.Conv2d(1, WIDTH, (1, 3))
        self.mix = nn.Conv2d(WIDTH, LEVELS, (2, 2))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.cat((self.columns.expand(len(x), -1, -1, -1), x), 3)
        above = self.above(F.pad(wide, (2, 0, 2, -1)))
        h = (above + self.left(F.pad(wide, (2, 0)))).tanh()
        out: Tensor = self.mix(F.pad(h, (1, 0, 1, 0)))
        return out[:, :, :, self.columns.shape[3] - 1 : -1]


@pytest.mark.parametrize("columns", [2, 4])
def test_columns_left_of_every_row(columns: int) -> None:
    program = check(Columns(columns, 5), (1, 5, 6), whole(LEVELS))
    assert longest(program) > 0
    assert any(each.when.span for each in program.instructions)


def test_ticks_before_the_scan_are_those_of_the_first_span() -> None:
    clock = Clock(height=2, width=5, span=5, known=(0, 1))  # three ticks a pixel
    late = When(2, 6, False, 1, column_offset=-3, before=2)
    # The first column is too far left; two stand before the scan, then the pixel's own.
    expected = [[-7, 0, 0, 2, 5, 8], [8, 15, 15, 17, 20, 23]]
    np.testing.assert_array_equal(clock.ticks(late), expected)
    by_row = When(2, 6, True, 0, column_offset=-2, before=2)
    np.testing.assert_array_equal(clock.ticks(by_row), [[0] * 6, [15] * 6])


@pytest.mark.parametrize(
    ("when", "columns"),
    [
        (When(1, 16), 1),
        (When(1, 16, column_offset=-3, before=3), 3),
        (When(1, 16, span=True), 8),
        (When(1, 16, span=True, column_offset=-3, before=3), 11),
        (When(1, 8, span=True, column_scale=2), 4),
    ],
)
def test_a_ring_has_room_for_the_columns_of_a_step_read_or_not(when, columns):
    """Threads that share a step would write over each other's columns."""
    assert ring(Clock(1, 16, 8, (0, 1)), when, [], NEVER) == (1, columns)
