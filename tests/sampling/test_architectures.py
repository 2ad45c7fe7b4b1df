"""What other tests rest on: random architectures are causal, and their mutants mostly are not."""

from collections import Counter

import torch
import torch.nn.functional as F
from hypothesis import given

from tests.sampling.architectures import Attentive, Masked, architectures, build, mutants
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
        out = model(x)
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


@checked(100)
@given(architectures())
def test_no_architecture_looks_ahead(plan):
    assert not looks_ahead(plan)


def test_most_mutants_look_ahead_whatever_is_broken():
    found = Counter()

    @checked(300)
    @given(mutants())
    def try_one(broken):
        plan, mutation = broken
        found[mutation.kind, looks_ahead(plan, mutation)] += 1

    try_one()
    kinds = {"tap after the centre", "centre tap", "leaked colour", "shifted crop", "future row"}
    kinds |= {"position seen too early", "mask forgotten", "shift dropped"}
    assert {kind for kind, ahead in found if ahead} == kinds
    assert sum(n for (_, ahead), n in found.items() if ahead) > sum(found.values()) / 2
