import pytest
import torch
from torch import nn

from genfast.data import digits
from genfast.evaluation import properties as module
from genfast.evaluation.properties import properties, sampling_cost
from tests.evaluation.families import FAMILIES, Bounded, Coder, Explicit, Implicit


@pytest.fixture(scope="module")
def image():
    return digits("test").images[:1]


def examine(family, image, likelihood):
    model = family()
    return properties(model, image, sampling_cost(model, batch=4, budget=0.0), likelihood)


def test_autoregressive(image):
    traits = examine(Explicit, image, "exact")
    assert (traits["density"], traits["likelihood"]) == ("explicit", "exact")
    assert traits["latent"] is None
    assert traits["forward_passes"] == 64
    assert not traits["encodes"]
    assert "pixel" in traits["prior"]


def test_autoencoder(image):
    traits = examine(Coder, image, None)
    assert (traits["density"], traits["likelihood"]) == ("none", "none")
    assert (traits["latent"], traits["forward_passes"]) == (5, 1)
    assert traits["encodes"]
    assert "fitted" in traits["prior"]


def test_variational_autoencoder(image):
    traits = examine(Bounded, image, "lower bound")
    assert (traits["density"], traits["likelihood"]) == ("explicit", "lower bound")
    assert (traits["latent"], traits["prior"]) == (5, "standard normal latent")


def test_adversarial_network(image):
    traits = examine(Implicit, image, None)
    assert (traits["density"], traits["likelihood"]) == ("implicit", "none")
    assert (traits["latent"], traits["forward_passes"]) == (7, 1)
    assert traits["networks"] == ["discriminator", "generator"]


def test_counts_only_parameters_that_sampling_uses():
    model = Implicit()
    used = sum(p.numel() for p in model.generator.parameters())
    assert sampling_cost(model, batch=4, budget=0.0)["parameters"] == used


def test_cost_is_per_image_and_leaves_the_first_call_out(monkeypatch):
    durations = iter([3.0, 0.5, 0.3, 0.9, 0.4, 0.4])
    clock = [0.0]

    class Clocked(nn.Module):
        def sample(self, n, *, generator):
            clock[0] += 0.0 if n == 2 else next(durations)
            return torch.zeros(n, 1, 1, 1)

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    cost = sampling_cost(Clocked(), batch=8, budget=3.9)
    assert cost["seconds_per_batch"] == pytest.approx(0.5)
    assert cost["seconds_per_image"] == pytest.approx(0.5 / 8)
    assert cost["repetitions"] == 3
    assert cost["forward_passes"] is None


def test_a_slow_sampler_is_called_once(monkeypatch):
    clock, calls = [0.0], []

    class Slow(nn.Module):
        def sample(self, n, *, generator):
            calls.append(n)
            clock[0] += 30.0
            return torch.zeros(n, 1, 1, 1)

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    cost = sampling_cost(Slow(), batch=8)
    assert calls == [2, 8]
    assert cost["seconds_per_batch"] == pytest.approx(30.0)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_leaves_no_hooks_and_no_trace_in_the_global_generator(family):
    model = family()
    before = torch.get_rng_state()
    sampling_cost(model, batch=4, budget=0.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(layer._forward_pre_hooks for layer in model.modules())
