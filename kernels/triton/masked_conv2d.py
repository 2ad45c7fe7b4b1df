"""masked_conv2d and its gradients in Triton: matrix products whose patches are gathered on the fly.

The output and the gradient of the input are one kernel, with a row for each pixel produced and the
live taps times the channels as depth; the gradient of the weight is the other. Products of half
types take the tensor cores; those of float32 too, in TF32, where `torch.backends.cudnn.allow_tf32`
says that convolutions may.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

_BLOCK_PIXELS = 128
_BLOCK_ROWS = 64
_SPLIT_PIXELS = 4096  # that one program of the weight's gradient sums up
_MOST_PARTIAL = 1 << 26  # elements that all its splits may take


@triton.jit
def _correlate_kernel(
    image,  # [N, groups * K, in_h, in_w]
    packed,  # [groups, taps, K, M]
    bias,  # [groups * M]; read if HAS_BIAS
    out,  # [N, groups * M, grid_h, grid_w]
    taps,  # [taps, 2]: row and column of the kernel
    tap_count,
    pixels,  # N * grid_h * grid_w
    grid_h,
    grid_w,
    in_h,
    in_w,
    K,
    M,
    grid_step_h,  # the pixel that a tap meets is
    grid_step_w,  # (position * grid_step + tap * tap_step + first) / DIVISOR,
    tap_step_h,  # where that is an integer
    tap_step_w,
    first_h,
    first_w,
    HAS_BIAS: tl.constexpr,
    DIVISOR_H: tl.constexpr,
    DIVISOR_W: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    i_p, i_m, i_g = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    groups = tl.num_programs(2)
    if WIDE:
        i_p, i_g = i_p.to(tl.int64), i_g.to(tl.int64)
    in_plane = in_h * in_w
    out_plane = grid_h * grid_w
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < pixels
    o_n = o_p // out_plane
    o_i = o_p % out_plane // grid_w
    o_j = o_p % grid_w
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    b_sum = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
    for t in range(tap_count):
        h = o_i * grid_step_h + tl.load(taps + 2 * t) * tap_step_h + first_h
        w = o_j * grid_step_w + tl.load(taps + 2 * t + 1) * tap_step_w + first_w
        m_x = m_p & (h >= 0) & (w >= 0)
        if DIVISOR_H != 1:
            m_x = m_x & (h % DIVISOR_H == 0)
            h = h // DIVISOR_H
        if DIVISOR_W != 1:
            m_x = m_x & (w % DIVISOR_W == 0)
            w = w // DIVISOR_W
        m_x = m_x & (h < in_h) & (w < in_w)
        o_x = (o_n * groups + i_g) * K * in_plane + h * in_w + w
        for k in range(0, K, BLOCK_K):
            o_k = k + tl.arange(0, BLOCK_K)
            m_k = o_k < K
            b_x = tl.load(
                image + o_x[:, None] + o_k[None, :] * in_plane,
                mask=m_x[:, None] & m_k[None, :],
                other=0.0,
            )
            o_w = (i_g * tap_count + t) * K + o_k
            b_w = tl.load(
                packed + o_w[:, None] * M + o_m[None, :],
                mask=m_k[:, None] & m_m[None, :],
                other=0.0,
            )
            b_sum = tl.dot(b_x, b_w, b_sum, input_precision=PRECISION)
    if HAS_BIAS:
        b_sum += tl.load(bias + i_g * M + o_m, mask=m_m, other=0.0).to(tl.float32)[None, :]
    o_out = (o_n * groups + i_g) * M * out_plane + o_i * grid_w + o_j
    tl.store(
        out + o_out[:, None] + o_m[None, :] * out_plane,
        b_sum.to(out.dtype.element_ty),
        mask=m_p[:, None] & m_m[None, :],
    )


@triton.jit
def _grad_weight_kernel(
    image,  # [N, groups * K, in_h, in_w]
    grad,  # [N, groups * M, grid_h, grid_w]
    partial,  # [splits, groups, taps * K, M]
    taps,  # [taps, 2]: row and column of the kernel
    tap_count,
    pixels,  # N * grid_h * grid_w
    split_pixels,
    groups,
    grid_h,
    grid_w,
    in_h,
    in_w,
    K,
    M,
    grid_step_h,
    grid_step_w,
    tap_step_h,
    tap_step_w,
    first_h,
    first_w,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    i_r, i_m, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if WIDE:
        i_r, i_b = i_r.to(tl.int64), i_b.to(tl.int64)
    i_s, i_g = i_b // groups, i_b % groups
    in_plane = in_h * in_w
    out_plane = grid_h * grid_w
    rows = tap_count * K
    o_r = i_r * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < rows
    o_k = o_r % K
    tap_h = tl.load(taps + 2 * (o_r // K), mask=m_r, other=0) * tap_step_h + first_h
    tap_w = tl.load(taps + 2 * (o_r // K) + 1, mask=m_r, other=0) * tap_step_w + first_w
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    begin = i_s * split_pixels
    end = tl.minimum(begin + split_pixels, pixels)
    b_sum = tl.zeros((BLOCK_R, BLOCK_M), tl.float32)
    for p in range(begin, end, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < end
        o_n = o_p // out_plane
        o_i = o_p % out_plane // grid_w
        o_j = o_p % grid_w
        h = (o_i * grid_step_h)[None, :] + tap_h[:, None]
        w = (o_j * grid_step_w)[None, :] + tap_w[:, None]
        m_x = m_r[:, None] & m_p[None, :] & (h >= 0) & (h < in_h) & (w >= 0) & (w < in_w)
        o_x = ((o_n * groups + i_g) * K)[None, :] + o_k[:, None]
        b_x = tl.load(image + o_x * in_plane + h * in_w + w, mask=m_x, other=0.0)
        o_grad = (o_n * groups + i_g) * M * out_plane + o_i * grid_w + o_j
        b_grad = tl.load(
            grad + o_grad[:, None] + o_m[None, :] * out_plane,
            mask=m_p[:, None] & m_m[None, :],
            other=0.0,
        )
        b_sum = tl.dot(b_x, b_grad, b_sum, input_precision=PRECISION)
    o_partial = (i_b * rows + o_r) * M
    tl.store(partial + o_partial[:, None] + o_m[None, :], b_sum, mask=m_r[:, None] & m_m[None, :])


def masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    taps: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Forward launcher, with the op's own signature."""
    live = _live(taps, mask, weight.shape)
    masked = _masked(weight, mask)
    left, right, top, bottom = padding
    kH, kW = weight.shape[2:]
    H = (x.shape[2] + top + bottom - dilation[0] * (kH - 1) - 1) // stride[0] + 1
    W = (x.shape[3] + left + right - dilation[1] * (kW - 1) - 1) // stride[1] + 1
    if x.dtype == torch.float64:  # for gradcheck: precision matters there, not speed
        open_only = torch.zeros_like(masked).flatten(2)
        open_only[..., live] = masked.flatten(2)[..., live]
        padded = F.pad(x, tuple(padding))
        return F.conv2d(padded, open_only.view_as(masked), bias, stride, 0, dilation, groups)
    packed = _pack(masked, live, groups, transposed=False)
    out = x.new_empty((x.shape[0], weight.shape[0], H, W))
    walk = (stride[0], stride[1], dilation[0], dilation[1], -top, -left)
    _correlate(x.contiguous(), packed, bias, out, _positions(tuple(live), kW, x.device), walk, 1, 1)
    return out


def masked_conv2d_grad_input(
    grad: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    taps: Sequence[int] | None,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Launcher of the gradient by x, with the op's own signature."""
    if grad.dtype == torch.float64:
        size = (grad.shape[0], weight.shape[1] * groups, *input_size)
        x = grad.new_zeros(size).requires_grad_()
        with torch.enable_grad():
            out = masked_conv2d(x, weight, mask, None, taps, stride, padding, dilation, groups)
        return torch.autograd.grad(out, x, grad)[0]
    live = _live(taps, mask, weight.shape)
    packed = _pack(_masked(weight, mask), live, groups, transposed=True)
    grad_x = grad.new_empty((grad.shape[0], weight.shape[1] * groups, *input_size))
    positions = _positions(tuple(live), weight.shape[3], grad.device)
    walk = (1, 1, -dilation[0], -dilation[1], padding[2], padding[0])
    _correlate(grad.contiguous(), packed, None, grad_x, positions, walk, stride[0], stride[1])
    return grad_x


def masked_conv2d_grad_weight(
    grad: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor,
    taps: Sequence[int] | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Launcher of the gradient by the weight, with the op's own signature."""
    C_out, C_in = grad.shape[1], x.shape[1] // groups
    shape = torch.Size((C_out, C_in, *kernel_size))
    if grad.dtype == torch.float64:
        weight = grad.new_zeros(shape).requires_grad_()
        with torch.enable_grad():
            out = masked_conv2d(x, weight, mask, None, taps, stride, padding, dilation, groups)
        return torch.autograd.grad(out, weight, grad)[0]
    live = _live(taps, mask, shape)
    result = grad.new_zeros(shape)
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    if not live or pixels == 0 or x.numel() == 0:
        return result
    K, M, T = C_in, C_out // groups, len(live)
    most = max(1, _MOST_PARTIAL // (C_out * C_in * T))
    splits = min(max(1, pixels // _SPLIT_PIXELS), most)
    split_pixels = triton.cdiv(pixels, splits)
    partial = grad.new_empty((splits, groups, T, K, M), dtype=torch.float32)
    block_m = _block(M, 64)
    grid = (triton.cdiv(T * K, _BLOCK_ROWS), triton.cdiv(M, block_m), splits * groups)
    _grad_weight_kernel[grid](
        x.contiguous(),
        grad.contiguous(),
        partial,
        _positions(tuple(live), kernel_size[1], x.device),
        T,
        pixels,
        split_pixels,
        groups,
        *grad.shape[2:],
        *x.shape[2:],
        K,
        M,
        *(stride[0], stride[1], dilation[0], dilation[1], -padding[2], -padding[0]),
        WIDE=max(x.numel(), grad.numel(), partial.numel()) >= 2**31,
        PRECISION=_precision(x),
        BLOCK_R=_BLOCK_ROWS,
        BLOCK_P=32,
        BLOCK_M=block_m,
    )
    of_taps = partial.sum(0).permute(0, 3, 2, 1).reshape(C_out, C_in, T)
    full = torch.zeros(shape, dtype=torch.float32, device=x.device).flatten(2)
    full[..., live] = of_taps
    result.copy_(_masked(full.view(shape), mask))
    return result


def _correlate(
    image: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    positions: torch.Tensor,
    walk: Sequence[int],
    divisor_h: int,
    divisor_w: int,
) -> None:
    groups, T, K, M = packed.shape
    pixels = out.shape[0] * out.shape[2] * out.shape[3]
    if pixels == 0:
        return
    block_m = _block(M, 128)
    grid = (triton.cdiv(pixels, _BLOCK_PIXELS), triton.cdiv(M, block_m), groups)
    _correlate_kernel[grid](
        image,
        packed,
        image if bias is None else bias.contiguous(),
        out,
        positions,
        T,
        pixels,
        *out.shape[2:],
        *image.shape[2:],
        K,
        M,
        *walk,
        HAS_BIAS=bias is not None,
        DIVISOR_H=divisor_h,
        DIVISOR_W=divisor_w,
        WIDE=max(image.numel(), out.numel()) >= 2**31,
        PRECISION=_precision(image),
        BLOCK_P=_BLOCK_PIXELS,
        BLOCK_K=_block(K, 32),
        BLOCK_M=block_m,
    )


def _masked(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask != 0, weight * mask.to(weight.dtype), 0)


def _pack(
    masked: torch.Tensor, live: Sequence[int], groups: int, *, transposed: bool
) -> torch.Tensor:
    """[groups, taps, K, M] of the live taps, with K the channels summed over."""
    taps = masked.flatten(2)[..., list(live)]
    taps = taps.view(groups, taps.shape[0] // groups, *taps.shape[1:])  # groups, C_out, C_in, taps
    return taps.permute((0, 3, 1, 2) if transposed else (0, 3, 2, 1)).contiguous()


def _live(taps: Sequence[int] | None, mask: torch.Tensor, weight: torch.Size) -> list[int]:
    if taps is not None:
        return list(taps)
    open_somewhere = (mask != 0).expand(weight).flatten(0, 1).flatten(1).any(0)
    return open_somewhere.nonzero().flatten().tolist()  # waits for the device


@functools.lru_cache(maxsize=256)
def _positions(live: tuple[int, ...], kW: int, device: torch.device) -> torch.Tensor:
    """[taps, 2] on the device: made once, so that later calls copy nothing to it."""
    pairs = [[tap // kW, tap % kW] for tap in live] or [[0, 0]]
    return torch.tensor(pairs, dtype=torch.int32, device=device)


def _precision(tensor: torch.Tensor) -> str:
    relaxed = tensor.dtype != torch.float32 or torch.backends.cudnn.allow_tf32
    return "tf32" if relaxed else "ieee"


def _block(size: int, most: int) -> int:
    return max(16, min(most, triton.next_power_of_2(size)))
