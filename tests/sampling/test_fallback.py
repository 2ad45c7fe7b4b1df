"""What is refused, why, and when the naive loop steps in: nothing but errors of ours comes out."""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genfast
from genfast.errors import (
    CausalityError,
    ExactnessError,
    InputError,
    UnsupportedModelError,
)
from genfast.sampling import Categorical, sample_naive
from genfast.sampling.run.reference import ReferenceExecutor
from tests.sampling.strangers import Small
from tests.sampling.test_sampler_model import SHAPE, Off, Sorting, naive, small

LINE, FOUR = (1, 9), Categorical(4)


class Head(nn.Module):
    """Logits of each sample from the two before it, and what a function makes of them."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv1d(1, 4, 2), function

    def forward(self, x):
        return self.function(self.conv(F.pad(x.to(self.conv.weight.dtype) / 3, (2, -1))))


def taken(model, fallback=None, shape=LINE, distribution=FOUR):
    """Compile and compare with the naive loop; what kind of sampler it is."""
    sampler = genfast.compile_sampler(model, shape, distribution, fallback=fallback)
    drawn = sampler.sample(30, seed=1)
    options = {"event_shape": shape, "distribution": distribution}
    assert torch.equal(drawn, sample_naive(model, 30, seed=1, **options))
    return str(sampler).splitlines()[-1]


@pytest.mark.parametrize(
    "function",
    [
        lambda y: (y.sum(), y),
        lambda y: [y.mean((1, 2)), y, y[:, :2]],
        lambda y: (None, y.mean((0, 1)), y),
        lambda y: {"loss": y.square().mean(), "scores": y},
    ],
    ids=["loss first", "a loss an event", "sums over events", "in a dictionary"],
)
def test_tensors_that_predict_nothing_are_passed_over(function):
    assert "naive" not in taken(Head(function).double())


@pytest.mark.parametrize("fallback", [None, "naive"])
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda y: y.sum(), r"got \[\] for N = 2; forward="),
        (lambda y: y.mean((1, 2)), r"the 9 columns|(got \[2\] for N = 2; forward=)"),
        (lambda y: torch.complex(y, y), r"real numbers.*complex64.*forward="),
        (lambda y: y.to_sparse(), r"dense tensor.*sparse.*forward="),
        (lambda y: "logits", r"expected a tensor.*str.*forward="),
    ],
)
@pytest.mark.filterwarnings("ignore:sampling with one forward pass")
def test_outputs_that_hold_no_predictions(function, reason, fallback):
    with pytest.raises(UnsupportedModelError, match=reason):
        genfast.compile_sampler(Head(function), LINE, FOUR, fallback=fallback)


def test_a_forward_function_that_gives_no_tensor():
    model = Head(lambda y: (y, y))
    with pytest.raises(UnsupportedModelError, match=r"got tuple; forward="):
        genfast.compile_sampler(model, LINE, FOUR, forward=lambda model, x: model(x))


@pytest.mark.filterwarnings("ignore:sampling with one forward pass")
def test_a_random_forward_is_refused_as_random_and_not_as_one_that_looks_ahead():
    model = Head(lambda y: F.dropout(y, 0.1))
    with pytest.raises(UnsupportedModelError, match=r"random numbers.*dropout"):
        genfast.compile_sampler(model, LINE, FOUR)
    with pytest.raises(UnsupportedModelError, match=r"input alone.*differ"):
        genfast.compile_sampler(model, LINE, FOUR, fallback="naive")


class Rows(nn.Module):
    """A state goes from row to row, in a Python loop."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(5, 6), nn.Linear(6, 5)
        self.conv = nn.Conv1d(6, 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x[:, 0].long()).movedim(-1, 1)
        state, rows = torch.zeros(len(x), 6, x.shape[3], dtype=h.dtype), []
        for row in h.split(1, dim=2):
            rows.append(state + self.conv(F.pad(row.squeeze(2), (2, -1))))
            state = torch.tanh(rows[-1] + row.squeeze(2))
        return 4 * self.out(torch.stack(rows, 2).movedim(1, -1)).movedim(-1, 1)


def test_an_output_that_is_misread_is_no_fault_of_the_distribution():
    model, shape = Rows().double(), (1, 3, 4)
    with pytest.raises(UnsupportedModelError, match=r"feature axes \(5,\).*\(5, 3\)"):
        genfast.compile_sampler(model, shape, Categorical(5))
    with pytest.warns(UserWarning, match="slow"):
        assert "naive" in taken(model, "naive", shape, Categorical(5))
    with pytest.raises(InputError, match="expected 4 parameters"):
        genfast.compile_sampler(model, shape, Categorical(4), fallback="naive")


def test_inexact_plans_fall_back():
    model = small()
    with pytest.warns(UserWarning, match="slow.*difference of"):
        sampler = genfast.compile_sampler(model, SHAPE, FOUR, executor=Off, fallback="naive")
    assert torch.equal(sampler.sample(9, seed=1), naive(model, 9, seed=1))
    with pytest.raises(ExactnessError):
        genfast.compile_sampler(model, SHAPE, FOUR, executor=Off)


STAGES = [
    "capture.model.capture",
    "lower.lowering.lower",
    "capture.precision.require_plain_numbers",
    "plan.planner.plan",
    "plan.describe.describe",
    "compiled._offset",
    "compiled.verify",
    "compiled.predicted",
    "lower.rules.arithmetic.replace",
]


@pytest.mark.parametrize("place", STAGES)
def test_whatever_fails_on_the_way_is_about_the_model_and_falls_back(place, monkeypatch):
    torch.manual_seed(0)

    def fails(*arguments, **options):
        raise KeyError("of nobody's foresight")

    monkeypatch.setattr(f"genfast.sampling.{place}", fails)
    model = Small(1, 4)
    model.second.register_forward_pre_hook(lambda module, args: (args[0].double().float(),))
    with pytest.raises(UnsupportedModelError, match=r"expected .*KeyError.*foresight") as caught:
        genfast.compile_sampler(model, SHAPE, FOUR)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.warns(UserWarning, match="foresight"):
        sampler = genfast.compile_sampler(model, SHAPE, FOUR, fallback="naive")
    assert torch.equal(sampler.sample(9, seed=1), naive(model, 9, seed=1))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_what_is_no_fault_of_the_model_passes(kind, monkeypatch):
    def fails(*arguments):
        raise kind

    monkeypatch.setattr("genfast.sampling.plan.planner.plan", fails)
    with pytest.raises(kind):
        genfast.compile_sampler(small(), SHAPE, FOUR, fallback="naive")


def test_a_model_that_looks_ahead_is_refused_before_any_fallback():
    model = small()
    model.second.mask[:] = 1
    with pytest.raises(CausalityError):
        genfast.compile_sampler(model, SHAPE, FOUR, fallback="naive")


def test_arguments_are_checked_before_any_fallback():
    for given in ({"executor": "fast"}, {"predicts": "last"}):
        with pytest.raises(InputError, match=next(iter(given))):
            genfast.compile_sampler(Sorting(1, 4), SHAPE, FOUR, fallback="naive", **given)


def test_the_warning_names_the_line_that_asked():
    model = Sorting(1, 4).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1
        genfast.compile_sampler(model, SHAPE, FOUR, fallback="naive")
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]
    sampler = genfast.compile_sampler(small(), SHAPE, FOUR, fallback="naive")
    sampler.model.forward = lambda x: Small.forward(sampler.model, x).sort(dim=1).values
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler.model.first.bias += 1
        line = inspect.currentframe().f_lineno + 1
        sampler.sample(1)
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]


def test_custom_executors_fail_in_their_own_words():
    def broken(program):
        raise ZeroDivisionError("of the user")

    with pytest.raises(ZeroDivisionError):
        genfast.compile_sampler(small(), SHAPE, FOUR, executor=broken)
    genfast.compile_sampler(small(), SHAPE, FOUR, executor=ReferenceExecutor)
