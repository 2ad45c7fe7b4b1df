"""The plain models that training steps are timed against compute what genfast's models do."""

import pytest
import torch

from benchmarks.steps import (
    _plain_losses,
    _plain_pixelcnn,
    _plain_pixelcnn_plus_plus,
    _plain_wavenet,
)
from benchmarks.steps.bench_training_step import Step, check_agreement, two_models
from genfast import models

SMALL = {
    "pixelcnn": (
        models.PixelCNNConfig((1, 6, 5), 17, channels=4, blocks=2, head_channels=6),
        _plain_pixelcnn.PixelCNN,
    ),
    "gated_pixelcnn": (
        models.GatedPixelCNNConfig((1, 5, 6), 17, channels=4, layers=3, head_channels=6),
        _plain_pixelcnn.GatedPixelCNN,
    ),
    "pixelcnn_plus_plus": (
        models.PixelCNNPlusPlusConfig((3, 8, 4), 256, filters=4, resnets=1, mixtures=2),
        _plain_pixelcnn_plus_plus.PixelCNNPlusPlus,
    ),
    "wavenet": (
        models.WaveNetConfig(length=40, levels=16, residual_channels=4, layers=4, cycle=3),
        _plain_wavenet.WaveNet,
    ),
    "vae": (models.VAEConfig((1, 8, 6), 256, latent_dim=3, channels=4), _plain_losses.VAE),
    "gan": (models.GANConfig((3, 8, 6), 256, latent_dim=3, channels=4), _plain_losses.GAN),
}


@pytest.mark.parametrize("name", SMALL)
def test_plain_models_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    config, plain_class = SMALL[name]
    model, plain = two_models(config, plain_class)
    model.double()
    plain.double()
    x = torch.randint(0, config.levels, (3, *model.event_shape), dtype=torch.uint8)
    ours = Step(model, model, lambda x, part: model.loss(x, part)["loss"], x)
    theirs = Step(model, plain, plain.loss, x)
    check_agreement(ours, theirs, plain, tolerance=1e-9)
    with torch.no_grad():
        next(plain.parameters()).mul_(1.01)
    with pytest.raises(AssertionError):
        check_agreement(ours, theirs, plain, tolerance=1e-9)
