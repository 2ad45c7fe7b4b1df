"""The loops that the benchmark compares with are exact, else their figures mean nothing."""

import pytest
import torch

from genfast.bench.cached_loops import CachedGatedPixelCNN, QueuedWaveNet
from genfast.bench.transformer import CachedTransformer, ImageTransformer
from genfast.models import GatedPixelCNN, GatedPixelCNNConfig, WaveNet, WaveNetConfig


def widened(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.double().eval()


@pytest.mark.parametrize(("height", "width"), [(5, 6), (6, 3), (1, 4)])
def test_rows_and_pixels_of_a_gated_pixelcnn(height, width):
    config = GatedPixelCNNConfig((1, height, width), 5, 6, 4, 5, 3, 8)
    model = widened(GatedPixelCNN(config))
    levels = torch.randint(0, 5, (3, 1, height, width))
    with torch.no_grad():
        expected = model(levels)
    torch.testing.assert_close(CachedGatedPixelCNN(model).logits(levels), expected)


def test_queues_of_a_wavenet():
    config = WaveNetConfig(
        length=40, levels=7, residual_channels=5, gate_channels=6, skip_channels=4,
        head_channels=8, layers=5, cycle=3,
    )  # fmt: skip
    model = widened(WaveNet(config))
    levels = torch.randint(0, 7, (3, 1, 40))
    with torch.no_grad():
        expected = model(levels)
    torch.testing.assert_close(QueuedWaveNet(model).logits(levels), expected)


def test_keys_and_values_of_a_transformer():
    model = widened(ImageTransformer(levels=5, pixels=12, width=8, heads=2, layers=2))
    levels = torch.randint(0, 5, (3, 1, 3, 4))
    with torch.no_grad():
        expected = model(levels)
    torch.testing.assert_close(CachedTransformer(model).logits(levels), expected)
