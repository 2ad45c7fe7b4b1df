"""PixelCNN++: two streams at three resolutions, and a mixture of logistics for each pixel.

Source: Salimans, Karpathy, Chen and Kingma 2017, "PixelCNN++: Improving the PixelCNN with
Discretized Logistic Mixture Likelihood and Other Modifications" (section 2, figure 2).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from genfast.models._autoregressive import AutoregressiveModel, draw, labels_of, labels_to_draw
from genfast.models._base import (
    check_image,
    check_number,
    check_sizes,
    require,
)
from genfast.models._convolution import convolve
from genfast.nn import Dropout, logistic_mixture_nll
from genfast.sampling.distributions import Distribution, LogisticMixture

STAGES = 3
"""Resolutions: each has half the height and width of the one before."""


@dataclass(frozen=True)
class PixelCNNPlusPlusConfig:
    """Settings of a PixelCNN++.

    Attributes:
        image_shape: (C, H, W); H and W are multiples of 4.
        levels: number of grey levels of a pixel.
        filters: width of each stream.
        resnets: number of gated residual layers of a stream at a resolution, down and up each.
        mixtures: number of logistics in the mixture of a pixel.
        dropout: probability of dropping a feature inside a residual layer while training.
        classes: number of class labels to condition on; 0 without.
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    levels: int = 17
    filters: int = 32
    resnets: int = 2
    mixtures: int = 5
    dropout: float = 0.5
    classes: int = 0

    def __post_init__(self) -> None:
        check_image(self)
        check_sizes(self, "filters", "resnets", "mixtures")
        check_sizes(self, "classes", minimum=0)
        check_number(self, "dropout", 0, 1)
        colours, height, width = self.image_shape
        rule = "image_shape (C, H, W) of 1 or 3 colours"
        require("PixelCNNPlusPlusConfig", colours in (1, 3), rule, image_shape=self.image_shape)
        fits = height % 2 ** (STAGES - 1) == 0 and width % 2 ** (STAGES - 1) == 0
        rule = "image_shape (C, H, W) with H and W divisible by 4"
        require("PixelCNNPlusPlusConfig", fits, rule, image_shape=self.image_shape)


def down_shifted(
    inputs: int, outputs: int, kernel: tuple[int, int] = (2, 3), stride: int = 1, scale: float = 1.0
) -> nn.Module:
    """Make a convolution that sees its own row and those above, columns to both sides."""
    side = (kernel[1] - 1) // 2
    return _shifted((side, side, kernel[0] - 1, 0), inputs, outputs, kernel, stride, scale)


def down_right_shifted(
    inputs: int, outputs: int, kernel: tuple[int, int] = (2, 2), stride: int = 1, scale: float = 1.0
) -> nn.Module:
    """Make a convolution that sees its own row and those above, its own column and those left."""
    padding = (kernel[1] - 1, 0, kernel[0] - 1, 0)
    return _shifted(padding, inputs, outputs, kernel, stride, scale)


def _shifted(
    padding: tuple[int, int, int, int],
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: int,
    scale: float,
) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride)
    with torch.no_grad():
        conv.weight *= scale
    return Shifted(nn.ZeroPad2d(padding), weight_norm(conv))


class Shifted(nn.Sequential):
    """A padding and a convolution, which pads by itself: no padded copy of the input is made."""

    def forward(
        self, input: Tensor, *, addend: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Map [N, C_in, H, W] to activation(convolution + addend); see `masked_conv2d`."""
        pad, conv = self
        return convolve(
            cast(nn.Conv2d, conv),
            input,
            padding=cast(nn.ZeroPad2d, pad).padding,
            addend=addend,
            activation=activation,
        )


def down_shifted_transposed(filters: int) -> nn.Module:
    """Double height and width; a row sees what its half did and those above saw."""
    conv = nn.ConvTranspose2d(filters, filters, (2, 3), 2, padding=(0, 1), output_padding=(0, 1))
    return cast(nn.Module, weight_norm(conv, dim=1))


def down_right_shifted_transposed(filters: int) -> nn.Module:
    """Double height and width; a pixel sees what its quarter saw."""
    return cast(nn.Module, weight_norm(nn.ConvTranspose2d(filters, filters, 2, 2), dim=1))


def concat_elu(x: Tensor) -> Tensor:
    """Return ELU of x and of -x, [N, 2F, H, W] of [N, F, H, W]."""
    return F.elu(torch.cat((x, -x), dim=1))


class GatedResnet(nn.Module):
    """x plus a gated branch of it, into which another feature map and the label may enter.

    1. c = conv(concat_elu(x)) + 1 x 1 of concat_elu(aside)
    2. a, b = halves of conv(dropout(concat_elu(c))) + a bias for the label
    3. x + a * sigmoid(b)
    """

    def __init__(
        self,
        config: PixelCNNPlusPlusConfig,
        shifted: Callable[..., nn.Module],
        aside: int = 0,
    ) -> None:
        super().__init__()
        filters = config.filters
        self.first = shifted(2 * filters, filters)
        self.aside = weight_norm(nn.Conv2d(2 * aside, filters, 1)) if aside else None
        self.dropout = Dropout(config.dropout)
        self.second = shifted(2 * filters, 2 * filters, scale=0.1)
        self.of_label = nn.Embedding(config.classes, 2 * filters) if config.classes else None
        if self.of_label is not None:
            nn.init.normal_(self.of_label.weight, std=0.05)

    def forward(self, x: Tensor, aside: Tensor | None, labels: Tensor | None) -> Tensor:
        """Map [N, F, H, W], beside it [N, aside, H, W], to [N, F, H, W]."""
        beside = None
        if self.aside is not None:
            beside = convolve(self.aside, concat_elu(cast(Tensor, aside)))
        inner = self.first(concat_elu(x), addend=beside, activation="concat_elu")
        of_label = None if self.of_label is None else self.of_label(labels)
        inner = self.second(self.dropout(inner), addend=of_label)
        a, b = inner.chunk(2, dim=1)
        return cast(Tensor, x + a * torch.sigmoid(b))


class PixelCNNPlusPlus(AutoregressiveModel):
    """PixelCNN++ with a discretized mixture of logistics for every pixel.

    One stream sees the rows above, one also the pixels to the left. Both go down to a quarter of
    the height and width and up again, with a skip from each layer to its mirror image. The colours
    of a pixel depend on each other through the means of their logistics, linearly.

    Weights are normalised (torch's weight norm); their data-dependent initialisation, which the
    paper's code does, is left out.

    Source: Salimans et al. 2017, "PixelCNN++".
    """

    config: PixelCNNPlusPlusConfig

    def __init__(self, config: PixelCNNPlusPlusConfig) -> None:
        super().__init__()
        self.config = config
        colours, filters, count = config.image_shape[0], config.filters, config.resnets

        def resnets(number: int, shifted: Callable[..., nn.Module], aside: int) -> nn.ModuleList:
            return nn.ModuleList(GatedResnet(config, shifted, aside) for _ in range(number))

        def stages(make: Callable[[int], nn.Module], number: int = STAGES) -> nn.ModuleList:
            return nn.ModuleList(make(stage) for stage in range(number))

        self.stem_above = down_shifted(colours + 1, filters, (2, 3))
        self.stem_row_above = down_shifted(colours + 1, filters, (1, 3))
        self.stem_left = down_right_shifted(colours + 1, filters, (2, 1))
        self.down_above = stages(lambda _: resnets(count, down_shifted, 0))
        self.down_left = stages(lambda _: resnets(count, down_right_shifted, filters))
        self.shrink_above = stages(lambda _: down_shifted(filters, filters, stride=2), STAGES - 1)
        self.shrink_left = stages(
            lambda _: down_right_shifted(filters, filters, stride=2), STAGES - 1
        )
        # Above the lowest resolution there is one skip more, from the layer that shrank.
        self.up_above = stages(lambda s: resnets(count + (s > 0), down_shifted, filters))
        self.up_left = stages(lambda s: resnets(count + (s > 0), down_right_shifted, 2 * filters))
        self.grow_above = stages(lambda _: down_shifted_transposed(filters), STAGES - 1)
        self.grow_left = stages(lambda _: down_right_shifted_transposed(filters), STAGES - 1)
        per_component = 1 + 2 * colours + colours * (colours - 1) // 2
        self.head = weight_norm(nn.Conv2d(filters, config.mixtures * per_component, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mixtures' parameters [N, P, H, W], each of the pixels before it in x.

        Args:
            x: levels [N, C, H, W]. A floating-point tensor of levels is taken too, so that
                gradients can show what depends on what.
            labels: class numbers [N], where the model has classes.
        """
        dtype = self.head.weight.dtype
        scaled = x.to(dtype) * (2 / (self.config.levels - 1)) - 1
        # A channel of ones tells the image from the zeros around it.
        scaled = torch.cat((scaled, torch.ones_like(scaled[:, :1])), dim=1)
        above = [_shift_down(self.stem_above(scaled))]
        left = [_shift_down(self.stem_row_above(scaled)) + _shift_right(self.stem_left(scaled))]
        for stage in range(STAGES):
            for of_above, of_left in _pairs(self.down_above[stage], self.down_left[stage]):
                above.append(of_above(above[-1], None, labels))
                left.append(of_left(left[-1], above[-1], labels))
            if stage < STAGES - 1:
                above.append(self.shrink_above[stage](above[-1]))
                left.append(self.shrink_left[stage](left[-1]))
        u, v = above.pop(), left.pop()
        for stage in range(STAGES):
            for of_above, of_left in _pairs(self.up_above[stage], self.up_left[stage]):
                u = of_above(u, above.pop(), labels)
                v = of_left(v, torch.cat((u, left.pop()), dim=1), labels)
            if stage < STAGES - 1:
                u, v = self.grow_above[stage](u), self.grow_left[stage](v)
        return convolve(self.head, F.elu(v))

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the log-likelihood [N] in nats of integer images [N, C, H, W].

        Raises:
            InputError: images or labels that are not this model's.
        """
        self._check_images(x)
        labels = labels_of("PixelCNNPlusPlus", labels, len(x), self.config.classes)
        return -logistic_mixture_nll(self(x, labels), x, levels=self.config.levels)

    @property
    def distribution(self) -> Distribution:
        """What the parameters mean."""
        config = self.config
        return LogisticMixture(config.levels, config.mixtures, config.image_shape[0], values=None)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        seed: int | None = None,
        first: int = 0,
        labels: Tensor | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        temperature: float = 1.0,
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
            known: levels to complete, of a shape that broadcasts to the result's; without
                `known_mask`, negative ones mark what is to be drawn.
            known_mask: bool, true where `known` is to be kept.
            temperature: above 0; below 1 is safer, above 1 more varied.
            return_log_prob: return also the log-probabilities [n] in nats under the model itself.
            method: "compiled", or "naive": a forward pass for every symbol.

        Raises:
            InputError: an argument breaks its rule.
        """
        labels = labels_to_draw("PixelCNNPlusPlus", labels, n, self.config.classes)
        return draw(
            self,
            n,
            self.distribution,
            {"labels": labels},
            method=method,
            generator=generator,
            seed=seed,
            first=first,
            known=known,
            known_mask=known_mask,
            temperature=temperature,
            progress=progress,
            return_log_prob=return_log_prob,
        )


def _pairs(above: nn.Module, left: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    return zip(cast(nn.ModuleList, above), cast(nn.ModuleList, left), strict=True)


def _shift_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def _shift_right(x: Tensor) -> Tensor:
    return F.pad(x, (1, -1))
