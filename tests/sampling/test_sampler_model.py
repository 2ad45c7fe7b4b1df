"""What a sampler does with the user's model: it leaves it alone, notices changes, refuses."""

import os
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genfast
from genfast.errors import (
    CausalityError,
    ExactnessError,
    InputError,
    NumericsError,
    UnsupportedModelError,
)
from genfast.sampling import Categorical, CustomDistribution, sample_naive
from genfast.sampling.fingerprint import fingerprint
from genfast.sampling.run.reference import ReferenceExecutor
from tests.sampling.enumerated import tiny_pixelcnn
from tests.sampling.strangers import Masked, NextSample, Small
from tests.sampling.test_sampler import executor

__all__ = ["executor"]  # a fixture
SHAPE = (1, 3, 4)


def small(outputs=4, inputs=1):
    torch.manual_seed(1)
    return Small(inputs, outputs).double()


def naive(model, n, **options):
    return sample_naive(model, n, event_shape=SHAPE, distribution=Categorical(4), **options)


class Uncopyable(Small):
    """Refuses to be copied or pickled."""

    def __deepcopy__(self, memo):
        raise RuntimeError("not copied")

    def __reduce_ex__(self, protocol):
        raise RuntimeError("not pickled")


def test_the_model_is_left_as_it_was(executor):
    model = Uncopyable(1, 4).double()
    model.add_module("dropout", nn.Dropout())
    model.train()
    model.first.eval()
    model(torch.zeros(1, 1, 3, 4, dtype=torch.float64))  # writes its masks
    modes = [module.training for module in model.modules()]
    tensors = {key: (each, each.clone()) for key, each in model.state_dict(keep_vars=True).items()}
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    sampler.sample(2, seed=1)
    sampler.logits(sampler.sample(2, seed=1))
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    for key, now in model.state_dict(keep_vars=True).items():
        before, copy = tensors[key]
        assert now is before
        assert torch.equal(now, copy)
        assert now.requires_grad
        assert now.grad is None
    assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_weights_that_change_are_noticed(executor):
    model = small()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    first = sampler.sample(8, seed=1)
    assert torch.equal(first, naive(model, 8, seed=1))
    compiled = sampler._compiled
    assert torch.equal(sampler.sample(8, seed=1), first)
    assert sampler._compiled is compiled

    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    model(torch.rand(2, 1, 3, 4, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    second = sampler.sample(8, seed=1)
    assert torch.equal(second, naive(model, 8, seed=1))
    assert not torch.equal(second, first)
    assert sampler._compiled is not compiled

    weight = model.first.weight.data
    weight[:2] = weight[:2].flip(0)  # the same numbers elsewhere
    third = sampler.logits(second)
    torch.testing.assert_close(third, model(second.double()).detach())
    state = sampler.start(2, seed=3)
    while not state.done:
        state.step()
    assert torch.equal(state.events, naive(model, 2, seed=3))


def test_dtype_moves_are_noticed(executor):
    model = small()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    x = sampler.sample(4, seed=1)
    assert sampler.logits(x).dtype == torch.float64
    model.float()
    logits = sampler.logits(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(x.float()).detach(), rtol=1e-5, atol=1e-5)


def test_a_mask_that_is_a_plain_attribute_is_noticed(executor):
    model = small()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    first = sampler.sample(8, seed=1)
    model.first.mask[:, :, 1, 0] = 0
    second = sampler.sample(8, seed=1)
    assert torch.equal(second, naive(model, 8, seed=1))
    assert not torch.equal(second, first)


class Remembering(Small):
    """Keeps what it saw, as models do that show their attention."""

    def forward(self, x):
        self.seen = x.clone()
        return super().forward(x)


def test_a_model_that_keeps_what_it_saw_is_compiled_once(executor):
    model = Remembering(1, 4).double()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    compiled = sampler._compiled
    sampler.sample(2, seed=1)
    sampler.sample(3, seed=2)
    assert sampler._compiled is compiled


def test_threads_share_a_sampler(executor):
    model = small()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    expected = [sampler.sample(4, seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda seed: sampler.sample(4, seed=seed), range(12)))
    for one, other in zip(drawn, expected, strict=True):
        assert torch.equal(one, other)


def test_inside_and_outside_of_inference_mode(executor):
    model = small()
    outside = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    expected = outside.sample(4, seed=1)
    with torch.inference_mode():
        inside = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
        assert torch.equal(inside.sample(4, seed=1), expected)
        assert torch.equal(outside.sample(4, seed=1), expected)
        state = inside.start(4, seed=1)
        state.step()
    while not state.done:
        state.step()
    assert torch.equal(state.events, expected)
    assert torch.equal(inside.sample(4, seed=1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_single_and_half_precision(dtype, executor):
    model = small().to(dtype)
    if dtype != torch.float32 and executor == "native":
        with pytest.raises(UnsupportedModelError, match="native executor"):
            genfast.compile_sampler(model, SHAPE, Categorical(4), executor="native")
        executor = "auto"
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), executor=executor)
    drawn = sampler.sample(50, seed=1)
    logits = sampler.logits(drawn)
    assert logits.dtype == dtype
    expected = model(drawn.to(dtype)).detach()
    bound = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    assert (logits - expected).abs().max() < bound * expected.abs().max()


def test_the_fingerprint_tells_models_apart():
    model = small()
    model.register_buffer("table", torch.arange(10))
    model.register_buffer("flag", torch.tensor(True))
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        for tensor in (model.first.weight, model.second.bias, model.table, model.flag):
            old = tensor.clone()
            flat = tensor.view(-1)
            flat[-1] = ~flat[-1] if tensor.dtype == torch.bool else flat[-1] + 1
            assert fingerprint(model) != before
            tensor.copy_(old)
            assert fingerprint(model) == before
        weight = model.first.weight.view(-1)
        weight[[0, 5]] = weight[[5, 0]]
        assert fingerprint(model) != before
    assert fingerprint(nn.ReLU()) != fingerprint(nn.Tanh())


class Interrupting:
    """A distribution's function that presses Ctrl-C once, in the middle."""

    def __init__(self):
        self.calls, self.at = 0, None

    def __call__(self, parameters, noise):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return (parameters.cumsum(dim=1).sigmoid() < noise).sum(dim=1).clamp(max=3)


def test_ctrl_c_between_pixels_leaves_nothing_broken(executor):
    function = Interrupting()
    distribution = CustomDistribution(function, levels=4)
    sampler = genfast.compile_sampler(small(), SHAPE, distribution, executor=executor)
    before = sampler.sample(3, seed=1)
    function.at = function.calls + 7
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(3, seed=1)
    assert torch.equal(sampler.sample(3, seed=1), before)


def test_ctrl_c_by_signal_stops_a_long_run(executor):
    torch.manual_seed(0)
    model = NextSample(1, 8).double()
    shape, distribution = (1, 200_000), Categorical(8, "unit")
    sampler = genfast.compile_sampler(
        model, (1, 300), distribution, predicts="next", executor=executor
    )
    before = sampler.sample(2, seed=1)
    long = genfast.compile_sampler(model, shape, distribution, predicts="next", executor=executor) \
        if executor == "native" else None  # fmt: skip
    # A shell starts what runs in its background with the signal ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            for _ in range(1000):
                (long or sampler).sample(64, seed=1)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert torch.equal(sampler.sample(2, seed=1), before)


def test_a_model_that_looks_ahead_is_refused_even_with_a_fallback():
    model = small()
    model.first.mask[:, :, 2, 0] = 1
    for fallback in (None, "naive"):
        with pytest.raises(CausalityError) as caught:
            genfast.compile_sampler(model, SHAPE, Categorical(4), fallback=fallback)
        assert caught.value.report.causal is False
        assert "first" in str(caught.value)


class Sorting(Small):
    """Uses an operation without a rule."""

    def forward(self, x):
        return super().forward(x).sort(dim=1).values


def test_what_cannot_be_taken_is_refused_or_sampled_naively():
    torch.manual_seed(2)
    model = Sorting(1, 4).double()
    with pytest.raises(UnsupportedModelError, match="sort"):
        genfast.compile_sampler(model, SHAPE, Categorical(4))
    with pytest.warns(UserWarning, match="one forward pass per symbol.*sort"):
        sampler = genfast.compile_sampler(model, SHAPE, Categorical(4), fallback="naive")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn, log_prob = sampler.sample(5, seed=2, return_log_prob=True, top_k=3)
        expected, other = naive(model, 5, seed=2, return_log_prob=True, top_k=3)
        assert torch.equal(drawn, expected)
        torch.testing.assert_close(log_prob, other)
        torch.testing.assert_close(log_prob, sampler.log_prob(drawn))
        torch.testing.assert_close(sampler.logits(drawn), model(drawn.double()).detach())
        state = sampler.start(5, seed=2, top_k=3)
        while not state.done:
            state.step()
        assert torch.equal(state.events, drawn)
        with torch.no_grad():
            model.first.bias += 1  # compiles again, and need not warn again
        assert torch.equal(sampler.sample(5, seed=2), naive(model, 5, seed=2))
    assert "naive" in str(sampler)


class SortingLine(NextSample):
    def forward(self, x):
        return super().forward(x).sort(dim=1).values


def test_naive_fallback_of_a_sound_that_predicts_what_comes_next():
    torch.manual_seed(2)
    model = SortingLine(1, 4).double()
    distribution = Categorical(4, "unit", start=2)
    with pytest.warns(UserWarning, match="slow"):
        sampler = genfast.compile_sampler(
            model, (1, 12), distribution, predicts="next", fallback="naive"
        )
    drawn = sampler.sample(3, seed=1)
    options = {"event_shape": (1, 12), "distribution": distribution, "offset": 1}
    assert torch.equal(drawn, sample_naive(model, 3, seed=1, **options))
    assert (drawn[:, :, 0] == 2).all()
    assert torch.isnan(sampler.logits(drawn)[..., 0]).all()


class Off(ReferenceExecutor):
    """An executor that errs a little, at one pixel."""

    def begin(self, n, conditions=()):
        run = super().begin(n, conditions)
        forced = run.forced

        def wrong(x):
            found = forced(x)
            found[0][1, 2, 1, 3] += 1e-9
            return found

        run.forced = wrong
        return run


def test_an_executor_that_errs_is_found_out():
    with pytest.raises(ExactnessError, match="row 1, column 3, parameter 2 of colours 0"):
        genfast.compile_sampler(small(), SHAPE, Categorical(4), executor=Off)
    # In single precision such a difference is rounding.
    genfast.compile_sampler(small().float(), SHAPE, Categorical(4), executor=Off)


class Undefined(Small):
    """Takes the logarithm of a negative number, with weights that are fine."""

    def forward(self, x):
        factors = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=x.dtype).log()
        return super().forward(x) + factors[:, None, None]


def test_nan_that_the_model_makes_itself_is_named():
    model = Undefined(1, 4).double()
    with pytest.raises(NumericsError, match="parameter 1"):
        genfast.compile_sampler(model, SHAPE, Categorical(4))


class Overflowing(nn.Module):
    """NaN after a rare symbol: not in the examples, but in a draw."""

    def __init__(self):
        super().__init__()
        self.body = Masked(0, 1, 3, 3, padding=1)

    def forward(self, x):
        return self.body(x) * 0 + torch.log(5000 - F.pad(x, (1, -1))).sum(dim=1, keepdim=True)


def test_nan_while_sampling_is_an_error():
    torch.manual_seed(0)
    model = Overflowing().double()

    def draw(parameters, noise):
        return torch.full((len(parameters),), 6000.0, dtype=torch.float64)

    distribution = CustomDistribution(draw)
    sampler = genfast.compile_sampler(model, (1, 2, 3), distribution, executor="reference")
    with pytest.raises(NumericsError, match="NaN in row 0"):
        sampler.sample(1)


class Positional(nn.Module):
    """Called in its own way: two inputs, a list of outputs."""

    def __init__(self):
        super().__init__()
        self.body = Small(1, 4)

    def forward(self, inputs):
        image, shift = inputs
        return [image.sum(), self.body(image + shift)]


def test_a_forward_function_adapts_other_interfaces(executor):
    torch.manual_seed(4)
    model = Positional().double()

    def forward(model, x, shift):
        return model((x, shift[:, None, None, None]))[1]

    sampler = genfast.compile_sampler(
        model, SHAPE, Categorical(4, "unit"), forward=forward, executor=executor,
        conditioning={"shift": torch.zeros(1, dtype=torch.float64)},
    )  # fmt: skip
    shift = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    drawn = sampler.sample(3, seed=1, shift=shift)
    expected = sample_naive(
        model, 3, seed=1, event_shape=SHAPE, distribution=Categorical(4, "unit"),
        forward=forward, conditions={"shift": shift},
    )  # fmt: skip
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event_shape": (1, 0, 4)}, "event_shape"),
        ({"event_shape": (1, 1, 3, 4)}, "event_shape"),
        ({"event_shape": (12,), "distribution": Categorical(4, torch.eye(4))}, r"\(1, T\)"),
        ({"distribution": "categorical"}, "a distribution such as"),
        ({"distribution": Categorical(5)}, "5 parameters"),
        ({"fallback": "slow"}, "fallback"),
        ({"executor": "fast"}, "executor in"),
        ({"conditioning": {"labels": torch.zeros(0)}}, "an example of labels"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    options = {"event_shape": SHAPE, "distribution": Categorical(4), **change}
    with pytest.raises(InputError, match=message):
        genfast.compile_sampler(small(), **options)


def test_a_model_that_fails_says_why():
    with pytest.raises(UnsupportedModelError, match=r"\[2, 2, 3, 4\]"):
        genfast.compile_sampler(small(), (2, 3, 4), Categorical(2))


def test_causality_is_checked_by_itself():
    report = genfast.check_causality(
        tiny_pixelcnn((3, 4, 4), 5), (3, 4, 4), distribution=Categorical(5)
    )
    assert report.causal
    assert report.colours_in_order
    codes = genfast.check_causality(NextSample(1, 4).double(), (1, 9))
    assert codes.causal
    assert codes.offset == 1
