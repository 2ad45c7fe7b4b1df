"""Penalties on the discriminator's gradient with respect to its input."""

from collections.abc import Callable

import torch
from torch import Tensor

Critic = Callable[[Tensor], Tensor]


def gradient_penalty(discriminator: Critic, real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean of (|grad D(x)| - 1)^2 at random points x between real and generated images.

    Source: Gulrajani et al. 2017, equation 3. Differentiable in the discriminator's parameters.
    """
    t = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    between = torch.lerp(fake, real, t)
    # The square root has no gradient at 0; the smallest normal number leaves any other norm alone.
    norm = _squared_gradient(discriminator, between).clamp_min(torch.finfo(real.dtype).tiny).sqrt()
    return (norm - 1).square().mean()


def r1_penalty(discriminator: Critic, real: Tensor) -> Tensor:
    """Return the mean of |grad D(x)|^2 at real images.

    Source: Mescheder et al. 2018, equation 9. Differentiable in the discriminator's parameters.
    """
    return _squared_gradient(discriminator, real).mean()


def _squared_gradient(discriminator: Critic, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(dim=1)
