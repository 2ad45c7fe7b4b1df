"""Models that are only called: what their output means is found out by trying."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genfast
from genfast.errors import CausalityError, InputError
from genfast.sampling import sample_naive

FIVE = genfast.Categorical(5)


class LevelsLast(nn.Module):
    """Output [N, T, K]: with T == K its shape does not say which axis is which."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        before = torch.cat([torch.full_like(x[:, :1], 5), x[:, :-1]], 1).long()
        out: Tensor = 3 * self.out(self.embedding(before))
        return out


def test_axes_of_equal_size_are_told_apart() -> None:
    model = LevelsLast().double()
    drawn = genfast.compile_sampler(model, (5,), FIVE).sample(8, seed=0)
    naive = sample_naive(model, 8, seed=0, event_shape=(5,), distribution=FIVE)
    assert torch.equal(drawn, naive)


class Running(nn.Module):
    """All of the probability on the symbol after this one, by output t about sample t + 1."""

    def __init__(self, both_ways: bool = False) -> None:
        super().__init__()
        self.factor, self.both_ways = nn.Parameter(torch.ones(())), both_ways

    def forward(self, x: Tensor) -> Tensor:
        seen = x.float().cumsum(1) * self.factor
        if self.both_ways:
            seen = seen + seen.flip(1)
        seen = seen[..., None]
        return 50 * F.one_hot((x.long() + 1) % 5, 5).float() + 0.01 * seen


def test_a_model_of_the_next_sample_is_recognised() -> None:
    with pytest.warns(UserWarning, match="slow"):
        sampler = genfast.compile_sampler(Running(), (12,), FIVE, fallback="naive")
    sound = sampler.sample(1, seed=0)[0]
    assert torch.equal(sound[1:], (sound[:-1] + 1) % 5)


def test_a_model_that_looks_ahead_is_not_sampled_naively_either() -> None:
    with (
        pytest.warns(UserWarning, match="slow"),
        pytest.raises(CausalityError, match="predictions before them change"),
    ):
        genfast.compile_sampler(Running(both_ways=True), (12,), FIVE, fallback="naive")


def test_an_event_too_short_for_any_prediction() -> None:
    model = nn.Sequential(nn.Conv1d(5, 8, 2), nn.Conv1d(8, 5, 2, dilation=2))
    with pytest.raises(InputError, match="4 symbols are too few"):
        genfast.compile_sampler(model, (1, 4), genfast.Categorical(5, values=torch.eye(5)))


class Masks(nn.Module):
    """What a forward depends on beside parameters: a list of tensors, a number, a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.masks, self.scale = nn.Conv1d(1, 5, 2), [torch.ones(1)], 1.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x.float(), (2, -1))) * self.masks[0] * self.scale
        return out


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.masks[0].mul_(-3),
        lambda model: setattr(model, "scale", 8.0),
        lambda model: model.register_forward_hook(lambda module, args, out: -out),
        lambda model: setattr(model, "conv", nn.Conv1d(1, 5, 2)),
    ],
    ids=["tensor in a list", "number", "hook", "module"],
)
def test_changes_beside_parameters_are_noticed(change) -> None:
    model = Masks()
    sampler = genfast.compile_sampler(model, (1, 9), FIVE)
    x = torch.randint(0, 5, (2, 1, 9))
    before = sampler.logits(x)
    change(model)
    after = sampler.logits(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model(x).detach(), rtol=1e-5, atol=1e-5)


def test_conditioning_of_another_kind_is_refused() -> None:
    class Labelled(Masks):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Embedding(10, 5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x) + self.bias(y)[..., None]

    sampler = genfast.compile_sampler(
        Labelled(), (1, 9), FIVE, conditioning={"y": torch.tensor([0])}
    )
    with pytest.raises(InputError, match="expected y to be integer"):
        sampler.sample(3, y=torch.tensor([0.0, 1.9, 2.9]))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        genfast.compile_sampler(lambda x: x, (1, 4), FIVE)
    with pytest.raises(InputError, match="event_shape"):
        genfast.compile_sampler(Masks(), 6, FIVE)
    with pytest.raises(InputError, match="conditioning by name"):
        genfast.compile_sampler(Masks(), (1, 9), FIVE, conditioning=torch.zeros(2))
