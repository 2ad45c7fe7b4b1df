"""Dropout with counter-based noise.

Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov 2014, "Dropout: A Simple Way to
Prevent Neural Networks from Overfitting".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.ops import philox_uniform


class Dropout(nn.Dropout):
    """torch's Dropout with the noise of `philox_uniform` on the CPU.

    There torch draws bit after bit on one thread, which takes several times as long. The seed
    comes from torch's generator: `torch.manual_seed` repeats the zeros, though they are not those
    that torch would put. On other devices it is torch's own.

    Args:
        p: probability of a zero, 0 to 1.

    Raises:
        ValueError: p is outside 0 .. 1 (torch's own check).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with zeros in it and the rest divided by 1 - p; in eval mode as it is.

        Args:
            input: floating point, of any shape.
        """
        if not self.training or self.p == 0:
            return input
        if self.p == 1 or input.device.type != "cpu":
            return F.dropout(input, self.p)
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        kept = philox_uniform(input.shape, dtype=dtype).ge_(self.p).div_(1 - self.p)
        return input * kept.to(input.dtype)
