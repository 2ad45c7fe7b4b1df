"""Models in strangers' styles are taken as they are, or refused with the reason."""

import pytest
import torch

from genfast import compile_sampler
from genfast.errors import UnsupportedModelError
from genfast.sampling import Categorical, sample_naive
from tests.sampling.teacher_forced import aligned, full_output, relative_error
from tests.sampling.zoo import REFUSED, ZOO

N = 3


def random_symbols(entry, n):
    distribution = entry.distribution()
    if distribution.dtype is None:
        return torch.randn(n, *entry.event_shape, dtype=torch.float64)
    return torch.randint(0, getattr(distribution, "levels", 2), (n, *entry.event_shape))


def compiled(entry, model, **options):
    return compile_sampler(
        model, entry.event_shape, entry.distribution(), conditioning=entry.condition(2), **options
    )


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("name", ZOO)
def test_incremental_outputs_are_those_of_the_forward_pass(name, executor):
    entry = ZOO[name]
    model, conditions = entry.build(), entry.condition(N)
    symbols = random_symbols(entry, N)
    found = compiled(entry, model, executor=executor).logits(symbols, **conditions)
    out = full_output(model, entry.event_shape, entry.distribution(), symbols, conditions)
    wanted = aligned(out, entry.event_shape, entry.offset, entry.features_last)
    assert relative_error(found, wanted) <= 1e-12


@pytest.mark.parametrize("name", ZOO)
def test_the_same_symbols_as_the_naive_loop(name):
    entry = ZOO[name]
    model, conditions = entry.build(), entry.condition(N)
    drawn = compiled(entry, model).sample(N, seed=5, **conditions)
    naive = sample_naive(
        model,
        N,
        seed=5,
        event_shape=entry.event_shape,
        distribution=entry.distribution(),
        conditions=conditions,
        offset=entry.offset,
    )
    if drawn.is_floating_point():
        torch.testing.assert_close(drawn, naive, rtol=1e-9, atol=1e-9)
    else:
        assert torch.equal(drawn, naive)
    assert len(drawn.unique()) > 1


@pytest.mark.parametrize("name", ZOO)
def test_a_model_is_left_as_it_was(name):
    entry = ZOO[name]
    model = entry.build().train()
    with torch.no_grad():
        full_output(
            model, entry.event_shape, entry.distribution(), random_symbols(entry, 2),
            entry.condition(2),
        )  # fmt: skip
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    compiled(entry, model).sample(1, seed=0, **entry.condition(1))
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == keys
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["gated without a blind spot", "layer norm, dense 1 x 1, dict out"]
)
def test_other_dtypes(name, dtype):
    entry = ZOO[name]
    model = entry.build(dtype)
    symbols = random_symbols(entry, N)
    found = compiled(entry, model).logits(symbols)
    out = full_output(model, entry.event_shape, entry.distribution(), symbols)
    wanted = aligned(out, entry.event_shape, 0, entry.features_last)
    allowed = {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert relative_error(found.double(), wanted.double()) <= allowed


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_with_its_line_and_the_reason(name):
    entry = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=entry.reason) as refused:
        compiled(entry, entry.build())
    assert "zoo_refused.py:" in str(refused.value)


@pytest.mark.parametrize("name", REFUSED)
def test_the_naive_loop_samples_it_if_asked(name):
    entry = REFUSED[name]
    model = entry.build()
    with pytest.warns(UserWarning, match="one forward pass per symbol"):
        sampler = compiled(entry, model, fallback="naive")
    drawn = sampler.sample(2, seed=0)
    assert drawn.shape == (2, *entry.event_shape)
    assert len(drawn.unique()) > 1


def test_weights_changed_after_compiling_are_noticed():
    entry = ZOO["gated without a blind spot"]
    model = entry.build()
    sampler = compiled(entry, model)
    symbols = random_symbols(entry, N)
    before = sampler.logits(symbols)
    with torch.no_grad():
        model.post.bias += 1
    torch.testing.assert_close(sampler.logits(symbols), before + 1)


def test_a_batch_of_another_size_than_before():
    entry = ZOO["plus plus, mixture"]
    model = entry.build()
    sampler = compiled(entry, model)
    drawn = sampler.sample(7, seed=1)
    assert torch.equal(drawn[:2], sampler.sample(2, seed=1))
    assert torch.equal(drawn[2:4], sampler.sample(2, seed=1, first=2))


def test_levels_that_do_not_fit_the_output_are_an_error():
    entry = ZOO["gated without a blind spot"]
    with pytest.raises(ValueError, match="expected 5 parameters"):
        compile_sampler(entry.build(), entry.event_shape, Categorical(5, values="signed"))
