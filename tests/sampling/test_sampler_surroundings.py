"""What is around a call of a sampler, or in a model: autocast, defaults, hooks, callbacks, NaN."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genfast
from genfast.errors import ExactnessError, InputError, NumericsError, UnsupportedModelError
from genfast.sampling import Categorical, CustomDistribution
from genfast.sampling.run.reference import ReferenceExecutor
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


@pytest.mark.parametrize(
    "name",
    ["seed", "n", "x", "self", "model", "known", "temperature", "first", "progress", "a b", 3],
)
def test_conditioning_that_a_call_could_not_name_is_refused(name):
    with pytest.raises(InputError, match=r"conditioning.*forward="):
        genfast.compile_sampler(small(), SHAPE, Categorical(4), conditioning={name: torch.zeros(2)})


def test_a_forward_is_a_function_and_a_shape_of_integers():
    with pytest.raises(InputError, match="forward=3"):
        genfast.compile_sampler(small(), SHAPE, Categorical(4), forward=3)
    with pytest.raises(InputError, match="event_shape"):
        genfast.compile_sampler(small(), (True, 3, 4), Categorical(4))


def test_a_model_without_numbers_is_refused():
    with pytest.raises(InputError, match="meta"):
        genfast.compile_sampler(small().to("meta"), SHAPE, Categorical(4))
    model = small()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    x = sampler.sample(1)
    model.to("meta")
    for call in (sampler.sample, sampler.start, lambda n: sampler.logits(x)):
        with pytest.raises(InputError, match="meta"):
            call(1)


class Counting(Small):
    """Another function at every call."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


def test_a_model_that_changes_at_every_call_is_refused_as_such():
    model = Counting(1, 4).double()
    with pytest.raises(UnsupportedModelError, match=r"input alone.*differ"):
        genfast.compile_sampler(model, SHAPE, Categorical(4))


class Raced(list):
    """What another thread has emptied since it was looked at."""

    def __bool__(self):
        return True

    def __len__(self):
        return 1

    def pop(self, *place):
        raise IndexError("pop from empty list")


def test_an_idle_executor_that_another_thread_took_is_made_anew(executor):
    sampler = genfast.compile_sampler(small(), SHAPE, Categorical(4), executor=executor)
    expected = sampler.sample(3, seed=1)
    sampler._compiled._idle = Raced()
    assert torch.equal(sampler.sample(3, seed=1), expected)


def test_what_was_compiled_cannot_be_exchanged():
    sampler = genfast.compile_sampler(small(), SHAPE, Categorical(4))
    for name in ("model", "event_shape", "distribution"):
        with pytest.raises(AttributeError):
            setattr(sampler, name, getattr(sampler, name))


class Trained(ReferenceExecutor):
    """As if another thread trained the model between packing and checking."""

    model = None

    def __init__(self, program):
        super().__init__(program)
        with torch.no_grad():
            self.model.first.weight.mul_(1.5)


def test_a_model_that_changes_while_it_is_compiled_is_the_reason_given(monkeypatch):
    model = small()
    monkeypatch.setattr(Trained, "model", model)
    with pytest.raises(ExactnessError, match="changed while it was compiled"):
        genfast.compile_sampler(model, SHAPE, Categorical(4), executor=Trained)
