"""What the options of a call mean, by counting what is drawn; and what its progress bar shows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genfast
from genfast.sampling import Categorical
from tests.sampling.test_sampler import executor

__all__ = ["executor"]  # a fixture
LOGITS = torch.tensor([0.3, 2.0, -0.5, 1.4, 0.9], dtype=torch.float64)


class Fixed(nn.Module):
    """The same logits for every symbol, and nothing of its input."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(LOGITS.clone())

    def forward(self, x):
        return self.logits[:, None, None] + 0 * F.pad(x.to(self.logits.dtype), (1, -1))


def probabilities(temperature, top_k=None, top_p=None):
    """The definition: divide, keep the k largest, then the fewest that reach p, normalise."""
    weights = [float(torch.exp(each / temperature)) for each in LOGITS]
    order = sorted(range(5), key=lambda level: -weights[level])[: top_k or 5]
    total = sum(weights[level] for level in order)
    kept, reached = [], 0.0
    for level in order:
        if top_p is not None and reached >= top_p:
            break
        kept.append(level)
        reached += weights[level] / total
    mass = sum(weights[level] for level in kept)
    return torch.tensor([weights[level] / mass if level in kept else 0.0 for level in range(5)])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize(
    "cut", [{}, {"top_k": 3}, {"top_p": 0.75}, {"top_k": 4, "top_p": 0.9}, {"top_k": 1}]
)
def test_frequencies_are_those_of_the_definition(temperature, cut, executor):
    sampler = genfast.compile_sampler(Fixed(), (1, 8, 8), Categorical(5), executor=executor)
    drawn = sampler.sample(400, seed=7, temperature=temperature, **cut)
    count = drawn.numel()
    found = torch.bincount(drawn.flatten().long(), minlength=5)
    expected = probabilities(temperature, **cut)
    assert (found[expected == 0] == 0).all()
    deviation = (expected * (1 - expected) / count).sqrt()
    assert ((found / count - expected).abs() <= 5 * deviation + 1e-12).all()
    one = sampler.sample(5, seed=7, temperature=temperature, **cut)
    state = sampler.start(5, seed=7, temperature=temperature, **cut)
    while not state.done:
        state.step()
    assert torch.equal(state.events, one)


class Bar:
    """Keeps what a progress bar is told."""

    def __init__(self, total, unit, disable):
        self.total, self.n, self.seen = total, 0, []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def update(self, count):
        self.n += count
        self.seen.append(self.n)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}])
def test_progress_is_shown_row_by_row(options, executor, monkeypatch):
    bars = []

    def bar(**given):
        bars.append(Bar(**given))
        return bars[-1]

    monkeypatch.setattr("genfast.sampling.sampler.tqdm", bar)
    sampler = genfast.compile_sampler(Fixed(), (1, 6, 8), Categorical(5), executor=executor)
    sampler.sample(2, seed=1, progress=True, **options)
    # Quick rows come together, but the first by itself.
    assert bars[-1].seen[0] == 8
    assert bars[-1].seen[-1] == bars[-1].total == 48
    monkeypatch.setattr("genfast.sampling.sampler._UNNOTICED", 0.0)
    sampler.sample(2, seed=1, progress=True, **options)
    assert bars[-1].seen == [8, 16, 24, 32, 40, 48]
