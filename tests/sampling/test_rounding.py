"""Deep models and half precision: a plan is held to what the model's own rounding allows."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genfast
from genfast.errors import ExactnessError
from genfast.nn import MaskedConv2d
from genfast.sampling import Categorical
from genfast.sampling.fingerprint import fingerprint
from genfast.sampling.plan import planner as planning
from genfast.sampling.program import Gemm
from genfast.sampling.run.reference import ReferenceExecutor
from tests.sampling.zoo import ZOO

SHAPE, LEVELS = (1, 6, 6), Categorical(8, values="unit")


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def deep(seed, depth=25):
    torch.manual_seed(seed)
    layers = [MaskedConv2d("A", 1, 16, 3, padding=1)]
    for _ in range(depth):
        layers += [ChannelNorm(16), MaskedConv2d("B", 16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 8, 1))


def distances(model, sampler):
    """Of the model and of the sampler from the model in float64, relative to the range."""
    x = torch.randint(0, 8, (4, *SHAPE))
    dtype = next(model.parameters()).dtype
    seen = (x.double() / 7).to(dtype)
    exact = copy.deepcopy(model).double()(seen.double()).detach()
    span = exact.max() - exact.min()
    found = sampler.logits(x), model(seen).detach()
    return [float((each.double() - exact).abs().max() / span) for each in found]


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_a_deep_model_is_taken_as_exactly_as_it_computes_itself(seed):
    model = deep(seed)
    before = fingerprint(model)
    sampler = genfast.compile_sampler(model, SHAPE, LEVELS)
    assert sampler._compiled.error > 1e-5
    planned, own = distances(model, sampler)
    assert planned < 6 * own
    assert fingerprint(model) == before
    assert {each.dtype for each in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_nearly_as_exact_as_they_are(dtype):
    model = deep(0, depth=3).to(dtype)
    sampler = genfast.compile_sampler(model, SHAPE, LEVELS)
    planned, own = distances(model, sampler)
    assert planned < max(6 * own, 2 * torch.finfo(dtype).eps)


def nearly(factor):
    """Plans in which one weight of one convolution is a little too large."""
    make = planning.plan

    def plan(*arguments):
        program = make(*arguments)
        places = [k for k, each in enumerate(program.instructions) if isinstance(each, Gemm)]
        place = places[len(places) // 2]
        gemm = program.instructions[place]
        tap = gemm.taps[0]
        changed = replace(gemm, taps=(replace(tap, weight=tap.weight * factor), *gemm.taps[1:]))
        instructions = [*program.instructions]
        instructions[place] = changed
        return replace(program, instructions=tuple(instructions))

    return plan


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.float32, 1 + 1e-6), (torch.float32, 1.01), (torch.bfloat16, 1.002), (torch.half, 0)],
)
def test_a_plan_that_is_wrong_by_less_than_rounding_is_refused(dtype, factor, monkeypatch):
    model = deep(3).to(dtype)
    monkeypatch.setattr(planning, "plan", nearly(factor))
    with pytest.raises(ExactnessError, match=r"the model in float64.*1e-09"):
        genfast.compile_sampler(model, SHAPE, LEVELS)


class Off(ReferenceExecutor):
    """Errs by a few hundredths of the range, at one position."""

    def begin(self, n, conditions=()):
        run = super().begin(n, conditions)
        forced = run.forced

        def wrong(x):
            found = forced(x)
            span = found[0].max() - found[0].min()
            found[0][0, 2, 3, 3] += 0.1 * span
            return found

        run.forced = wrong
        return run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_executor_that_errs_in_half_precision_is_found_out(dtype):
    model = deep(0, depth=2).to(dtype)
    genfast.compile_sampler(model, SHAPE, LEVELS, executor=ReferenceExecutor)
    with pytest.raises(ExactnessError, match="row 3, column 3, parameter 2"):
        genfast.compile_sampler(model, SHAPE, LEVELS, executor=Off)


@pytest.mark.parametrize(
    "name", ["plus plus, old weight norm, Bernoulli", "wavenet without padding, Gaussian"]
)
def test_what_a_forward_keeps_in_its_module_is_of_its_own_dtype(name):
    entry = ZOO[name]
    model = entry.build().to(torch.bfloat16)
    before = {key: each.clone() for key, each in model.state_dict().items()}
    genfast.compile_sampler(model, entry.event_shape, entry.distribution())
    for key, each in model.state_dict().items():
        assert each.dtype == before[key].dtype
        assert torch.equal(each, before[key])
    for module in model.modules():
        for each in vars(module).values():
            assert not isinstance(each, torch.Tensor) or each.dtype != torch.float64


class Single(nn.Module):
    """Insists on its dtype, so that float64 cannot judge it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return F.relu(self.model[1:](self.model[0](x).float()))


def test_a_model_that_knows_one_dtype_only_is_held_to_the_usual_tolerance():
    with pytest.raises(ExactnessError, match=r"within 1e-05.*float32"):
        genfast.compile_sampler(Single(deep(3)), SHAPE, LEVELS)
    genfast.compile_sampler(Single(deep(3, depth=2)), SHAPE, LEVELS)
