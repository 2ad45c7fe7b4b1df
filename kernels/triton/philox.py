"""Philox4x32-10 in Triton: the device functions that other kernels use, and the fill kernel.

The arithmetic is that of kernels/philox.h, step by step. Kernels that use it are launched with
`enable_fp_fusion=False`: what must be fused is written `tl.fma`, so that the numbers are those of
the C++ and CUDA kernels.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024  # stream elements per program, a multiple of the 4 lanes of a Philox block


@triton.jit
def philox_words(seed, o_block):
    """Four words for each counter block: 4 x [BLOCK / 4] uint32."""
    key0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    key1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = (o_block & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((o_block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    factor0 = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    factor1 = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    step0 = tl.full((), 0x9E3779B9, tl.uint32)
    step1 = tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(factor0, c0)
        high1 = tl.umulhi(factor1, c2)
        low0 = factor0 * c0
        low1 = factor1 * c2
        c0 = high1 ^ c1 ^ key0
        c1 = low1
        c2 = high0 ^ c3 ^ key1
        c3 = low0
        key0 = key0 + step0
        key1 = key1 + step1
    return c0, c1, c2, c3


@triton.jit
def uniform_from_bits(bits):
    """The upper 24 bits as a multiple of 2^-24 in [0, 1)."""
    return (bits >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _log_of_uniform(u):
    shifted = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = tl.full(f.shape, 0.0697161183, tl.float32)
    p = tl.fma(p, f, tl.full(f.shape, -0.114797339, tl.float32))
    p = tl.fma(p, f, tl.full(f.shape, 0.116854198, tl.float32))
    p = tl.fma(p, f, tl.full(f.shape, -0.124256872, tl.float32))
    p = tl.fma(p, f, tl.full(f.shape, 0.142490581, tl.float32))
    p = tl.fma(p, f, tl.full(f.shape, -0.166678026, tl.float32))
    p = tl.fma(p, f, tl.full(f.shape, 0.200007156, tl.float32))
    p = tl.fma(p, f, tl.full(f.shape, -0.24999997, tl.float32))
    p = tl.fma(p, f, tl.full(f.shape, 0.333333313, tl.float32))
    p = tl.fma(p, f, tl.full(f.shape, -0.5, tl.float32))
    log_mantissa = tl.fma(f * f, p, f)
    return tl.fma(exponent, tl.full(f.shape, 0.693147182, tl.float32), log_mantissa)


@triton.jit
def normal_pair_from_bits(radius_bits, angle_bits):
    """Two standard normals from two words."""
    high = (radius_bits >> 16).to(tl.int32).to(tl.float32)
    low = (radius_bits & 0xFFFF).to(tl.int32).to(tl.float32)
    bits = tl.fma(high, tl.full(high.shape, 65536.0, tl.float32), low)
    u = tl.fma(
        bits,
        tl.full(high.shape, 2.3283064365386963e-10, tl.float32),
        tl.full(high.shape, 1.1641532182693481e-10, tl.float32),
    )
    radius = tl.sqrt_rn(-2.0 * _log_of_uniform(u))

    quarter_turns = uniform_from_bits(angle_bits) * 4.0
    quadrant = (quarter_turns + 0.5).to(tl.int32)
    d = quarter_turns - quadrant.to(tl.float32)
    d2 = d * d
    s = tl.full(d.shape, 0.000158206298, tl.float32)
    s = tl.fma(s, d2, tl.full(d.shape, -0.00468126638, tl.float32))
    s = tl.fma(s, d2, tl.full(d.shape, 0.0796925798, tl.float32))
    s = tl.fma(s, d2, tl.full(d.shape, -0.645964086, tl.float32))
    s = tl.fma(s, d2, tl.full(d.shape, 1.57079637, tl.float32))
    sine = s * d
    c = tl.full(d.shape, 0.000903628068, tl.float32)
    c = tl.fma(c, d2, tl.full(d.shape, -0.0208600704, tl.float32))
    c = tl.fma(c, d2, tl.full(d.shape, 0.253669202, tl.float32))
    c = tl.fma(c, d2, tl.full(d.shape, -1.23370051, tl.float32))
    cosine = tl.fma(c, d2, tl.full(d.shape, 1.0, tl.float32))

    odd = (quadrant & 1) != 0
    a = tl.where(odd, sine, cosine)
    b = tl.where(odd, cosine, sine)
    x = tl.where(((quadrant + 1) & 2) != 0, -a, a)
    y = tl.where((quadrant & 2) != 0, -b, b)
    return radius * x, radius * y


@triton.jit
def interleave_lanes(lane0, lane1, lane2, lane3, BLOCK: tl.constexpr):
    """4 x [BLOCK / 4] -> [BLOCK], lane running fastest."""
    return tl.reshape(tl.join(tl.join(lane0, lane2), tl.join(lane1, lane3)), (BLOCK,))


@triton.jit
def normals(seed, first_block, BLOCK: tl.constexpr):
    """[BLOCK] standard normals: stream elements 4 * first_block, 4 * first_block + 1, ..."""
    o_block = first_block + tl.arange(0, BLOCK // 4).to(tl.int64)
    w0, w1, w2, w3 = philox_words(seed, o_block)
    n0, n1 = normal_pair_from_bits(w0, w1)
    n2, n3 = normal_pair_from_bits(w2, w3)
    return interleave_lanes(n0, n1, n2, n3, BLOCK)


@triton.jit
def uniforms(seed, first_block, BLOCK: tl.constexpr):
    """[BLOCK] uniforms in [0, 1): stream elements 4 * first_block, 4 * first_block + 1, ..."""
    o_block = first_block + tl.arange(0, BLOCK // 4).to(tl.int64)
    w0, w1, w2, w3 = philox_words(seed, o_block)
    return interleave_lanes(
        uniform_from_bits(w0),
        uniform_from_bits(w1),
        uniform_from_bits(w2),
        uniform_from_bits(w3),
        BLOCK,
    )


@triton.jit
def _philox_fill_kernel(
    out,  # [count], contiguous
    seed,  # [1] int64
    count,
    offset,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b_seed = tl.load(seed)
    first_block = (offset >> 2) + tl.program_id(0).to(tl.int64) * (BLOCK // 4)
    # int64 for every position: a stream may be longer than 2^31 elements.
    o_out = first_block * 4 + tl.arange(0, BLOCK).to(tl.int64) - offset
    if NORMAL:
        b_out = normals(b_seed, first_block, BLOCK)
    else:
        b_out = uniforms(b_seed, first_block, BLOCK)
    tl.store(out + o_out, b_out, mask=(o_out >= 0) & (o_out < count))


def philox_fill(out: torch.Tensor, seed: torch.Tensor, offset: int, normal: bool) -> None:
    """Fills contiguous `out` with stream elements offset, offset + 1, ... of `seed` (int64 [1])."""
    count = out.numel()
    if count == 0:
        return
    blocks = (offset + count + 3) // 4 - offset // 4
    _philox_fill_kernel[(triton.cdiv(blocks * 4, BLOCK),)](
        out,
        seed.to(out.device),
        count,
        offset,
        NORMAL=normal,
        BLOCK=BLOCK,
        enable_fp_fusion=False,
    )
