"""What changes in a model besides its parameters is noticed: attributes, functions, hooks."""

import functools
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import genfast
from genfast.sampling import Categorical
from genfast.sampling.fingerprint import fingerprint
from tests.sampling.strangers import Small
from tests.sampling.test_sampler_model import SHAPE, naive, small


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
