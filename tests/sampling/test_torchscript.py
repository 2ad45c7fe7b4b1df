"""Models that TorchScript has traced, scripted, saved and loaded, or frozen; whole or in part."""

import io

import pytest
import torch
from torch import nn

import genfast
from genfast.errors import UnsupportedModelError
from genfast.models import PixelCNN
from genfast.sampling import Categorical, sample_naive
from tests.sampling.enumerated import tiny_pixelcnn

SHAPE, LEVELS = (1, 3, 4), Categorical(4)


class Convolution(nn.Conv2d):
    """Sees what comes before the centre."""

    def __init__(self, centre, *sizes):
        super().__init__(*sizes, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, 1, 1 + centre :] = 0
        self.mask[:, :, 2:] = 0

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def plain():
    torch.manual_seed(0)
    layers = (Convolution(0, 1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout())
    return nn.Sequential(*layers, Convolution(1, 8, 4, 3))


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    return torch.jit.load(file)


X = torch.zeros(2, *SHAPE)
KINDS = {
    "traced": lambda: torch.jit.trace(plain().eval(), X),
    "traced, loaded": lambda: saved_and_loaded(torch.jit.trace(plain().eval(), X)),
    "a traced part": lambda: nn.Sequential(torch.jit.trace(plain()[:3].eval(), X), plain()[4]),
    "scripted": lambda: torch.jit.script(plain()),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(plain().eval())),
    "a frozen part": lambda: nn.Sequential(
        torch.jit.freeze(torch.jit.script(plain()[:3].eval())), plain()[4]
    ),
    "optimised": lambda: torch.jit.optimize_for_inference(torch.jit.script(plain().eval())),
}


@pytest.mark.parametrize("name", KINDS)
def test_is_sampled_as_by_the_naive_loop(name):
    try:
        sampler = genfast.compile_sampler(KINDS[name](), SHAPE, LEVELS)
    except UnsupportedModelError:
        assert name == "optimised"  # its weights are packed for this processor
        with pytest.warns(UserWarning, match="slow"):
            sampler = genfast.compile_sampler(KINDS[name](), SHAPE, LEVELS, fallback="naive")
    model = plain()
    drawn = sampler.sample(50, seed=2)
    assert torch.equal(
        drawn, sample_naive(model, 50, seed=2, event_shape=SHAPE, distribution=LEVELS)
    )
    expected = model.eval()(drawn.float()).detach()
    torch.testing.assert_close(sampler.logits(drawn), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["traced", "traced, loaded", "a traced part", "scripted"])
def test_weights_that_change_are_noticed(name):
    model = KINDS[name]()
    sampler = genfast.compile_sampler(model, SHAPE, LEVELS)
    x = sampler.sample(4, seed=1)
    before, compiled = sampler.logits(x), sampler._compiled
    assert sampler._compiled is compiled
    modes = [each.training for each in model.modules()]
    with torch.no_grad():
        next(model.parameters()).mul_(-2)
    after = sampler.logits(x)
    assert not torch.allclose(before, after)
    assert [each.training for each in model.modules()] == modes
    torch.testing.assert_close(after, model.eval()(x.float()).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_of_a_model_of_ours():
    model = tiny_pixelcnn((1, 4, 4), 3)
    assert isinstance(model, PixelCNN)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.int64)
    traced = torch.jit.trace(model.eval(), x, check_trace=False)
    levels = Categorical(3)
    drawn = genfast.compile_sampler(traced, (1, 4, 4), levels).sample(20, seed=3)
    assert torch.equal(drawn, sample_naive(model, 20, seed=3))


class Branching(nn.Module):
    """Reads a number out of its input, which TorchScript runs."""

    def __init__(self):
        super().__init__()
        self.layers = plain()

    def forward(self, x):
        if bool(x[0, 0, 0, 0] > 5):
            x = -x
        return self.layers(x)


def test_what_is_refused_within_a_script_is_named():
    with pytest.raises(UnsupportedModelError, match=r"_local_scalar_dense.*reads a number"):
        genfast.compile_sampler(torch.jit.script(Branching()), SHAPE, LEVELS)
