"""The adversarial losses as a layer."""

from typing import Any, get_args

from torch import Tensor, nn

from genfast.errors import InputError
from genfast.ops import gan_loss
from genfast.ops.gan_loss import Kind

KINDS: tuple[str, ...] = get_args(Kind)
RELATIVISTIC = ("relativistic", "relativistic_average")


class GANLoss(nn.Module):
    """A GAN loss of one kind, for both players; logits go in, a scalar mean comes out.

    `loss(real=..., fake=...)` is the discriminator's loss and `loss(fake=...)` the generator's. The
    relativistic kinds need real logits for the generator as well, whose loss is
    `loss(real=..., fake=..., role="generator")`.
    The arguments are keyword-only, because libraries disagree about their order.

    Args:
        kind: "minimax", "non_saturating", "least_squares", "wasserstein", "hinge", "relativistic"
            or "relativistic_average".
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

    @property
    def relativistic(self) -> bool:
        """Whether the generator's loss, too, needs real logits."""
        return self.kind in RELATIVISTIC

    def forward(self, *, fake: Tensor, real: Tensor | None = None, role: Any = None) -> Tensor:
        """Return one player's loss.

        Args:
            fake: logits of generated examples, any shape.
            real: logits of data, any shape; see `genfast.ops.gan_loss` for when it is needed.
            role: "discriminator" or "generator"; None is the discriminator if `real` is given, else
                the generator.
        """
        if role is None:
            role = "generator" if real is None else "discriminator"
        return gan_loss(
            fake=fake,
            real=real,
            kind=self.kind,
            role=role,
            label_smoothing=0.0 if role == "generator" else self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """Name the kind."""
        return f"{self.kind!r}, label_smoothing={self.label_smoothing}"
