"""What the tests of gan_loss share: every loss, logits, and what a loss must equal."""

import torch

from genfast.ops import gan_loss_reference
from tests.tolerances import assert_as_accurate_as_eager

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# (fake, real): scalars, odd, prime, patches, more than one chunk of the CPU kernel.
SHAPES = [((), ()), ((1, 1), (1, 1)), ((7,), (64, 1)), ((5, 1, 3, 3), (13,)), ((20_011,), (8_193,))]
RELATIVISTIC = ["relativistic", "relativistic_average"]
SEPARATE = ["minimax", "non_saturating", "least_squares", "wasserstein", "hinge"]
KINDS = [*SEPARATE, *RELATIVISTIC]
SMOOTHABLE = [*SEPARATE[:3], *RELATIVISTIC]
# (kind, role, label_smoothing)
LOSSES = [
    *((kind, role, 0.0) for kind in KINDS for role in ("discriminator", "generator")),
    *((kind, "discriminator", 0.1) for kind in SMOOTHABLE),
]


def sides(kind, role) -> int:
    """How many tensors of logits a loss takes."""
    return 1 if role == "generator" and kind not in RELATIVISTIC else 2


def samples(
    shapes, kind="hinge", role="discriminator", dtype=torch.float32, device="cpu", scale=4.0
) -> list[torch.Tensor]:
    """Logits [fake] or [fake, real] that require gradients."""
    given = shapes[: sides(kind, role)]
    if kind == "relativistic":
        given = [shapes[0], shapes[0]]
    logits = [scale * torch.randn(shape, dtype=torch.float64) for shape in given]
    return [x.to(dtype=dtype, device=device).requires_grad_() for x in logits]


def loss_of(function, logits, kind, role, smoothing) -> torch.Tensor:
    real = logits[1] if len(logits) == 2 else None
    return function(fake=logits[0], real=real, kind=kind, role=role, label_smoothing=smoothing)


def loss_and_gradients(function, logits, *loss) -> tuple[torch.Tensor, ...]:
    value = loss_of(function, logits, *loss)
    return value, *torch.autograd.grad(value, logits)


def eager_and_exact(logits, *loss):
    """The reference at the dtype of the logits and in float64."""
    plain = [x.detach().cpu().requires_grad_() for x in logits]
    double = [x.detach().cpu().double().requires_grad_() for x in logits]
    return (
        loss_and_gradients(gan_loss_reference, plain, *loss),
        loss_and_gradients(gan_loss_reference, double, *loss),
    )


def assert_match(ours, eager, exact) -> None:
    for results in zip(ours, eager, exact, strict=True):
        assert_as_accurate_as_eager(*(result.detach().cpu() for result in results))


def loss_by_definition(logits, kind: str, role: str, smoothing: float) -> torch.Tensor:
    """The loss as the papers write it; float64 and moderate logits only."""
    if kind not in RELATIVISTIC:
        named = zip(logits, ("fake", "real"), strict=False)
        return sum(definition(x, kind, role, side, smoothing).mean() for x, side in named)
    fake, real = logits if role == "discriminator" else reversed(logits)
    target = 1 - smoothing
    bce = torch.nn.functional.binary_cross_entropy
    if kind == "relativistic":
        p = torch.sigmoid(real - fake)
        return bce(p, torch.full_like(p, target))
    p = torch.sigmoid(real - fake.mean())
    q = torch.sigmoid(fake - real.mean())
    return bce(p, torch.full_like(p, target)) + bce(q, torch.zeros_like(q))


def definition(x: torch.Tensor, kind: str, role: str, side: str, smoothing: float) -> torch.Tensor:
    """A term as the papers write it, on probabilities; float64 and moderate logits only."""
    target = 1 - smoothing if side == "real" else 0
    p = torch.sigmoid(x)
    if kind == "wasserstein" or (kind == "hinge" and role == "generator"):
        return x if (role, side) == ("discriminator", "fake") else -x
    if kind == "hinge":
        return torch.clamp(1 - x if side == "real" else 1 + x, min=0)
    if kind == "least_squares":
        return 0.5 * (x - (1 if role == "generator" else target)) ** 2
    if role == "generator":
        return torch.log(1 - p) if kind == "minimax" else -torch.log(p)
    return -target * torch.log(p) - (1 - target) * torch.log(1 - p)
