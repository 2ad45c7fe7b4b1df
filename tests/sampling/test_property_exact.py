"""Random causal architectures are taken, computed exactly, and sampled as the naive loop does."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given

from genfast import compile_sampler
from genfast.sampling import sample_naive
from tests.sampling.architecture_attention import AttentionLayer, attentives
from tests.sampling.architecture_recurrence import RecurrentLayer
from tests.sampling.architectures import (
    Attentive,
    architectures,
    build,
    conditions,
    distribution,
    predicts,
    recurrents,
)
from tests.sampling.causal_oracle import symbols
from tests.sampling.property_settings import checked
from tests.sampling.teacher_forced import aligned, full_output, relative_error


def offset_of(plan):
    """By how much the predictions of a plan's model are ahead of their positions."""
    if getattr(plan, "convention", "same") == "same":
        return 0
    if isinstance(plan, Attentive):
        return 1
    field = sum((layer.size - 1) * layer.dilation for layer in plan.layers)
    return 1 + field * (plan.convention == "valid")


def last(plan):
    """Whether the features of a plan's outputs come after the positions."""
    return isinstance(plan, Attentive) and plan.kind == "sequence" and plan.features_last


def compiled(plan, model):
    return compile_sampler(
        model, plan.shape, distribution(plan), conditioning=conditions(plan, 2),
        predicts=predicts(plan),
    )  # fmt: skip


def check_outputs(plan):
    model, given = build(plan), conditions(plan, 3)
    levels = symbols(plan.shape, plan.levels, 3, plan.seed)
    out = full_output(model, plan.shape, distribution(plan), levels, given)
    wanted = aligned(out, plan.shape, offset_of(plan), last(plan))
    assert relative_error(compiled(plan, model).logits(levels, **given), wanted) <= 1e-12


@checked(140)
@given(architectures())
def test_incremental_outputs_are_those_of_the_forward_pass(plan):
    check_outputs(plan)


KINDS = {"map", "raster", "sequence", "tokens"}


def assert_nearly_all(drawn, wanted):
    """What is drawn varies a little with what else was imported."""
    assert drawn.keys() <= wanted
    assert len(drawn) > 0.7 * len(wanted)


def test_attention_of_all_kinds():
    drawn = Counter()

    @checked(70)
    @given(attentives())
    def try_one(plan):
        check_outputs(plan)
        drawn[plan.kind] += 1
        drawn.update({layer.mask for layer in plan.layers})

    try_one()
    masks = {"fill", "add", "multiply", "where", "fused causal", "fused bool", "fused float"}
    assert_nearly_all(drawn, KINDS | masks)


def test_recurrent_layers_of_all_kinds():
    drawn = Counter()

    @checked(90)
    @given(recurrents())
    def try_one(plan):
        check_outputs(plan)
        layers = [each for each in plan.layers if isinstance(each, RecurrentLayer)]
        drawn.update([plan.kind, *(layer.kind for layer in layers)])

    try_one()
    assert_nearly_all(drawn, KINDS | {"LSTM", "GRU", "RNN tanh", "RNN relu"})


LAYER = AttentionLayer(
    heads=2, groups=1, depth=2, reach=(99, 2), strict=False, blind="start", mask="add", low=-1e9,
    product="matmul", bias="none", norm=True, residual=True,
)  # fmt: skip


@pytest.mark.parametrize("shift", ["cat", "cut", "pad"])
def test_pixels_of_one_row_as_a_raster_sequence(shift):
    check_outputs(Attentive((1, 1, 5), 4, 3, "raster", shift, False, (LAYER,), seed=1))


@pytest.mark.parametrize("bias", ["none", "table"])
def test_weights_of_nothing_seen_that_are_set_to_zero_are_no_dependence(bias):
    strict = replace(LAYER, strict=True, bias=bias)
    check_outputs(Attentive((1, 2, 3), 4, 3, "raster", "cat", False, (strict, strict), seed=1))


@checked(80)
@given(architectures())
def test_the_same_symbols_as_the_naive_loop_however_the_batch_is_split(plan):
    model = build(plan)
    sampler = compiled(plan, model)
    drawn = sampler.sample(3, seed=plan.seed, **conditions(plan, 3))
    naive = sample_naive(
        model, 3, event_shape=plan.shape, distribution=distribution(plan), seed=plan.seed,
        conditions=conditions(plan, 3), offset=offset_of(plan),
    )  # fmt: skip
    assert torch.equal(drawn, naive)
    assert torch.equal(sampler.sample(2, seed=plan.seed, **conditions(plan, 2)), drawn[:2])
    last = conditions(plan, 1, first=2)
    assert torch.equal(sampler.sample(1, seed=plan.seed, first=2, **last), drawn[2:])
