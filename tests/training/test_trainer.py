"""One training step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfast.errors import NumericsError
from genfast.training import TrainingConfig
from genfast.training.ema import EMA
from genfast.training.trainer import Trainer
from tests.training.fakes import Fake, TwoPartFake, images

CPU = torch.device("cpu")


def make_trainer(model: Any, **fields: Any) -> Trainer:
    return Trainer(model, TrainingConfig(**fields), CPU)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_learns(optimizer: str) -> None:
    trainer = make_trainer(Fake(), optimizer=optimizer, learning_rate=0.02)
    x = images().images
    losses = [trainer.train_step(x)["loss"] for _ in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert trainer.step == 40


def test_plain_adam_step_is_torchs() -> None:
    """Without AMP, clipping and EMA a step is zero_grad, loss, backward, step."""
    model, twin = Fake(), Fake()
    twin.load_state_dict(model.state_dict())
    trainer = make_trainer(model, learning_rate=0.01, betas=(0.5, 0.9), weight_decay=0.1)
    optimizer = torch.optim.Adam(twin.parameters(), 0.01, betas=(0.5, 0.9), weight_decay=0.1)
    for seed in range(5):
        torch.manual_seed(seed)
        reported = trainer.train_step(images().images)
        torch.manual_seed(seed)
        optimizer.zero_grad()
        loss = twin.loss(images().images)["loss"]
        loss.backward()
        optimizer.step()
        assert reported["loss"] == loss.item()
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_each_part_trains_its_own_parameters_when_it_is_due() -> None:
    model = TwoPartFake()
    trainer = make_trainer(model)
    critic = {"critic.weight", "critic.bias"}
    before = weights_of(model)
    reported = trainer.train_step(images().images)
    # The critic's bias has no gradient: it cancels between real and generated images.
    assert changed(before, model) == {"critic.weight"}
    assert set(reported) == {"discriminator/loss"}
    before = weights_of(model)
    reported = trainer.train_step(images().images)
    assert changed(before, model) >= set(before) - critic - {"layers.1.bias"}
    assert set(reported) == {"discriminator/loss", "generator/loss"}
    assert model.layers[1].weight.grad is not None


def test_parameters_of_another_part_get_no_gradient() -> None:
    model = TwoPartFake()
    trainer = make_trainer(model)
    trainer.train_step(images().images)
    assert model.critic.weight.grad is not None
    assert model.layers[1].weight.grad is None


def test_frozen_parameters_stay() -> None:
    model = Fake()
    model.layers[1].weight.requires_grad_(False)
    before = weights_of(model)
    make_trainer(model).train_step(images().images)
    assert "layers.1.weight" not in changed(before, model)
    assert "layers.4.weight" in changed(before, model)


def test_clipping_bounds_the_norm_of_a_parts_gradient() -> None:
    model = Fake()
    make_trainer(model, clip_grad_norm=0.01).train_step(images().images)
    assert nn.utils.get_total_norm([p.grad for p in model.parameters()]).item() < 0.0101
    torch.manual_seed(0)
    make_trainer(model).train_step(images().images)
    assert nn.utils.get_total_norm([p.grad for p in model.parameters()]).item() > 0.1


def test_ema_is_the_weighted_mean_of_the_weights_so_far() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    expected = weights_of(model)
    for step in range(1, 90):  # from 80 on the decay is 0.9
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
    for name, average in ema.averages.items():
        torch.testing.assert_close(average, expected[name])


def test_averaged_weights_are_lent_and_the_own_come_back() -> None:
    model = Fake()
    trainer = make_trainer(model, ema_decay=0.99, learning_rate=0.1)
    for _ in range(3):
        trainer.train_step(images().images)
    own = weights_of(model)
    with pytest.raises(RuntimeError, match="inside"), trainer.sampling_weights():  # noqa: PT012
        assert "layers.1.weight" in changed(own, model)
        raise RuntimeError("inside")
    assert changed(own, model) == set()
    lent = trainer.weights()
    trainer.finish()
    assert not model.training
    assert all(torch.equal(lent[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


class Poisoned(TwoPartFake):
    """Gives a bad loss, diagnostic or gradient at its third step."""

    kind = "loss"
    part = "generator"
    value = float("nan")

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        losses = super().loss(x, part)
        self.calls += part == self.part
        if part == self.part and self.calls == 2:
            if self.kind == "loss":
                losses["loss"] = losses["loss"] * self.value
            elif self.kind == "gradient":  # finite forwards, not backwards
                losses["loss"] = (
                    losses["loss"]
                    + 0
                    * self.layers[1].weight.sub(self.layers[1].weight.detach()).abs().sum().sqrt()
                )
            else:
                losses["penalty"] = torch.tensor(self.value)
        return losses


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["loss", "diagnostic"])
def test_loss_that_is_not_finite_names_step_part_and_tensor(kind: str, value: float) -> None:
    model = Poisoned()
    model.kind, model.value = kind, value
    trainer = make_trainer(model)
    for _ in range(3):
        trainer.train_step(images().images)
    before = weights_of(model)
    name = "loss" if kind == "loss" else "penalty"
    pattern = rf"finite loss at step 4 in part 'generator', got {name}=(nan|-?inf)$"
    with pytest.raises(NumericsError, match=pattern):
        trainer.train_step(images().images)
    assert changed(before, model) == {"critic.weight"}  # the part before had its good step


def test_gradient_that_is_not_finite_names_the_parameter() -> None:
    model = Poisoned()
    model.kind = "gradient"
    trainer = make_trainer(model, clip_grad_norm=1.0)
    for _ in range(3):
        trainer.train_step(images().images)
    before = weights_of(model)
    pattern = r"gradients at step 4 in part 'generator', got norm=nan.*in layers\.1\.weight$"
    with pytest.raises(NumericsError, match=pattern):
        trainer.train_step(images().images)
    assert changed(before, model) == {"critic.weight"}


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_amp_runs_the_layers_in_half_precision(dtype: str) -> None:
    model = Fake()
    seen = []
    model.layers[1].register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    trainer = make_trainer(model, amp=True, amp_dtype=dtype, learning_rate=0.02)
    losses = [trainer.train_step(images().images)["loss"] for _ in range(30)]
    assert set(seen) == {torch.float16 if dtype == "float16" else torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[-1] < losses[0]


class Overflowing(Fake):
    """Its gradients overflow in float16 until the loss scale is below a bound."""

    bound = 1.0

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        weight = self.layers[1].weight
        return {"loss": (weight.half() * (60000 / self.bound)).sum().float() * 1e-3}


def test_loss_scale_skips_steps_that_overflow() -> None:
    model = Overflowing()
    model.bound = 16.0
    trainer = make_trainer(model, amp=True, amp_dtype="float16")
    before = weights_of(model)
    trainer.train_step(images().images)
    assert changed(before, model) == set()
    for _ in range(30):
        trainer.train_step(images().images)
    assert changed(before, model) == {"layers.1.weight"}


def test_clipping_sees_the_gradients_without_the_loss_scale() -> None:
    gradients = []
    for bound in (0.0, 1e3):
        torch.manual_seed(0)
        model = Fake()
        trainer = make_trainer(model, amp=True, amp_dtype="float16", clip_grad_norm=bound)
        for _ in range(8):  # in the first ones the scale finds its range
            trainer.train_step(images().images)
        gradients.append(model.layers[4].weight.grad)
    assert gradients[0] is not None
    assert gradients[0].abs().max() > 0
    assert torch.equal(gradients[0], gradients[1])


class NeverFinite(Fake):
    """Its loss is 0, and has no finite gradient."""

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        weight = self.layers[1].weight
        return {"loss": 0 * (weight - weight.detach()).abs().sum().sqrt()}


def test_gradients_that_overflow_at_any_scale_are_an_error() -> None:
    trainer = make_trainer(NeverFinite(), amp=True, amp_dtype="float16")

    def train() -> None:
        for _ in range(60):
            trainer.train_step(images().images)

    with pytest.raises(NumericsError, match=r"gradients .* in layers\.1\.weight"):
        train()
    assert 20 < trainer.step < 40  # each step halves the scale
