"""PixelCNN: the likelihood of an image as a product over its pixels in raster order.

Source: van den Oord, Kalchbrenner and Kavukcuoglu 2016, "Pixel Recurrent Neural Networks"
(section 3.5, figure 5 left, table 1).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from genfast.models._autoregressive import AutoregressiveModel, categorical_log_prob, draw
from genfast.models._base import check_image, check_sizes, require
from genfast.models._convolution import ReluChain
from genfast.nn import MaskedConv2d
from genfast.sampling.distributions import Categorical, Distribution


@dataclass(frozen=True)
class PixelCNNConfig:
    """Settings of a PixelCNN.

    Attributes:
        image_shape: (C, H, W).
        levels: number of grey levels of a pixel: the width of each softmax.
        channels: h of the paper's figure 5; the residual stream has 2 h. A multiple of C.
        blocks: number of residual blocks.
        kernel_size: size of the first, mask A convolution; odd.
        head_channels: width between the two 1 x 1 convolutions of the head. A multiple of C.
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    levels: int = 17
    channels: int = 36
    blocks: int = 5
    kernel_size: int = 7
    head_channels: int = 72

    def __post_init__(self) -> None:
        check_image(self)
        check_sizes(self, "channels", "kernel_size", "head_channels")
        check_sizes(self, "blocks", minimum=0)
        odd = self.kernel_size % 2 == 1
        require("PixelCNNConfig", odd, "odd kernel_size", kernel_size=self.kernel_size)
        colours = self.image_shape[0]
        for name in ("channels", "head_channels"):
            width = getattr(self, name)
            rule = f"{name} to be a multiple of the {colours} colours"
            require("PixelCNNConfig", width % colours == 0, rule, **{name: width})


class ResidualBlock(nn.Module):
    """Figure 5 left: the input plus 1 x 1 (2h to h), 3 x 3 (h to h), 1 x 1 (h to 2h) of it.

    A ReLU precedes each convolution; all three have mask B.
    """

    def __init__(self, channels: int, colours: int) -> None:
        super().__init__()
        conv = partial(MaskedConv2d, "B", data_channels=colours, channel_layout="blocks")
        self.layers = ReluChain(
            nn.ReLU(),
            conv(2 * channels, channels, 1),
            nn.ReLU(),
            conv(channels, channels, 3, padding=1),
            nn.ReLU(),
            conv(channels, 2 * channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 2h, H, W] to the same shape."""
        return cast(Tensor, self.layers(x, residual=x))


class PixelCNN(AutoregressiveModel):
    """PixelCNN with a softmax over the levels for every colour of every pixel.

    The colours of a pixel come in channel order; every layer divides its channels into one block
    per colour, and its masks keep the order.

    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks".
    """

    config: PixelCNNConfig

    def __init__(self, config: PixelCNNConfig) -> None:
        super().__init__()
        self.config = config
        colours, width = config.image_shape[0], 2 * config.channels
        conv = partial(MaskedConv2d, data_channels=colours, channel_layout="blocks")
        self.stem = conv("A", colours, width, config.kernel_size, padding=config.kernel_size // 2)
        self.blocks = nn.Sequential(
            *(ResidualBlock(config.channels, colours) for _ in range(config.blocks))
        )
        self.head = ReluChain(
            nn.ReLU(),
            conv("B", width, config.head_channels, 1),
            nn.ReLU(),
            conv("B", config.head_channels, colours * config.levels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, levels, C, H, W], each of the pixels before it in x.

        Args:
            x: levels [N, C, H, W]. A floating-point tensor of levels is taken too, so that
                gradients can show what depends on what.
        """
        scaled = x.to(self.stem.weight.dtype) * (2 / (self.config.levels - 1)) - 1
        features: Tensor = self.head(self.blocks(self.stem(scaled)))
        colours, height, width = self.config.image_shape
        return features.view(-1, colours, self.config.levels, height, width).transpose(1, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-likelihood [N] in nats of integer images [N, C, H, W]."""
        self._check_images(x)
        return categorical_log_prob(self(x), x)

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
        return draw(
            self,
            n,
            self.distribution,
            {},
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
