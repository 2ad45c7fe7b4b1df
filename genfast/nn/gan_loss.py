"""The adversarial losses as a layer."""

from typing import Any

from torch import Tensor, nn

from genfast.errors import InputError
from genfast.ops import gan_loss

KINDS = ("minimax", "non_saturating", "least_squares", "wasserstein", "hinge")


class GANLoss(nn.Module):
    """A GAN loss of one kind, for both players; logits go in, a scalar mean comes out.

    `loss(real=..., fake=...)` is the discriminator's loss and `loss(fake=...)` the generator's.
    Both arguments are keyword-only, because libraries disagree about their order.

    Args:
        kind: "minimax", "non_saturating", "least_squares", "wasserstein" or "hinge".
        label_smoothing: see `genfast.ops.gan_loss`.

    Raises:
        InputError: unknown kind.
    """

    def __init__(self, kind: str = "non_saturating", *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"GANLoss: expected kind in {KINDS}, got kind={kind!r}")
        self.kind: Any = kind
        self.label_smoothing = label_smoothing

    def forward(self, *, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the discriminator's loss if `real` is given, else the generator's.

        Args:
            fake: logits of generated examples, any shape.
            real: logits of data, any shape.
        """
        return gan_loss(
            fake=fake,
            real=real,
            kind=self.kind,
            role="generator" if real is None else "discriminator",
            label_smoothing=0.0 if real is None else self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """Name the kind."""
        return f"{self.kind!r}, label_smoothing={self.label_smoothing}"
