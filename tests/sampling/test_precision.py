"""Numbers that a model rounds or wraps are refused; steps that change nothing are taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genfast
from genfast.errors import ExactnessError, UnsupportedModelError
from genfast.sampling import Categorical, Gaussian, sample_naive
from genfast.sampling.run.reference import ReferenceExecutor

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Codes(nn.Module):
    """Looks up what `index` makes of the symbols; output t sees sample t - 1 and t - 2."""

    def __init__(self, index, levels, rows=300):
        super().__init__()
        self.index, self.table = index, nn.Embedding(rows, 6)
        self.out = nn.Conv1d(6, levels, 2)

    def forward(self, x):
        h = self.table(self.index(x).flatten(1)).transpose(1, 2)
        return 3 * self.out(F.pad(h, (2, -1)))


class Numbers(nn.Module):
    """Sees what `value` makes of the symbols as numbers."""

    def __init__(self, value, levels):
        super().__init__()
        self.value, self.out = value, nn.Conv1d(1, levels, 2)

    def forward(self, x):
        h = self.value(x).flatten(1)[:, None].to(self.out.weight.dtype)
        return self.out(F.pad(h, (2, -1))) / 8


def halves(x):
    """A tensor in half precision that no single symbol decides."""
    return torch.cat([x[:, :1], x[:, :-1]], 1).half() * x.half()


def start_in_bytes(x):
    return torch.cat([torch.full_like(x[:, :1], 200, dtype=torch.uint8), x[:, :-1].byte()], 1)


REFUSED = {
    "int8, lowest": (lambda x: (x - 128).to(torch.int8).abs().long() + 128, 256, "abs.*int8"),
    "int8 cast": (lambda x: x.to(torch.int8).long() + 128, 256, "_to_copy.*int8.*wraps"),
    "uint8 sum": (lambda x: (x.byte() + 1).long(), 256, "add.*uint8.*wraps"),
    "uint8 product of two": (
        lambda x: (x.byte() * F.pad(x, (1, -1)).byte()).long(),
        20,
        "mul.*uint8.*wraps",
    ),
    "int16 sum of two": (
        lambda x: (x.short() * 256 + F.pad(x, (1, -1)).short()).long() % 300,
        256,
        "mul.*int16|add.*int16",
    ),
    "bfloat16, a few": (lambda x: x.to(torch.bfloat16).long(), 260, "bfloat16.*rounds"),
    "half arithmetic": (lambda x: (x.half() / 3 * 3).long(), 40, "div.*float16.*rounds"),
    "half of two symbols": (lambda x: halves(x).long() % 300, 40, "float16.*rounds"),
    "more than 2^24": (lambda x: x.long() * 1_000_003 % 300, 256, "expected integers that"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_rounds_or_wraps_is_refused_with_its_line(name):
    index, levels, reason = REFUSED[name]
    torch.manual_seed(0)
    model = Codes(index, levels)
    with pytest.raises(UnsupportedModelError, match=rf"(?s)({reason})"):
        genfast.compile_sampler(model, (12,), Categorical(levels))


TAKEN = {
    "byte": (lambda x: x.byte().long(), 256),
    "uint8 as an index": (lambda x: x.to(torch.uint8).int(), 256),
    "uint8 sum that fits": (lambda x: (x.byte() + 1).long(), 200),
    "int8 within its range": (lambda x: (x - 128).to(torch.int8).long() + 128, 256),
    "compared": (lambda x: (x.byte() > 100).long() + (x.to(torch.uint8) == 7).long(), 256),
    "moved": (lambda x: start_in_bytes(x).long(), 256),
    "clamped": (lambda x: x.byte().clamp(3, 90).long(), 256),
    "half of small integers": (lambda x: (x.half() * 2 - 1).abs().long(), 40),
    "bfloat16 up to 256": (lambda x: x.to(torch.bfloat16).long(), 256),
    "large integers in float64": (lambda x: x.long() * 1_000_003 % 300, 256),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_changes_nothing_is_taken(name):
    index, levels = TAKEN[name]
    torch.manual_seed(0)
    model = Codes(index, levels)
    distribution = Categorical(levels)
    if "float64" in name:
        model.double()
    sampler = genfast.compile_sampler(model, (12,), distribution)
    x = torch.randint(0, levels, (40, 12))
    expected = model(x).detach()
    torch.testing.assert_close(sampler.logits(x), expected, **CLOSE)
    drawn = sampler.sample(30, seed=1)
    naive = sample_naive(model, 30, seed=1, event_shape=(12,), distribution=distribution)
    assert (drawn == naive).double().mean() > 0.99


@pytest.mark.parametrize(
    ("value", "levels"),
    [(lambda x: x.byte().float(), 256), (lambda x: 2 * F.one_hot(x, 5).half()[..., 3], 5)],
)
def test_narrow_numbers_that_become_wide_again(value, levels):
    torch.manual_seed(0)
    model = Numbers(value, levels).double()
    sampler = genfast.compile_sampler(model, (9,), Categorical(levels))
    x = torch.randint(0, levels, (20, 9))
    torch.testing.assert_close(sampler.logits(x), model(x).detach())


def test_numbers_without_levels_are_refused_when_cast():
    model = Numbers(lambda x: x.byte(), 2)
    with pytest.raises(UnsupportedModelError, match=r"uint8.*wraps"):
        genfast.compile_sampler(model, (9,), Gaussian())


class Unlike(ReferenceExecutor):
    """Errs on one input alone: where every symbol is `symbol`, or where one is."""

    symbol, everywhere = 0, True

    def begin(self, n, conditions=()):
        run = super().begin(n, conditions)
        forced = run.forced

        def wrong(x):
            found = forced(x)
            hit = (x == self.symbol).flatten(1)
            found[0][hit.all(1) if self.everywhere else hit.any(1)] += 1
            return found

        run.forced = wrong
        return run


@pytest.mark.parametrize(("symbol", "everywhere"), [(0, True), (96, True), (41, False)])
def test_verification_sees_the_lowest_and_highest_and_each_level(symbol, everywhere):
    torch.manual_seed(0)
    kind = type("Once", (Unlike,), {"symbol": symbol, "everywhere": everywhere})
    model = Codes(lambda x: x, 97)
    with pytest.raises(ExactnessError):
        genfast.compile_sampler(model, (100,), Categorical(97), executor=kind)
    genfast.compile_sampler(model, (100,), Categorical(97), executor=ReferenceExecutor)


def test_a_table_without_the_highest_level_is_refused():
    torch.manual_seed(0)
    model = Codes(lambda x: x, 3000, rows=2999)
    with pytest.raises(UnsupportedModelError, match=r"every symbol of Categorical.*IndexError"):
        genfast.compile_sampler(model, (12,), Categorical(3000))
