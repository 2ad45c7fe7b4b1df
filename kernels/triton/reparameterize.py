"""z = mu + exp(logvar / 2) * noise and the divergence per row, in Triton: one program per row."""

import math

import torch
import triton
import triton.language as tl

from .elementary import exp, expm1
from .philox import normals, philox_fill


@triton.jit
def _zero_or_product(factor, large):
    """0 for zero times infinity, which stands for a number too large for float32."""
    return tl.where((factor == 0) & (large == large), 0.0, factor * large)


@triton.jit
def _reparameterize_fwd_kernel(
    mu,  # [N, D], rows mu_stride_n elements apart
    logvar,  # [N, D], rows logvar_stride_n elements apart
    z,  # [N, D], contiguous
    kl,  # [N]
    seed,  # [1] int64
    offset,
    D,
    mu_stride_n,
    logvar_stride_n,
    beta,
    free_bits,
    HAS_FREE_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_n = tl.program_id(0).to(tl.int64)
    b_seed = tl.load(seed)
    row_start = offset + i_n * D
    first_block = row_start >> 2
    # A row may start inside a Philox block: the columns then begin below zero, masked out.
    b_kl = tl.zeros((BLOCK,), tl.float32)
    for i_d in range(0, D + 3, BLOCK):
        o_d = (first_block + i_d // 4) * 4 - row_start + tl.arange(0, BLOCK).to(tl.int64)
        m_d = (o_d >= 0) & (o_d < D)
        b_noise = normals(b_seed, first_block + i_d // 4, BLOCK)
        b_mu = tl.load(mu + i_n * mu_stride_n + o_d, mask=m_d, other=0).to(tl.float32)
        b_logvar = tl.load(logvar + i_n * logvar_stride_n + o_d, mask=m_d, other=0).to(tl.float32)
        b_z = b_mu + _zero_or_product(b_noise, exp(b_logvar * 0.5))
        tl.store(z + i_n * D + o_d, b_z.to(z.dtype.element_ty), mask=m_d)
        b_term = 0.5 * (b_mu * b_mu + expm1(b_logvar) - b_logvar)
        if HAS_FREE_BITS:
            b_term = tl.where(b_term <= free_bits, free_bits, b_term)  # NaN stays NaN
        b_kl += tl.where(m_d, b_term, 0.0)
    b_sum = _zero_or_product(beta, tl.sum(b_kl, 0))
    tl.store(kl + i_n, b_sum.to(kl.dtype.element_ty))


@triton.jit
def _reparameterize_bwd_kernel(
    grad_z,  # [N, D], contiguous; read if HAS_GRAD_Z
    grad_kl,  # [N]; read if HAS_GRAD_KL
    mu,  # [N, D], rows mu_stride_n elements apart
    logvar,  # [N, D], rows logvar_stride_n elements apart
    grad_mu,  # [N, D], contiguous
    grad_logvar,  # [N, D], contiguous
    seed,  # [1] int64
    offset,
    D,
    mu_stride_n,
    logvar_stride_n,
    beta,
    free_bits,
    HAS_GRAD_Z: tl.constexpr,
    HAS_GRAD_KL: tl.constexpr,
    HAS_FREE_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_n = tl.program_id(0).to(tl.int64)
    b_seed = tl.load(seed)
    row_start = offset + i_n * D
    first_block = row_start >> 2
    b_grad_kl = 0.0
    if HAS_GRAD_KL:
        b_grad_kl = tl.load(grad_kl + i_n).to(tl.float32) * beta
    for i_d in range(0, D + 3, BLOCK):
        o_d = (first_block + i_d // 4) * 4 - row_start + tl.arange(0, BLOCK).to(tl.int64)
        m_d = (o_d >= 0) & (o_d < D)
        b_noise = normals(b_seed, first_block + i_d // 4, BLOCK)
        b_mu = tl.load(mu + i_n * mu_stride_n + o_d, mask=m_d, other=0).to(tl.float32)
        b_logvar = tl.load(logvar + i_n * logvar_stride_n + o_d, mask=m_d, other=0).to(tl.float32)
        b_grad_z = tl.zeros((BLOCK,), tl.float32)
        if HAS_GRAD_Z:
            b_grad_z = tl.load(grad_z + i_n * D + o_d, mask=m_d, other=0).to(tl.float32)
        b_std = exp(b_logvar * 0.5)
        b_of_z = 0.5 * b_grad_z * b_noise
        if HAS_GRAD_KL:
            b_variance_minus_one = expm1(b_logvar)
            b_slope = tl.zeros((BLOCK,), tl.float32) + b_grad_kl
            if HAS_FREE_BITS:
                b_term = 0.5 * (b_mu * b_mu + b_variance_minus_one - b_logvar)
                b_slope = tl.where(b_term <= free_bits, 0.0, b_slope)
            b_grad_mu = b_grad_z + b_slope * b_mu
            b_of_kl = 0.5 * b_slope
            b_grad_logvar = b_of_z * b_std + b_of_kl * b_variance_minus_one
            # As kernels/reparameterize.h: no infinities of different signs.
            b_factored = _zero_or_product(b_of_z + _zero_or_product(b_of_kl, b_std), b_std)
            b_grad_logvar = tl.where(
                b_variance_minus_one == float("inf"), b_factored, b_grad_logvar
            )
        else:
            b_grad_mu = b_grad_z
            b_grad_logvar = _zero_or_product(b_of_z, b_std)
        tl.store(grad_mu + i_n * D + o_d, b_grad_mu.to(grad_mu.dtype.element_ty), mask=m_d)
        tl.store(
            grad_logvar + i_n * D + o_d, b_grad_logvar.to(grad_logvar.dtype.element_ty), mask=m_d
        )


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as [N, D] with contiguous rows; copies only where rows are not contiguous."""
    matrix = tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()


def _block(D: int) -> int:
    # D + 3: the first column may be lane 3 of its Philox block.
    return max(16, min(1024, triton.next_power_of_2(D + 3)))


def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    seed: torch.Tensor,
    offset: int,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward launcher, with the op's own signature."""
    z = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
    kl = mu.new_empty(mu.shape[:1])
    if mu.dtype == torch.float64:  # for gradcheck: precision matters there, not speed
        noise = _float64_noise(mu, seed, offset)
        variance_minus_one = torch.expm1(logvar)
        terms = 0.5 * (mu.square() + variance_minus_one - logvar)
        if free_bits > 0:
            terms = torch.where(terms <= free_bits, free_bits, terms)
        z = mu + _zero_or_product_64(noise, torch.exp(logvar / 2))
        return z, _zero_or_product_64(mu.new_tensor(beta), _rows(terms).sum(1))
    if mu.numel() == 0:
        return z, kl.zero_()
    mu_rows, logvar_rows = _rows(mu), _rows(logvar)
    N, D = mu_rows.shape
    _reparameterize_fwd_kernel[(N,)](
        mu_rows,
        logvar_rows,
        z,
        kl,
        seed.to(mu.device),
        offset,
        D,
        mu_rows.stride(0),
        logvar_rows.stride(0),
        float(beta),
        float(free_bits),
        HAS_FREE_BITS=free_bits > 0,
        BLOCK=_block(D),
        enable_fp_fusion=False,
    )
    return z, kl


def reparameterize_backward(
    grad_z: torch.Tensor | None,
    grad_kl: torch.Tensor | None,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    seed: torch.Tensor,
    offset: int,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Backward launcher, with the op's own signature; a missing gradient adds no term."""
    grad_mu = torch.zeros(mu.shape, dtype=mu.dtype, device=mu.device)
    grad_logvar = torch.zeros_like(grad_mu)
    if mu.dtype == torch.float64:
        noise = _float64_noise(mu, seed, offset)
        std = torch.exp(logvar / 2)
        of_z = grad_mu if grad_z is None else 0.5 * grad_z * noise
        if grad_kl is None:
            return grad_mu if grad_z is None else grad_z.clone(), _zero_or_product_64(of_z, std)
        slope = beta * grad_kl.reshape(-1, *(1,) * (mu.dim() - 1)).expand_as(mu)
        variance_minus_one = torch.expm1(logvar)
        if free_bits > 0:
            terms = 0.5 * (mu.square() + variance_minus_one - logvar)
            slope = torch.where(terms <= free_bits, 0.0, slope)
        factored = _zero_or_product_64(of_z + _zero_or_product_64(0.5 * slope, std), std)
        both = of_z * std + 0.5 * slope * variance_minus_one
        grad_logvar = torch.where(variance_minus_one == math.inf, factored, both)
        grad_mu = slope * mu if grad_z is None else grad_z + slope * mu
        return grad_mu, grad_logvar
    if mu.numel() == 0:
        return grad_mu, grad_logvar
    mu_rows, logvar_rows = _rows(mu), _rows(logvar)
    N, D = mu_rows.shape
    _reparameterize_bwd_kernel[(N,)](
        mu if grad_z is None else grad_z.contiguous(),
        mu if grad_kl is None else grad_kl.contiguous(),
        mu_rows,
        logvar_rows,
        grad_mu,
        grad_logvar,
        seed.to(mu.device),
        offset,
        D,
        mu_rows.stride(0),
        logvar_rows.stride(0),
        float(beta),
        float(free_bits),
        HAS_GRAD_Z=grad_z is not None,
        HAS_GRAD_KL=grad_kl is not None,
        HAS_FREE_BITS=free_bits > 0,
        BLOCK=_block(D),
        enable_fp_fusion=False,
    )
    return grad_mu, grad_logvar


def _zero_or_product_64(factor: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    return torch.where((factor == 0) & (large == large), 0.0, factor * large)


def _float64_noise(mu: torch.Tensor, seed: torch.Tensor, offset: int) -> torch.Tensor:
    noise = torch.empty(mu.shape, dtype=torch.float32, device=mu.device)
    philox_fill(noise, seed, offset, normal=True)
    return noise.double()
