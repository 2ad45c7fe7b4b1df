"""Whole training steps: gradients to zero, forward, loss, backward, Adam, for every family.

Each model stands beside the same model in plain PyTorch, with the same parameters, and that one
under torch.compile. A GAN's step is one of the discriminator, then one of the generator. Adam is
torch's fused one for all three. Before anything is timed, the losses and all gradients of the two
models are compared; models that draw noise are given the same.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from benchmarks._harness import IMPLEMENTATIONS, time_steps
from benchmarks.steps import (
    _plain_losses,
    _plain_pixelcnn,
    _plain_pixelcnn_plus_plus,
    _plain_wavenet,
)
from genfast import models
from genfast.ops import philox_normal, philox_uniform

# batch, config, the plain model
MODELS = {
    "pixelcnn": (
        16,
        models.PixelCNNConfig((1, 28, 28), 256, channels=64, blocks=5, head_channels=128),
        _plain_pixelcnn.PixelCNN,
    ),
    "gated_pixelcnn": (
        16,
        models.GatedPixelCNNConfig((1, 28, 28), 256, channels=64, layers=5, head_channels=128),
        _plain_pixelcnn.GatedPixelCNN,
    ),
    "pixelcnn_plus_plus": (
        8,
        models.PixelCNNPlusPlusConfig((3, 32, 32), 256, filters=32, resnets=1, mixtures=10),
        _plain_pixelcnn_plus_plus.PixelCNNPlusPlus,
    ),
    "wavenet": (
        1,
        models.WaveNetConfig(
            length=8000,
            residual_channels=64,
            gate_channels=64,
            skip_channels=128,
            head_channels=128,
            layers=10,
        ),
        _plain_wavenet.WaveNet,
    ),
    "vae": (
        64,
        models.VAEConfig((1, 28, 28), 256, latent_dim=20, channels=32),
        _plain_losses.VAE,
    ),
    "gan": (
        64,
        models.GANConfig((3, 32, 32), 256, latent_dim=100, channels=32),
        _plain_losses.GAN,
    ),
}
Loss = Callable[[Tensor, str], Tensor]


class Step:
    """One optimizer step for each part of a model, on a batch.

    Args:
        model: genfast's, which knows its parts.
        own: genfast's model or the plain one; the names of the parameters are the same.
        loss: what gives the scalar to minimise for a part.
        x: the batch.
    """

    def __init__(
        self, model: models.GenerativeModel, own: nn.Module, loss: Loss, x: Tensor
    ) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        parameters = dict(own.named_parameters())
        self.everything = list(parameters.values())
        self.parts = {
            part: [parameters[names[id(each)]] for each in model.parameters_of(part)]
            for part in model.parts(0)
        }
        # So low a rate that weights stay what they are: a GAN that saturates on one batch has
        # gradients of subnormal numbers, which take processors many times as long.
        self.optimizers = {
            part: torch.optim.Adam(trained, lr=1e-9, fused=True)
            for part, trained in self.parts.items()
        }
        self.model, self.loss, self.x = model, loss, x

    def gradients(self, part: str) -> tuple[Tensor, ...]:
        """The loss of a part and all of its gradients."""
        self.optimizers[part].zero_grad()
        trained = set(map(id, self.parts[part]))
        for parameter in self.everything:  # none for the other part, as a careful user has it
            parameter.requires_grad_(id(parameter) in trained)
        loss = self.loss(self.x, part)
        loss.backward()
        return (loss.detach(), *(each.grad for each in self.parts[part]))

    def __call__(self) -> None:
        for part, optimizer in self.optimizers.items():
            self.gradients(part)
            optimizer.step()


def two_models(
    config: Any, plain_class: type[nn.Module]
) -> tuple[models.GenerativeModel, nn.Module]:
    """genfast's model and the plain one, with the same numbers in parameters of their own."""
    model = getattr(models, type(config).__name__.removesuffix("Config"))(config)
    plain = plain_class(config)
    weights = model.state_dict()
    assert dict(plain.named_parameters()).keys() == dict(model.named_parameters()).keys()
    plain.load_state_dict({key: weights[key] for key in plain.state_dict()})
    return model, plain.to(memory_format=torch.channels_last)


def check_agreement(ours: Step, plain: Step, plain_model: nn.Module, tolerance: float) -> None:
    """Raise AssertionError unless losses and gradients are the same, given the same noise.

    Dropout is off while they are compared: the zeros of the two are drawn differently.
    """
    draws = {"normal": philox_normal, "uniform": philox_uniform}
    replaced = [name for name in draws if hasattr(plain_model, name)]
    parts = (*ours.model.modules(), *plain_model.modules())
    layers = [each for each in parts if isinstance(each, nn.Dropout)]
    for layer in layers:
        layer.eval()
    for name in replaced:
        draw = draws[name]
        setattr(plain_model, name, lambda *shape, device, draw=draw: draw(shape, device=device))
    for part in ours.parts:
        results = []
        for step in (ours, plain):
            torch.manual_seed(1)
            results.append(step.gradients(part))
        for a, b in zip(*results, strict=True):
            assert_close(
                (a - b).norm() / b.norm(), torch.zeros_like(a.norm()), rtol=0, atol=tolerance
            )
    for name in replaced:
        delattr(plain_model, name)
    for layer in layers:
        layer.train()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODELS)
def bench_training_step(benchmark, name: str, implementation: str) -> None:
    batch, config, plain_class = MODELS[name]
    model, plain = two_models(config, plain_class)
    x = torch.randint(0, config.levels, (batch, *model.event_shape), dtype=torch.uint8)
    ours = Step(model, model, lambda x, part: model.loss(x, part)["loss"], x)
    eager = Step(model, plain, plain.loss, x)

    def check() -> None:
        # Sums in another order put some numbers on the other side of a ReLU's edge.
        check_agreement(ours, eager, plain, tolerance=1e-2)

    makers = {
        "eager": lambda: eager,
        "compiled": lambda: Step(model, plain, torch.compile(plain.loss), x),
        "genfast": lambda: ours,
    }
    benchmark.group = f"training_step {name} {tuple(x.shape)}"
    time_steps(benchmark, implementation, makers, check=check, device=x.device)
