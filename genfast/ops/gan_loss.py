"""The losses of generative adversarial networks, on logits.

Sources: minimax and non-saturating, Goodfellow et al., "Generative adversarial nets", NIPS 2014,
equation 1 and section 3; least_squares, Mao et al., "Least squares generative adversarial
networks", ICCV 2017, equation 9; wasserstein, Arjovsky et al., "Wasserstein GAN", ICML 2017,
equation 3; hinge, Lim and Ye, "Geometric GAN", 2017, and Miyato et al., "Spectral normalization for
generative adversarial networks", ICLR 2018, equations 16 and 17; one-sided label smoothing,
Salimans et al., "Improved techniques for training GANs", NIPS 2016, section 3.4.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError

Kind = Literal["minimax", "non_saturating", "least_squares", "wasserstein", "hinge"]
Role = Literal["discriminator", "generator"]

_KINDS: tuple[str, ...] = get_args(Kind)
_ROLES: tuple[str, ...] = get_args(Role)
_SMOOTHABLE = ("minimax", "non_saturating", "least_squares")


def gan_loss(
    *,
    fake: torch.Tensor,
    real: torch.Tensor | None = None,
    kind: Kind = "non_saturating",
    role: Role = "discriminator",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Loss that one of the two players minimises: a mean over fake logits, plus one over real.

    With x a logit, softplus(x) = log(1 + exp(x)) = -log(1 - sigmoid(x)) and s = label_smoothing:

    ============== =================== ====================== ====================
    kind           discriminator, fake discriminator, real    generator, fake
    ============== =================== ====================== ====================
    minimax        softplus(x)         softplus(-x) + s x     -softplus(x)
    non_saturating softplus(x)         softplus(-x) + s x     softplus(-x)
    least_squares  x^2 / 2             (x - 1 + s)^2 / 2      (x - 1)^2 / 2
    wasserstein    x                   -x                     -x
    hinge          max(0, 1 + x)       max(0, 1 - x)          -x
    ============== =================== ====================== ====================

    The loss and the derivative of every term are made in one pass; the backward pass is one
    multiplication.

    Args:
        fake: Logits of generated examples, any shape with at least one element, floating point.
        real: Logits of real examples, any shape (it may differ from that of `fake`), dtype and
            device of `fake`. For the discriminator only.
        kind: Which loss.
        role: Whose loss.
        label_smoothing: s in [0, 1): the target of real logits is 1 - s. Discriminators of the
            kinds minimax, non_saturating and least_squares only.

    Returns:
        Scalar. float64 for float64 logits, else float32: a squared logit of 1,000 overflows
        float16. Gradients have the dtype of the logits. Twice differentiable in the logits; the
        same input gives the same bits, on the CPU for every number of threads.

    Raises:
        InputError: if an argument breaks a rule above.
    """
    _check_arguments(fake, real, kind, role, label_smoothing)
    if has_kernel("gan_loss", fake.device):
        # `.default`: choosing the overload takes as long as the arithmetic on a batch of logits.
        op = torch.ops.genfast.gan_loss.default
        loss: torch.Tensor = op(fake, real, kind, role, label_smoothing)
        return loss
    return gan_loss_reference(
        fake=fake, real=real, kind=kind, role=role, label_smoothing=label_smoothing
    )


def gan_loss_reference(
    *,
    fake: torch.Tensor,
    real: torch.Tensor | None = None,
    kind: Kind = "non_saturating",
    role: Role = "discriminator",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """`gan_loss` in plain PyTorch; differentiable to any order."""
    fake = _widened(fake)
    if real is None:
        return _generator_term(fake, kind).mean()
    return _fake_term(fake, kind).mean() + _real_term(_widened(real), kind, label_smoothing).mean()


def _widened(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


# softplus(x) is spelled -logsigmoid(-x): F.softplus drops the exponential beyond x = 20, which is
# too early for float64.
def _fake_term(x: torch.Tensor, kind: Kind) -> torch.Tensor:
    if kind == "least_squares":
        return x.square() / 2
    if kind == "wasserstein":
        return x
    return F.relu(1 + x) if kind == "hinge" else -F.logsigmoid(-x)


def _real_term(x: torch.Tensor, kind: Kind, smoothing: float) -> torch.Tensor:
    if kind == "least_squares":
        return (x - (1 - smoothing)).square() / 2
    if kind == "wasserstein":
        return -x
    if kind == "hinge":
        return F.relu(1 - x)
    return smoothing * x - F.logsigmoid(x) if smoothing else -F.logsigmoid(x)


def _generator_term(x: torch.Tensor, kind: Kind) -> torch.Tensor:
    if kind == "minimax":
        return F.logsigmoid(-x)
    if kind == "non_saturating":
        return -F.logsigmoid(x)
    return (x - 1).square() / 2 if kind == "least_squares" else -x


def _check_arguments(
    fake: torch.Tensor, real: torch.Tensor | None, kind: str, role: str, label_smoothing: float
) -> None:
    if kind not in _KINDS:
        raise InputError(f"gan_loss: expected kind one of {', '.join(_KINDS)}, got kind={kind!r}")
    if role not in _ROLES:
        raise InputError(f"gan_loss: expected role one of {', '.join(_ROLES)}, got role={role!r}")
    _check_logits("fake", fake)
    if role == "generator":
        if real is not None:
            raise InputError(
                "gan_loss: expected fake alone for the generator, got real of shape "
                f"{tuple(real.shape)}"
            )
    elif real is None:
        raise InputError("gan_loss: expected real and fake for the discriminator, got real=None")
    else:
        _check_logits("real", real)
        # Under autocast the dtypes are made the same later.
        if real.device != fake.device or (
            real.dtype != fake.dtype and not _under_autocast(fake.device.type)
        ):
            raise InputError(
                "gan_loss: expected real of the dtype and device of fake, got "
                f"fake: {fake.dtype} {fake.device}, real: {real.dtype} {real.device}"
            )
    if label_smoothing != 0:
        _check_smoothing(kind, role, label_smoothing)


def _under_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _check_logits(name: str, logits: torch.Tensor) -> None:
    if not logits.is_floating_point() or logits.numel() == 0:
        raise InputError(
            f"gan_loss: expected at least one floating point logit, got {name}.shape="
            f"{tuple(logits.shape)}, {name}.dtype={logits.dtype}"
        )


def _check_smoothing(kind: str, role: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise InputError(
            f"gan_loss: expected label_smoothing in [0, 1), got label_smoothing={label_smoothing}"
        )
    if role == "generator" or kind not in _SMOOTHABLE:
        raise InputError(
            "gan_loss: expected label_smoothing=0 except for the discriminator of "
            f"{', '.join(_SMOOTHABLE)}, got label_smoothing={label_smoothing}, kind={kind!r}, "
            f"role={role!r}"
        )


if loaded():

    def _loss_like(logits: torch.Tensor) -> torch.Tensor:
        return logits.new_empty(
            (), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32
        )

    def _grad_like(logits: torch.Tensor | None, fake: torch.Tensor) -> torch.Tensor:
        return fake.new_empty((0,)) if logits is None else logits.new_empty(logits.shape)

    @torch.library.register_fake("genfast::gan_loss")
    def _gan_loss_fake(
        fake: torch.Tensor, real: torch.Tensor | None, kind: str, role: str, label_smoothing: float
    ) -> torch.Tensor:
        return _loss_like(fake)

    @torch.library.register_fake("genfast::_gan_loss_with_slope")
    def _gan_loss_with_slope_fake(
        fake: torch.Tensor, real: torch.Tensor | None, kind: str, role: str, label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = fake.numel() + (0 if real is None else real.numel())
        return _loss_like(fake), fake.new_empty((count,))

    @torch.library.register_fake("genfast::_gan_loss_backward")
    def _gan_loss_backward_fake(
        grad_loss: torch.Tensor,
        slope: torch.Tensor,
        fake: torch.Tensor,
        real: torch.Tensor | None,
        kind: str,
        role: str,
        label_smoothing: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _grad_like(fake, fake), _grad_like(real, fake)

    @torch.library.register_fake("genfast::_gan_loss_double_backward")
    def _gan_loss_double_backward_fake(
        v_fake: torch.Tensor,
        v_real: torch.Tensor,
        grad_loss: torch.Tensor,
        fake: torch.Tensor,
        real: torch.Tensor | None,
        kind: str,
        role: str,
        label_smoothing: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _loss_like(fake), _grad_like(fake, fake), _grad_like(real, fake)

    for _device in ("cpu", "cuda"):
        torch.library.register_autocast("genfast::gan_loss", _device, torch.float32)
