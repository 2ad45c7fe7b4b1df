"""The reparameterization of a Gaussian latent and its divergence from the prior, in one pass.

Sources: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, section 2.4, appendix B;
beta, Higgins et al., "beta-VAE", ICLR 2017, equation 4; free bits, Kingma et al., "Improved
variational inference with inverse autoregressive flow", NIPS 2016, appendix C.8.
"""

import torch

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError
from genfast.ops._checks import check_alike, check_finite, check_tensor
from genfast.ops.philox import philox_reference
from genfast.random import as_seed, check_offset


def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws z from N(mu, exp(logvar)) and returns the KL divergence from N(0, 1) with it.

    1. noise[n, d] = element offset + n*D + d of the Philox stream of the seed
    2. z = mu + exp(logvar / 2) * noise
    3. kl_nd = (mu^2 + exp(logvar) - 1 - logvar) / 2, the divergence of one latent dimension
    4. kl[n] = beta * sum over d of max(free_bits, kl_nd)

    With the defaults this is `mu + torch.exp(logvar / 2) * torch.randn_like(mu)` and the usual KL
    sum; the noise is made again in the backward pass instead of being stored.

    What is too large for float32 (float64 for float64) is infinite, with the sign that it has: z
    and its gradient beyond a log-variance of 177, kl and its gradient beyond 88 (1419 and 709 in
    float64; the gradient of a small loss holds out longer). No value and no gradient is NaN unless
    an argument is NaN or infinite, and the gradient of one output alone does not see the other.
    Plain PyTorch, the reference too, has NaN where infinities of different signs meet, or zero and
    infinity.

    Free bits keep an encoder from giving up dimensions: below free_bits kl has no slope. Here each
    example and each dimension has its own allowance. Kingma et al. (2016) instead take the maximum
    of free_bits and the mean over the batch of the divergence of a group of dimensions, so that
    examples share an allowance; that loss couples the examples and is not what this op computes.

    Args:
        mu: Means [N, ...], floating point. Rows may lie apart (a half of a split tensor is fine).
        logvar: Log-variances, shape, dtype and device of `mu`; under autocast, which computes in
            float32, of any dtype but float64.
        beta: Weight of the divergence, finite, at least 0.
        free_bits: Divergence that costs the same whether used or not, in nats per latent dimension
            and example, finite, at least 0. With 0 no maximum is taken.
        generator: Where a missing seed comes from; default: torch's CPU generator, on every device,
            so that `torch.manual_seed` means the same noise everywhere.
        seed: Stream to use instead, in [0, 2**63).
        offset: Position of the first noise element in the stream, in elements. A batch split in two
            gives the same z when the second call's offset is the first one's number of elements.

    Returns:
        z: shape and dtype of `mu`.
        kl: [N], nats (times beta), dtype of `mu`. Both differentiable once in mu and logvar; the
            gradient of kl is zero where kl_nd <= free_bits > 0.

    Raises:
        InputError: if shapes, dtypes or devices differ, beta or free_bits is negative or not
            finite, or seed and generator are both given.
    """
    _check_arguments(mu, logvar)
    check_finite("reparameterize", "beta", beta)
    check_finite("reparameterize", "free_bits", free_bits)
    check_offset("reparameterize", offset, mu.numel())
    seed_tensor = as_seed("reparameterize", seed, generator)
    if has_kernel("reparameterize", mu.device):
        # `.default`: choosing the overload takes longer than the noise of a small batch.
        op = torch.ops.genfast.reparameterize.default
        z, kl = op(mu, logvar, seed_tensor, offset, beta, free_bits)
        return z, kl
    return reparameterize_reference(mu, logvar, seed_tensor, offset, beta, free_bits)


def reparameterize_reference(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    seed: torch.Tensor,
    offset: int = 0,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`reparameterize` in plain PyTorch, with the same noise; differentiable to any order.

    Args:
        mu: [N, ...].
        logvar: [N, ...].
        seed: int64 tensor [1].
        offset: Stream position of the first noise element.
        beta: Weight of the divergence.
        free_bits: Nats per latent dimension and example.
    """
    noise = philox_reference(mu.shape, seed, offset, normal=True).to(mu)
    z = mu + torch.exp(logvar / 2) * noise
    kl = 0.5 * (mu.square() + torch.expm1(logvar) - logvar)
    if free_bits > 0:
        kl = torch.where(kl <= free_bits, free_bits, kl)  # NaN stays NaN
    return z, beta * (kl.flatten(1).sum(1) if kl.dim() > 1 else kl)


def _check_arguments(mu: torch.Tensor, logvar: torch.Tensor) -> None:
    check_tensor("reparameterize", "mu", mu)
    check_tensor("reparameterize", "logvar", logvar)
    if not mu.is_floating_point() or mu.dim() == 0:
        raise InputError(
            "reparameterize: expected floating point mu of shape [N, ...], "
            f"got mu.shape={tuple(mu.shape)}, mu.dtype={mu.dtype}"
        )
    if mu.shape != logvar.shape:
        raise InputError(
            f"reparameterize: expected logvar of the shape of mu {tuple(mu.shape)}, got "
            f"logvar.shape={tuple(logvar.shape)}"
        )
    check_alike("reparameterize", "logvar", logvar, "mu", mu)


if loaded():

    @torch.library.register_fake("genfast::reparameterize")
    def _reparameterize_fake(
        mu: torch.Tensor,
        logvar: torch.Tensor,
        seed: torch.Tensor,
        offset: int,
        beta: float = 1.0,
        free_bits: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return mu.new_empty(mu.shape), mu.new_empty(mu.shape[:1])

    @torch.library.register_fake("genfast::_reparameterize_backward")
    def _reparameterize_backward_fake(
        grad_z: torch.Tensor | None,
        grad_kl: torch.Tensor | None,
        mu: torch.Tensor,
        logvar: torch.Tensor,
        seed: torch.Tensor,
        offset: int,
        beta: float = 1.0,
        free_bits: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return mu.new_empty(mu.shape), mu.new_empty(mu.shape)

    for _device in ("cpu", "cuda"):
        torch.library.register_autocast("genfast::reparameterize", _device, torch.float32)
