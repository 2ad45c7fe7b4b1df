"""What other tests rest on: random architectures are causal, and their mutants mostly are not."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import find, given

from tests.sampling.architectures import (
    Attentive,
    Masked,
    architectures,
    attentives,
    build,
    conditions,
    masked,
    mutants,
    recurrents,
    sounds,
    stacks,
)
from tests.sampling.causal_oracle import drawn_at, influence
from tests.sampling.property_settings import checked


def looks_ahead(plan, mutation=None):
    """Tell by trying whether a prediction depends on symbols not drawn before it."""
    model, order = build(plan, mutation), drawn_at(plan.shape)
    colours = order.shape[0]

    def predictions(levels):
        x = levels
        if plan.one_hot:
            x = F.one_hot(levels, plan.levels).movedim(-1, 2).flatten(1, 2)
        out = model(x, **conditions(plan, 1))
        out = out["logits"] if isinstance(out, dict) else out
        if isinstance(plan, Attentive) and plan.kind == "sequence" and plan.features_last:
            out = out.transpose(1, 2)
        by_colour = isinstance(plan, Masked) and plan.layout == "NCKHW"
        first, second = (colours, plan.levels) if by_colour else (plan.levels, colours)
        out = out.reshape(len(x), first, second, order.shape[1], -1)
        return out if by_colour else out.transpose(1, 2)

    changes = influence(predictions, plan.shape, plan.levels, trials=3)
    latest = torch.where(changes, order.flatten(), -1).amax(dim=1)
    latest = latest.view(colours, plan.levels, order.shape[1], -1).amax(dim=1)
    if getattr(plan, "convention", "same") != "same":
        return bool((latest > order[:, :, order.shape[2] - latest.shape[2] :]).any())
    return bool((latest >= order).any())


SEARCH = checked(2000)


@checked(100)
@given(architectures())
def test_no_architecture_looks_ahead(plan):
    assert not looks_ahead(plan)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        (masked, "tap after the centre"),
        (masked, "centre tap"),
        (masked, "leaked colour"),
        (stacks, "shifted crop"),
        (stacks, "future row"),
        (sounds, "shifted crop"),
        (attentives, "shifted crop"),
        (attentives, "shift dropped"),
        (attentives, "position seen too early"),
        (attentives, "mask forgotten"),
        (recurrents, "both directions"),
        (recurrents, "shift dropped"),
        (attentives, "prefix too short"),
        (attentives, "prefix cut too late"),
    ],
)
def test_every_kind_of_mutant_can_look_ahead(architecture, kind):
    def ahead(mutant):
        return mutant[1].kind == kind and looks_ahead(*mutant)

    # Raises where none of so many does.
    find(mutants(architecture()), ahead, settings=SEARCH)


def test_about_half_of_the_mutants_look_ahead():
    found = Counter()

    @checked(300)
    @given(mutants())
    def try_one(broken):
        found[looks_ahead(*broken)] += 1

    try_one()
    assert found[True] > 0.4 * found.total()
