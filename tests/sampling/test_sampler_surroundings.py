"""What is around a call of a sampler, or in a model: autocast, defaults, hooks, callbacks, NaN."""

import functools
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genfast
from genfast.errors import InputError, NumericsError, UnsupportedModelError
from genfast.sampling import Categorical, CustomDistribution
from genfast.sampling.fingerprint import fingerprint
from tests.sampling.strangers import Masked, Small
from tests.sampling.test_sampler import executor
from tests.sampling.test_sampler_model import SHAPE, naive, small

__all__ = ["executor"]  # a fixture


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_around_a_sampler_changes_nothing(executor, dtype):
    model = small().to(dtype)
    plain = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    drawn, log_prob = plain.sample(9, seed=1, return_log_prob=True)
    logits = plain.logits(drawn)
    with torch.autocast("cpu", torch.bfloat16):
        inside = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
        for sampler in (plain, inside):
            found = sampler.sample(9, seed=1, return_log_prob=True)
            assert torch.equal(found[0], drawn)
            assert torch.equal(found[1], log_prob)
            assert sampler.logits(drawn).dtype == dtype
            assert torch.equal(sampler.logits(drawn), logits)
            assert torch.equal(sampler.log_prob(drawn), plain.log_prob(drawn))
            state = sampler.start(9, seed=1)
            while not state.done:
                state.step()
            assert torch.equal(state.events, drawn)
        assert torch.equal(naive(model, 9, seed=1), drawn)
        assert genfast.check_causality(model, SHAPE, distribution=Categorical(4)).causal
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(inside.sample(9, seed=1), drawn)


class Sorting(Small):
    def forward(self, x):
        return super().forward(x).sort(dim=1).values


def test_autocast_around_naive_sampling_changes_nothing():
    torch.manual_seed(0)
    model = Sorting(1, 4)
    with pytest.warns(UserWarning, match="slow"):
        sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), fallback="naive")
    drawn = sampler.sample(4, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampler.sample(4, seed=1), drawn)
        assert sampler.logits(drawn).dtype == torch.float32


class Casting(Small):
    def forward(self, x):
        h = self.first(x)
        h = h.half().float()
        return self.second(F.glu(h, dim=1))


class Autocasting(Small):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "narrow", "line"),
    [(Casting, "float16", r"h = h\.half"), (Autocasting, "bfloat16", "forward")],
)
def test_numbers_rounded_inside_a_model_are_refused_by_their_line(kind, narrow, line):
    torch.manual_seed(0)
    model = kind(1, 4)
    with pytest.raises(UnsupportedModelError, match=f"{line}.*{narrow}"):
        genfast.compile_sampler(model, SHAPE, Categorical(4))
    with pytest.warns(UserWarning, match=narrow):
        sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), fallback="naive")
    assert torch.equal(sampler.sample(6, seed=1), naive(model, 6, seed=1))


class SymbolsInHalf(Small):
    """Rounds what has no digits to lose."""

    def forward(self, x):
        return super().forward(x.half().to(x.dtype))


def test_a_cast_that_loses_nothing_is_taken():
    torch.manual_seed(0)
    model = SymbolsInHalf(1, 4)
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    assert torch.equal(sampler.sample(6, seed=1), naive(model, 6, seed=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["first.weight", "second.weight", "second.bias"])
def test_a_parameter_that_is_not_finite_is_named(name, value):
    model = small()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    for fallback in (None, "naive"):
        with pytest.raises(NumericsError, match=rf"{name}.*{'NaN' if value != value else 'inf'}"):
            genfast.compile_sampler(model, SHAPE, Categorical(4), fallback=fallback)


def test_a_parameter_that_becomes_nan_is_named():
    model = small()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    before = sampler.sample(3, seed=1)
    old = model.first.weight.data.clone()
    with torch.no_grad():
        model.first.weight.fill_(torch.nan)
    with pytest.raises(NumericsError, match=r"first\.weight"):
        sampler.sample(3, seed=1)
    with torch.no_grad():
        model.first.weight.copy_(old)
    assert torch.equal(sampler.sample(3, seed=1), before)


class Forbidding(Small):
    """Some level never comes: a buffer of its logits holds -inf."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("never", torch.tensor([0.0, -torch.inf, 0.0, 0.0]))
        self.register_buffer("unused", torch.tensor(torch.nan))
        self.spare = nn.Parameter(torch.tensor(torch.nan))

    def forward(self, x):
        return super().forward(x) + self.never[:, None, None].to(x.dtype)


def test_infinite_buffers_and_unused_nan_are_no_reason_to_refuse(executor):
    torch.manual_seed(0)
    model = Forbidding(1, 4).double()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    drawn = sampler.sample(40, seed=1)
    assert torch.equal(drawn, naive(model, 40, seed=1))
    assert not (drawn == 1).any()


def test_a_buffer_that_makes_nan_is_named():
    model = Forbidding(1, 4).double()
    model.never[0] = torch.nan
    with pytest.raises(NumericsError, match="never"):
        genfast.compile_sampler(model, SHAPE, Categorical(4))


class Silent(nn.Module):
    def forward(self, x):
        raise ValueError


def test_a_model_that_fails_says_why_in_one_line():
    with pytest.raises(UnsupportedModelError) as caught:
        genfast.compile_sampler(small(), (2, 3, 4), Categorical(2))
    text = str(caught.value)
    assert "['" not in text
    assert "[]" not in text
    assert "as integers and as floats, got RuntimeError: " in text
    with pytest.raises(UnsupportedModelError, match=r"got ValueError; then ValueError$"):
        genfast.compile_sampler(Silent(), SHAPE, Categorical(2))


def test_default_dtype_and_device_may_be_others(executor):
    model, levels = small(), Categorical(4)
    sampler = genfast.compile_sampler(model, SHAPE, levels, executor=executor)
    drawn, log_prob = sampler.sample(5, seed=1, return_log_prob=True)
    logits = sampler.logits(drawn)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    try:
        for dtype, device in [(torch.float64, "cpu"), (torch.bfloat16, "cpu"), (None, "meta")]:
            torch.set_default_dtype(dtype or torch.float32)
            torch.set_default_device(device)
            again = genfast.compile_sampler(model, SHAPE, levels, executor=executor)
            for each in (sampler, again):
                found = each.sample(5, seed=1, return_log_prob=True)
                assert torch.equal(found[0], drawn)
                assert torch.equal(found[1], log_prob)
                assert torch.equal(each.logits(drawn), logits)
                assert torch.equal(each.log_prob(drawn), sampler.log_prob(drawn))
                assert torch.equal(each.sample(5, known=drawn, known_mask=mask), drawn)
                each.sample(1)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


class Reentrant:
    """A distribution's function that draws from a sampler itself."""

    def __init__(self):
        self.sampler, self.inside = None, False

    def __call__(self, parameters, noise):
        if self.sampler is not None and not self.inside:
            self.inside = True
            self.sampler.sample(2, seed=5)
            self.inside = False
        return (parameters.cumsum(dim=1).sigmoid() < noise).sum(dim=1).clamp(max=3)


def test_a_sampler_called_from_its_own_distribution(executor):
    function = Reentrant()
    sampler = genfast.compile_sampler(
        small(), SHAPE, CustomDistribution(function, levels=4), executor=executor
    )
    expected = sampler.sample(3, seed=1)
    function.sampler = sampler
    assert torch.equal(sampler.sample(3, seed=1), expected)


class Plain(Small):
    """Keeps what it computes with in attributes of many kinds."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scales, self.act, self._shift = [1.0, 2.0], F.relu, 0.0
        self.allowed, self.options = np.ones(4), {"power": 1}

    def forward(self, x):
        h = self.act(self.first(x)) * self.scales[0] + self._shift
        out = self.second(F.glu(h, dim=1)) ** self.options["power"]
        return out * torch.as_tensor(self.allowed, dtype=x.dtype)[:, None, None]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.scales.__setitem__(0, -3.0),
        lambda m: setattr(m, "act", torch.tanh),
        lambda m: setattr(m, "_shift", 2.0),
        lambda m: m.allowed.__setitem__(1, -30.0),
        lambda m: m.options.__setitem__("power", 3),
        lambda m: setattr(
            m, "forward", types.MethodType(lambda self, x: Small.forward(self, x), m)
        ),
    ],
)
def test_changes_of_plain_attributes_are_noticed(change):
    torch.manual_seed(3)
    model = Plain(1, 4).double()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    before = sampler.logits(naive(model, 30, seed=1))
    assert fingerprint(model) == sampler._compiled.weights
    change(model)
    drawn = sampler.sample(30, seed=1)
    assert torch.equal(drawn, naive(model, 30, seed=1))
    assert not torch.equal(sampler.logits(drawn), before)


def test_hooks_count_and_a_hook_in_place_of_another_is_noticed():
    model = small()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    handle = model.first.register_forward_hook(lambda module, args, out: out * 3)
    first = sampler.sample(30, seed=1)
    assert torch.equal(first, naive(model, 30, seed=1))
    handle.remove()
    model.first.register_forward_hook(lambda module, args, out: out * -2)
    second = sampler.sample(30, seed=1)
    assert torch.equal(second, naive(model, 30, seed=1))
    assert not torch.equal(first, second)


def test_the_fingerprint_looks_into_attributes():
    model = small()
    model.act = functools.partial(F.leaky_relu, negative_slope=0.1)
    assert fingerprint(model) == fingerprint(model)
    model.act = functools.partial(F.leaky_relu, negative_slope=0.2)
    model.nested = {"a": [1, (2, torch.zeros(2))]}
    before = fingerprint(model)
    model.nested["a"][1][1][0] = 1
    assert fingerprint(model) != before


class FailsOnce(Masked):
    """Raises at one call, in the middle of being recorded or run."""

    fail = False

    def forward(self, x):
        if self.fail:
            raise RuntimeError("not now")
        return super().forward(x)


def test_an_exception_in_the_model_leaves_a_sampler_that_works(executor):
    torch.manual_seed(0)
    model = nn.Sequential(FailsOnce(0, 1, 4, 3, padding=1)).double().train()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    before = sampler.sample(4, seed=1)
    model[0].fail = True
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(UnsupportedModelError, match="not now"):
        sampler.sample(4, seed=1)
    assert model.training
    assert model[0].training
    with torch.no_grad():
        model[0].weight -= 1
    model[0].fail = False
    assert torch.equal(sampler.sample(4, seed=1), before)


def test_nothing_warns_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = genfast.compile_sampler(small(), SHAPE, Categorical(4))
        sampler.sample(1)
        with pytest.raises(InputError, match="conditioning"):
            sampler.sample(1, labels=[1])
