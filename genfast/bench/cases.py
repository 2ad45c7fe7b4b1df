"""The models of `genfast bench sampling`, of the sizes in which the field uses them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.bench.cached_loops import CachedGatedPixelCNN, Draw, QueuedWaveNet
from genfast.bench.transformer import CachedTransformer, ImageTransformer
from genfast.models import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    PixelCNN,
    PixelCNNConfig,
    PixelCNNPlusPlus,
    PixelCNNPlusPlusConfig,
    WaveNet,
    WaveNetConfig,
)
from genfast.nn import MaskedConv2d
from genfast.ops._masked_conv2d_epilogue import apply_epilogue
from genfast.sampling import Categorical, Distribution, LogisticMixture

SECOND_OF_SOUND = 16000
LOOP_STEPS = 1000

Loop = Callable[[int, Draw], Tensor]
"""Draws a batch of n, or the first symbols of one: (n, draw) -> levels."""


@dataclass(frozen=True)
class Case:
    """One model at its batch sizes.

    Attributes:
        title: the model in words.
        event_shape: as for `compile_sampler`.
        make: builds the model in eval mode, float32.
        distribution: makes the distribution of its symbols.
        batches: batch sizes.
        loop: the published idea in plain PyTorch and a Python loop, made from the model.
        loop_symbols: symbols of an event that the loop draws; its time is scaled up to all.
        memory: batch size at which memory is measured.
    """

    title: str
    event_shape: tuple[int, ...]
    make: Callable[[], nn.Module]
    distribution: Callable[[], Distribution]
    batches: tuple[int, ...]
    loop: Callable[[nn.Module], Loop] | None = None
    loop_symbols: int = 0
    memory: int | None = None

    @property
    def symbols(self) -> int:
        """Symbols of one event."""
        return torch.Size(self.event_shape).numel()

    @property
    def steps(self) -> int:
        """Forward passes of the naive loop: the colours of a pixel are drawn together."""
        return torch.Size(self.event_shape[1:]).numel()


def _gated() -> GatedPixelCNN:
    return GatedPixelCNN(
        GatedPixelCNNConfig((1, 28, 28), 256, channels=128, layers=15, head_channels=256)
    )


def _plain() -> PixelCNN:
    return PixelCNN(PixelCNNConfig((1, 28, 28), 256, channels=32, blocks=15, head_channels=64))


def _digits() -> PixelCNN:
    return PixelCNN(PixelCNNConfig((1, 8, 8), 17, channels=32, blocks=4, head_channels=64))


def _plus_plus() -> PixelCNNPlusPlus:
    config = PixelCNNPlusPlusConfig((3, 32, 32), 256, filters=40, resnets=5, mixtures=10)
    return PixelCNNPlusPlus(config)


def _wavenet() -> WaveNet:
    return WaveNet(
        WaveNetConfig(
            length=SECOND_OF_SOUND,
            residual_channels=64,
            gate_channels=64,
            skip_channels=128,
            head_channels=256,
            layers=20,
            cycle=10,
        )
    )


def _transformer() -> ImageTransformer:
    return ImageTransformer(levels=256, pixels=28 * 28, width=256, heads=8, layers=6)


def _gated_loop(model: nn.Module) -> Loop:
    assert isinstance(model, GatedPixelCNN)
    return CachedGatedPixelCNN(model).sample


def _wavenet_loop(model: nn.Module) -> Loop:
    assert isinstance(model, WaveNet)
    queued = QueuedWaveNet(model)
    return lambda n, draw: queued.sample(n, LOOP_STEPS, draw)


def _transformer_loop(model: nn.Module) -> Loop:
    assert isinstance(model, ImageTransformer)
    cached = CachedTransformer(model)
    return lambda n, draw: cached.sample(n, 28 * 28, draw)


CASES = {
    "digits": Case(
        "PixelCNN, 4 residual blocks, 32 channels, 8 x 8, 17 levels",
        (1, 8, 8), _digits, lambda: Categorical(17), (64,),
    ),
    "gated": Case(
        "gated PixelCNN, 15 layers, 128 channels, 28 x 28, 256 levels",
        (1, 28, 28), _gated, lambda: Categorical(256), (64, 1),
        loop=_gated_loop, loop_symbols=28 * 28, memory=64,
    ),
    "plain": Case(
        "PixelCNN, 7 x 7 and 15 residual blocks, 32 channels, 28 x 28, 256 levels",
        (1, 28, 28), _plain, lambda: Categorical(256), (64, 1),
    ),
    "plus-plus": Case(
        "PixelCNN++, 40 filters, 5 resnets, 10 mixtures, 32 x 32 x 3",
        (3, 32, 32), _plus_plus, lambda: LogisticMixture(256, 10, values=None), (16,),
    ),
    "wavenet": Case(
        "WaveNet, R 64, S 128, A 256, 20 layers, dilation to 512, one second at 16 kHz",
        (1, SECOND_OF_SOUND), _wavenet, lambda: Categorical(256), (1,),
        loop=_wavenet_loop, loop_symbols=LOOP_STEPS,
    ),
    "transformer": Case(
        "transformer, 6 layers, width 256, 8 heads, 28 x 28, 256 levels, plain PyTorch",
        (1, 28, 28), _transformer, lambda: Categorical(256), (16, 1),
        loop=_transformer_loop, loop_symbols=28 * 28,
    ),
}  # fmt: skip


def build(case: Case, seed: int = 0) -> nn.Module:
    """Make a case's model with weights from a seed; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return case.make().eval()


class PlainConvolution(nn.Conv2d):
    """A masked convolution as PyTorch's with the masked weights, and what follows it."""

    def __init__(self, masked: MaskedConv2d) -> None:
        size: Any = masked.kernel_size
        steps: Any = {name: getattr(masked, name) for name in ("stride", "padding", "dilation")}
        super().__init__(
            masked.in_channels, masked.out_channels, size, groups=masked.groups, **steps
        )
        self.to(masked.weight.device)
        with torch.no_grad():
            self.weight.copy_(masked.weight * masked.mask)
            assert self.bias is not None
            self.bias.zero_() if masked.bias is None else self.bias.copy_(masked.bias)

    def forward(
        self,
        input: Tensor,
        *,
        addend: Tensor | None = None,
        activation: str | None = None,
        residual: Tensor | None = None,
        rectify: bool = False,
    ) -> Tensor:
        """Convolve as `MaskedConv2d` does."""
        out = super().forward(F.relu(input) if rectify else input)
        if addend is not None and addend.dim() == 2:
            addend = addend[:, :, None, None]
        return apply_epilogue(out, addend, activation, residual, reference=True)


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """Copy a model of ours, its masked convolutions dense and PyTorch's."""
    copied = copy.deepcopy(model)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MaskedConv2d):
                setattr(parent, name, PlainConvolution(child))
    return copied
