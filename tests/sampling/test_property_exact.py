"""Random causal architectures are taken, computed exactly, and sampled as the naive loop does."""

import torch
from hypothesis import given

from genfast import compile_sampler
from genfast.sampling import sample_naive
from tests.sampling.architectures import Sound, architectures, build, distribution
from tests.sampling.causal_oracle import symbols
from tests.sampling.property_settings import checked
from tests.sampling.teacher_forced import aligned, full_output, relative_error


def offset_of(plan):
    """By how much the predictions of a plan's model are ahead of their positions."""
    if not isinstance(plan, Sound) or plan.convention == "same":
        return 0
    field = sum((layer.size - 1) * layer.dilation for layer in plan.layers)
    return 1 + field * (plan.convention == "valid")


@checked(200)
@given(architectures())
def test_incremental_outputs_are_those_of_the_forward_pass(plan):
    model = build(plan)
    sampler = compile_sampler(model, plan.shape, distribution(plan))
    levels = symbols(plan.shape, plan.levels, 3, plan.seed)
    out = full_output(model, plan.shape, distribution(plan), levels)
    wanted = aligned(out, plan.shape, offset_of(plan))
    assert relative_error(sampler.logits(levels), wanted) <= 1e-12


@checked(80)
@given(architectures())
def test_the_same_symbols_as_the_naive_loop_however_the_batch_is_split(plan):
    model = build(plan)
    sampler = compile_sampler(model, plan.shape, distribution(plan))
    drawn = sampler.sample(3, seed=plan.seed)
    naive = sample_naive(
        model, 3, event_shape=plan.shape, distribution=distribution(plan), seed=plan.seed,
        offset=offset_of(plan),
    )  # fmt: skip
    assert torch.equal(drawn, naive)
    assert torch.equal(sampler.sample(2, seed=plan.seed), drawn[:2])
    assert torch.equal(sampler.sample(1, seed=plan.seed, first=2), drawn[2:])
