"""Whole training steps: gradients to zero, forward, loss, backward, Adam, for every family.

Each model stands beside the same model in plain PyTorch, with the same parameters, and that one
under torch.compile. A GAN's step is one of the discriminator, then one of the generator. Adam is
torch's fused one for all three. Before anything is timed, the losses and all gradients of the two
models are compared; models that draw noise are given the same.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks._harness import IMPLEMENTATIONS, time_steps
from benchmarks.steps import _plain_losses, _plain_pixelcnn, _plain_wavenet
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
        _plain_losses.PixelCNNPlusPlus,
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
        named: the parameters to train; they have the names of the model's.
        losses: for each part the scalar to minimise.
        x: the batch.
    """

    def __init__(
        self, model: models.GenerativeModel, named: nn.Module, losses: dict[str, Loss], x: Tensor
    ) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        own = dict(named.named_parameters())
        self.parts = {
            part: [own[names[id(each)]] for each in model.parameters_of(part)] for part in losses
        }
        self.optimizers = {
            part: torch.optim.Adam(parameters, fused=True)
            for part, parameters in self.parts.items()
        }
        self.losses, self.x, self.everything = losses, x, list(own.values())

    def gradients(self, part: str) -> tuple[Tensor, ...]:
        """The loss of a part, backward done."""
        self.optimizers[part].zero_grad()
        self._train(part)
        loss = self.losses[part](self.x, part)
        loss.backward()
        return (loss.detach(), *(each.grad for each in self.parts[part]))

    def __call__(self) -> None:
        for part, optimizer in self.optimizers.items():
            self.gradients(part)
            optimizer.step()

    def _train(self, part: str) -> None:
        """No gradients for the other part's parameters, as a careful user has it."""
        wanted = set(map(id, self.parts[part]))
        for parameter in self.everything:
            parameter.requires_grad_(id(parameter) in wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODELS)
def bench_training_step(benchmark, name: str, implementation: str) -> None:
    batch, config, plain_class = MODELS[name]
    model = getattr(models, type(config).__name__.removesuffix("Config"))(config)
    plain = plain_class(config)
    weights = model.state_dict()
    plain.load_state_dict({key: weights[key] for key in plain.state_dict()})
    assert dict(plain.named_parameters()).keys() == dict(model.named_parameters()).keys()
    plain.to(memory_format=torch.channels_last)
    x = torch.randint(0, config.levels, (batch, *model.event_shape), dtype=torch.uint8)

    parts = model.parts(0)
    ours = Step(model, model, dict.fromkeys(parts, lambda x, part: model.loss(x, part)["loss"]), x)
    eager = Step(model, plain, dict.fromkeys(parts, plain.loss), x)

    def check() -> None:
        own = {key: getattr(plain, key) for key in ("normal", "uniform") if hasattr(plain, key)}
        for key in own:
            draw = {"normal": philox_normal, "uniform": philox_uniform}[key]
            setattr(plain, key, lambda *shape, draw=draw: draw(shape))
        for part in parts:
            results = []
            for step in (ours, eager):
                torch.manual_seed(1)
                results.append(step.gradients(part))
            for a, b in zip(*results, strict=True):
                # Sums in other orders put some numbers on the other side of a ReLU's edge.
                assert (a - b).norm() <= 1e-2 * b.norm()
        for key in own:
            delattr(plain, key)

    def compiled() -> Step:
        compiled_losses = {part: torch.compile(plain.loss) for part in parts}
        return Step(model, plain, compiled_losses, x)

    benchmark.group = f"training_step {name} {tuple(x.shape)}"
    steps = {"eager": lambda: eager, "compiled": compiled, "genfast": lambda: ours}
    time_steps(benchmark, implementation, steps, check=check, device=x.device)
