"""Gated PixelCNN: a PixelCNN without a blind spot, with gates, and with conditioning.

Source: van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves and Kavukcuoglu 2016, "Conditional
Image Generation with PixelCNN Decoders" (section 2, figures 1 and 2).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from genfast.models._autoregressive import (
    AutoregressiveModel,
    categorical_log_prob,
    draw,
    labels_of,
    labels_to_draw,
    vectors_of,
)
from genfast.models._base import (
    check_image,
    check_sizes,
    require,
)
from genfast.models._convolution import ReluChain, convolve
from genfast.nn import MaskedConv2d
from genfast.ops import gated_activation
from genfast.sampling.distributions import Categorical, Distribution


@dataclass(frozen=True)
class GatedPixelCNNConfig:
    """Settings of a gated PixelCNN.

    Attributes:
        image_shape: (C, H, W).
        levels: number of grey levels of a pixel: the width of each softmax.
        channels: p of the paper's figure 2: width of each stack. A multiple of C.
        layers: number of gated layers, the first one with mask A among them.
        kernel_size: size of the first layer's convolutions; odd, from 3.
        inner_kernel_size: n of figure 2, size of the other layers' convolutions; odd.
        head_channels: width between the two 1 x 1 convolutions of the head. A multiple of C.
        classes: number of class labels to condition on; 0 without.
        embedding: length of a vector to condition on; 0 without.
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    levels: int = 17
    channels: int = 36
    layers: int = 6
    kernel_size: int = 7
    inner_kernel_size: int = 3
    head_channels: int = 72
    classes: int = 0
    embedding: int = 0

    def __post_init__(self) -> None:
        check_image(self)
        check_sizes(self, "channels", "layers", "inner_kernel_size", "head_channels")
        check_sizes(self, "kernel_size", minimum=3)
        check_sizes(self, "classes", "embedding", minimum=0)
        for name in ("kernel_size", "inner_kernel_size"):
            size = getattr(self, name)
            require("GatedPixelCNNConfig", size % 2 == 1, f"odd {name}", **{name: size})
        colours = self.image_shape[0]
        for name in ("channels", "head_channels"):
            width = getattr(self, name)
            rule = f"{name} to be a multiple of the {colours} colours"
            require("GatedPixelCNNConfig", width % colours == 0, rule, **{name: width})


class Gate(nn.Module):
    """Equation 4: tanh(f + V_f h) * sigmoid(g + V_g h), where f and g are halves of the input.

    V is a bias for each class, a matrix for an embedding, both, or nothing: it is the same at
    every pixel. The convolution before the gate adds V h and applies the gate, where it can.
    """

    def __init__(self, config: GatedPixelCNNConfig) -> None:
        super().__init__()
        width = 2 * config.channels
        self.of_label = nn.Embedding(config.classes, width) if config.classes else None
        self.of_embedding = (
            nn.Linear(config.embedding, width, bias=False) if config.embedding else None
        )
        if self.of_label is not None:  # as a Linear of one-hot vectors would start
            nn.init.normal_(self.of_label.weight, std=config.classes**-0.5)

    def condition(self, labels: Tensor | None, embedding: Tensor | None) -> Tensor | None:
        """V h [N, 2p], or None without conditioning."""
        condition = None if self.of_label is None else self.of_label(labels)
        if self.of_embedding is not None:
            of_embedding = self.of_embedding(embedding)
            condition = of_embedding if condition is None else condition + of_embedding
        return condition

    def forward(self, x: Tensor, labels: Tensor | None, embedding: Tensor | None) -> Tensor:
        """Map [N, 2p, H, W] to [N, p, H, W]."""
        return gated_activation(x, self.condition(labels, embedding))


class GatedLayer(nn.Module):
    """Figure 2: the vertical stack sees the rows above, the horizontal one its own row so far.

    The vertical stack's feature at row r has seen rows up to r, so its kernel ends at the centre
    row instead of being masked below it; the horizontal stack takes that of row r - 1. It knows no
    order of colours: all it has seen is in rows above. The horizontal stack does, channel c
    belonging to colour c % C, so that halves of the channels have the colours in the same order.
    The last layer's vertical stack ends where it enters the horizontal one.
    """

    def __init__(self, config: GatedPixelCNNConfig, is_first: bool, is_last: bool) -> None:
        super().__init__()
        colours, channels = config.image_shape[0], config.channels
        inputs = colours if is_first else channels
        kernel = config.kernel_size if is_first else config.inner_kernel_size
        masked = partial(MaskedConv2d, data_channels=colours, channel_layout="interleaved")
        self.reach = kernel // 2
        self.is_residual = not is_first
        self.vertical = nn.Conv2d(
            inputs, 2 * channels, (self.reach + 1, kernel), padding=(0, self.reach)
        )
        self.vertical_gate = None if is_last else Gate(config)
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        mask_type = "A" if is_first else "B"
        self.horizontal = masked(
            mask_type, inputs, 2 * channels, (1, kernel), padding=(0, self.reach)
        )
        self.horizontal_gate = Gate(config)
        self.out = masked("B", channels, channels, 1)

    def forward(
        self, vertical: Tensor, horizontal: Tensor, labels: Tensor | None, embedding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Map the two stacks, [N, p, H, W] each, or twice the image, to [N, p, H, W] each."""
        reach = self.reach
        rows = convolve(self.vertical, vertical, padding=(reach, reach, reach, 0))
        mixed = self.horizontal(
            horizontal, addend=self.horizontal_gate.condition(labels, embedding)
        )
        # Of the row above: shifted down by one.
        gated = convolve(self.across, rows, padding=(0, 0, 1, -1), addend=mixed, activation="gate")
        out = self.out(gated, residual=horizontal if self.is_residual else None)
        if self.vertical_gate is not None:
            vertical = self.vertical_gate(rows, labels, embedding)
        return vertical, out


class GatedPixelCNN(AutoregressiveModel):
    """Gated PixelCNN with a softmax over the levels for every colour of every pixel.

    The colours of a pixel come in channel order.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders".
    """

    config: GatedPixelCNNConfig

    def __init__(self, config: GatedPixelCNNConfig) -> None:
        super().__init__()
        self.config = config
        colours, head = config.image_shape[0], config.head_channels
        masked = partial(MaskedConv2d, data_channels=colours, channel_layout="interleaved")
        self.layers = nn.ModuleList(
            GatedLayer(config, is_first=index == 0, is_last=index == config.layers - 1)
            for index in range(config.layers)
        )
        self.head = ReluChain(
            nn.ReLU(),
            masked("B", config.channels, head, 1),
            nn.ReLU(),
            masked("B", head, colours * config.levels, 1),
        )

    def forward(
        self, x: Tensor, labels: Tensor | None = None, embedding: Tensor | None = None
    ) -> Tensor:
        """Return logits [N, levels, C, H, W], each of the pixels before it in x.

        Args:
            x: levels [N, C, H, W]. A floating-point tensor of levels is taken too, so that
                gradients can show what depends on what.
            labels: class numbers [N], where the model has classes.
            embedding: vectors [N, config.embedding], where the model takes them.
        """
        dtype = cast(nn.Conv2d, self.head[1]).weight.dtype
        horizontal = x.to(dtype) * (2 / (self.config.levels - 1)) - 1
        vertical = horizontal
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, labels, embedding)
        logits = cast(Tensor, self.head(horizontal))
        return logits.view(-1, self.config.levels, *self.config.image_shape)

    def log_prob(
        self, x: Tensor, labels: Tensor | None = None, embedding: Tensor | None = None
    ) -> Tensor:
        """Return the log-likelihood [N] in nats of integer images [N, C, H, W].

        Raises:
            InputError: images or conditioning that are not this model's.
        """
        self._check_images(x)
        labels = labels_of("GatedPixelCNN", labels, len(x), self.config.classes)
        shape = (len(x), self.config.embedding)
        embedding = vectors_of("GatedPixelCNN", "embedding", embedding, shape)
        return categorical_log_prob(self(x, labels, embedding), x)

    @property
    def distribution(self) -> Distribution:
        """What the logits mean."""
        return Categorical(self.config.levels, layout="KC")

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        seed: int | None = None,
        first: int = 0,
        labels: Tensor | None = None,
        embedding: Tensor | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        return_log_prob: bool = False,
        method: str = "compiled",
    ) -> Any:
        """Draw images [n, C, H, W], or complete known ones.

        Args:
            n: how many.
            generator: source of the noise; torch's global one by default.
            progress: show a bar that counts pixels.
            seed: instead of a generator: which noise.
            first: number of the first one in its stream of noise, whatever the batches.
            labels: class numbers [n]; by default the classes in turn.
            embedding: vectors [n, config.embedding], where the model takes them.
            known: levels to complete, of a shape that broadcasts to the result's; without
                `known_mask`, negative ones mark what is to be drawn.
            known_mask: bool, true where `known` is to be kept.
            temperature: above 0; below 1 is safer, above 1 more varied.
            top_k: draw among this many most probable levels only.
            top_p: draw among the most probable levels that reach this probability only.
            return_log_prob: return also the log-probabilities [n] in nats under the model itself.
            method: "compiled", or "naive": a forward pass for every symbol.

        Raises:
            InputError: an argument breaks its rule.
        """
        labels, embedding = self._conditions(n, labels, embedding)
        return draw(
            self,
            n,
            self.distribution,
            {"labels": labels, "embedding": embedding},
            method=method,
            generator=generator,
            seed=seed,
            first=first,
            known=known,
            known_mask=known_mask,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            progress=progress,
            return_log_prob=return_log_prob,
        )

    def _conditions(
        self, n: int, labels: Tensor | None, embedding: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Check what to draw n images with."""
        labels = labels_to_draw("GatedPixelCNN", labels, n, self.config.classes)
        shape = (n, self.config.embedding)
        return labels, vectors_of("GatedPixelCNN", "embedding", embedding, shape)
