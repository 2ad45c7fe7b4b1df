"""PixelCNN++ in plain PyTorch, as careful users write it: genfast's network, torch's layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from genfast import models
from genfast.models.pixelcnn_plus_plus import Shifted, concat_elu
from genfast.ops import logistic_mixture_nll_reference


class PlainShifted(Shifted):
    """Padded by the convolution, on both sides; rows and columns too many cost less than a copy."""

    def forward(
        self, input: Tensor, *, addend: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        pad, conv = self
        left, _, top, _ = pad.padding
        height, width = (-(-size // conv.stride[0]) for size in input.shape[2:])
        y = F.conv2d(input, conv.weight, conv.bias, conv.stride, (top, left))
        y = y[:, :, :height, :width]
        if addend is not None:
            y = y + addend
        return concat_elu(y) if activation == "concat_elu" else y


class PixelCNNPlusPlus(models.PixelCNNPlusPlus):
    """The mixture of logistics by one full-size operation per step of the formula."""

    def __init__(self, config: models.PixelCNNPlusPlusConfig) -> None:
        super().__init__(config)
        for module in [*self.modules()]:
            for name, child in module.named_children():
                if isinstance(child, Shifted):
                    setattr(module, name, PlainShifted(*child))
                elif isinstance(child, nn.Dropout):
                    setattr(module, name, nn.Dropout(child.p))

    def loss(self, x: Tensor, part: str) -> Tensor:
        levels = self.config.levels
        return logistic_mixture_nll_reference(self(x), x, levels=levels).mean()
