"""What changes in a model besides its parameters is noticed: attributes, functions, hooks."""

import dataclasses
import functools
import logging
import time
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

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


@dataclasses.dataclass
class Config:
    scale: float = 1.0
    shifts: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1))


@dataclasses.dataclass(slots=True)
class Slots:
    scale: float = 1.0


class Table:
    """A callable object that is no module, and one of its own methods."""

    def __init__(self):
        self.factors = torch.ones(1)

    def __call__(self, x):
        return x * self.factors.to(x)

    def twice(self, x):
        return self(self(x))

    @property
    def costly(self):
        raise AssertionError("a property was called")


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.power = 1.0

    def forward(self, x):
        return x * self.power


class Holder(Small):
    """Keeps what it computes with in objects that are no modules."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.config, self.slots, self.table = Config(), Slots(), Table()
        self.space = types.SimpleNamespace(inner=types.SimpleNamespace(factor=1.0), up=self)
        self.object = types.SimpleNamespace(layer=nn.Conv2d(4, 4, 1))
        self.hidden, self.method = [Hidden()], Table().twice
        self.partial = functools.partial(torch.mul, other=torch.ones(1))
        self.object.layer.double()

    def forward(self, x):
        h = F.glu(self.first(x), dim=1) * self.config.scale + self.config.shifts.to(x)
        h = self.hidden[0](self.table(h)) * self.slots.scale * self.space.inner.factor
        h = self.method(self.partial(self.second(h)))
        return self.object.layer(h)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.config, "scale", -2.0),
        lambda m: m.config.shifts.fill_(2.0),
        lambda m: setattr(m, "config", Config(scale=3.0)),
        lambda m: setattr(m.slots, "scale", -2.0),
        lambda m: setattr(m.space.inner, "factor", -3.0),
        lambda m: m.object.layer.weight.data.mul_(-2),
        lambda m: setattr(m.object, "layer", nn.Conv2d(4, 4, 1).double()),
        lambda m: m.table.factors.mul_(-2),
        lambda m: m.method.__self__.factors.mul_(3),
        lambda m: m.partial.keywords["other"].mul_(-3),
        lambda m: setattr(m.hidden[0], "power", -2.0),
    ],
)
def test_changes_within_other_objects_are_noticed(change):
    torch.manual_seed(3)
    model = Holder(1, 4).double()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    before = sampler.logits(naive(model, 30, seed=1))
    assert fingerprint(model) == sampler._compiled.weights
    change(model)
    drawn = sampler.sample(30, seed=1)
    assert torch.equal(drawn, naive(model, 30, seed=1))
    assert not torch.equal(sampler.logits(drawn), before)


def test_a_sampler_or_a_log_that_the_model_keeps_is_no_change():
    model = Holder(1, 4).double()
    model.space.log, model.log = logging.getLogger("a"), logging.getLogger("b")
    model.sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    compiled = model.sampler._compiled
    model.sampler.sample(2, seed=0)
    logging.getLogger("c").isEnabledFor(10)
    model.sampler.sample(3, seed=0)
    assert model.sampler._compiled is compiled
    assert fingerprint(model) == fingerprint(model)


def test_looking_into_large_objects_is_bounded():
    model = small()
    data = [types.SimpleNamespace(image=torch.zeros(2), label=k) for k in range(20_000)]
    model.trainer = types.SimpleNamespace(data=data, config=Config(), all=torch.zeros(1 << 25))
    model.chain = link = types.SimpleNamespace()
    for _ in range(5_000):
        link.next = link = types.SimpleNamespace()
    start = time.perf_counter()
    before = fingerprint(model)
    assert len(before) < 20_000
    assert time.perf_counter() - start < 1
    model.held, model.chain.me = [model, model.first, model.first], model.chain
    model.trainer.images = np.zeros(1 << 25)
    model.trainer.calls = [model.trainer.data.append]
    before = fingerprint(model)
    model.trainer.config.scale = 2.0  # nearer than what fills the measure
    noticed = fingerprint(model)
    assert noticed != before
    model.trainer.all[5] = 1
    assert fingerprint(model) != noticed
