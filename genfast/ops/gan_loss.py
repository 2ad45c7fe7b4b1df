"""The losses of generative adversarial networks, on logits.

Sources: minimax and non-saturating, Goodfellow et al., "Generative adversarial nets", NIPS 2014,
equation 1 and section 3; least_squares, Mao et al., "Least squares generative adversarial
networks", ICCV 2017, equation 9; wasserstein, Arjovsky et al., "Wasserstein GAN", ICML 2017,
equation 3; hinge, Lim and Ye, "Geometric GAN", 2017, and Miyato et al., "Spectral normalization for
generative adversarial networks", ICLR 2018, equations 16 and 17; relativistic and
relativistic_average, Jolicoeur-Martineau, "The relativistic discriminator", ICLR 2019, sections 4.1
and 4.2, the former also Huang et al., "The GAN is dead; long live the GAN!", NeurIPS 2024, section
2.1; one-sided label smoothing, Salimans et al., "Improved techniques for training GANs", NIPS 2016,
section 3.4.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError
from genfast.ops._checks import check_alike, check_real, check_tensor

Kind = Literal[
    "minimax",
    "non_saturating",
    "least_squares",
    "wasserstein",
    "hinge",
    "relativistic",
    "relativistic_average",
]
Role = Literal["discriminator", "generator"]

_KINDS: tuple[str, ...] = get_args(Kind)
_ROLES: tuple[str, ...] = get_args(Role)
_RELATIVISTIC = ("relativistic", "relativistic_average")
_SMOOTHABLE = ("minimax", "non_saturating", "least_squares", *_RELATIVISTIC)


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

    The relativistic kinds judge real and generated examples against each other, with two tensors of
    logits for both players and, at logits f of `fake` and r of `real`:

    ==================== ================================== ===================================
    kind                 discriminator                      generator
    ==================== ================================== ===================================
    relativistic         E[softplus(f - r) - s (f - r)]     E[softplus(r - f)]
    relativistic_average E[softplus(f - E[r])] +            E[softplus(E[r] - f)] +
                         E[softplus(E[f] - r) + s (r -      E[softplus(r - E[f])]
                         E[f])]
    ==================== ================================== ===================================

    E is the mean; relativistic pairs the i-th fake logit with the i-th real one. The means over the
    other side have gradients, for both players.

    The loss and the derivative of every term are made in one pass, with relativistic_average in two
    (the means first); the backward pass is one multiplication.

    Args:
        fake: Logits of generated examples, any shape with at least one element, floating point.
        real: Logits of real examples, any shape (it may differ from that of `fake`, except with
            relativistic), dtype and device of `fake`. For the discriminator, and with the
            relativistic kinds for both players; else not allowed.
        kind: Which loss.
        role: Whose loss.
        label_smoothing: s in [0, 1): the target of real logits (relativistic kinds: of "more real
            than fake") is 1 - s. Discriminators only, and not with wasserstein and hinge, which
            have no target.

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
    real = _widened(real)
    if kind in _RELATIVISTIC:
        return _relativistic(fake, real, kind, role, label_smoothing)
    return _fake_term(fake, kind).mean() + _real_term(real, kind, label_smoothing).mean()


def _relativistic(
    fake: torch.Tensor, real: torch.Tensor, kind: Kind, role: Role, smoothing: float
) -> torch.Tensor:
    if role == "generator":  # the same with exchanged sides, but no target that moves
        fake, real = real, fake
    if kind == "relativistic":
        return _real_term(real - fake, kind, smoothing).mean()
    wins, losses = real - fake.mean(), fake - real.mean()
    return _fake_term(losses, kind).mean() + _real_term(wins, kind, smoothing).mean()


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
    if real is not None:
        _check_real(fake, real, kind, role)
    elif kind in _RELATIVISTIC:
        raise InputError(f"gan_loss: expected real and fake for kind={kind!r}, got real=None")
    elif role == "discriminator":
        raise InputError("gan_loss: expected real and fake for the discriminator, got real=None")
    check_real("gan_loss", "label_smoothing", label_smoothing)
    if label_smoothing != 0:
        _check_smoothing(kind, role, label_smoothing)


def _check_real(fake: torch.Tensor, real: torch.Tensor, kind: str, role: str) -> None:
    if role == "generator" and kind not in _RELATIVISTIC:
        raise InputError(
            "gan_loss: expected no real logits for the generator, got "
            f"real.shape={tuple(real.shape)}"
        )
    _check_logits("real", real)
    check_alike("gan_loss", "real", real, "fake", fake)
    if kind == "relativistic" and real.shape != fake.shape:
        raise InputError(
            "gan_loss: expected real of the shape of fake for kind='relativistic', got "
            f"fake.shape={tuple(fake.shape)}, real.shape={tuple(real.shape)}"
        )


def _check_logits(name: str, logits: torch.Tensor) -> None:
    check_tensor("gan_loss", name, logits)
    if not logits.is_floating_point() or logits.numel() == 0:
        raise InputError(
            "gan_loss: expected at least one floating point logit, got "
            f"{name}.shape={tuple(logits.shape)}, {name}.dtype={logits.dtype}"
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
        count = fake.numel()
        if kind == "wasserstein" or (kind == "hinge" and role == "generator"):
            count = 0  # every slope of a side is the same number
        elif kind != "relativistic":
            count += (0 if real is None else real.numel()) + 2 * (kind == "relativistic_average")
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
