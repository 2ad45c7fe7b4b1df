"""exp and expm1 in float32, accurate to about 2 ulp.

Triton's own `tl.exp` scales its argument once by log2(e), which costs one ulp for each unit of |x|.
"""

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """2^n * 2^f with n an integer and |f| <= 1/2, log2(e) in two pieces."""
    log2e = tl.full(x.shape, 1.44269502, tl.float32)
    rest = tl.full(x.shape, 1.92596303e-08, tl.float32)
    # Past these bounds the result is 0 or infinity anyway, and n * log2(e) stays exact.
    clamped = tl.minimum(tl.maximum(x, -150.0), 150.0)
    n = tl.floor(clamped * 1.44269502 + 0.5)
    f = tl.fma(clamped, rest, tl.fma(clamped, log2e, -n))
    # The last doubling apart: 2^128 is infinite in float32, its half times a number below 2 is not.
    scaled = tl.exp2(f) * tl.exp2(n - 1.0) * 2.0
    return tl.where(x == x, scaled, x)


@triton.jit
def expm1(x):
    """exp(x) - 1 by its series where the subtraction would cancel."""
    p = tl.full(x.shape, 2.75573192e-06, tl.float32)
    p = tl.fma(p, x, tl.full(x.shape, 2.48015873e-05, tl.float32))
    p = tl.fma(p, x, tl.full(x.shape, 1.98412698e-04, tl.float32))
    p = tl.fma(p, x, tl.full(x.shape, 1.38888889e-03, tl.float32))
    p = tl.fma(p, x, tl.full(x.shape, 8.33333333e-03, tl.float32))
    p = tl.fma(p, x, tl.full(x.shape, 4.16666667e-02, tl.float32))
    p = tl.fma(p, x, tl.full(x.shape, 1.66666667e-01, tl.float32))
    p = tl.fma(p, x, tl.full(x.shape, 0.5, tl.float32))
    series = tl.fma(x * x, p, x)
    return tl.where(tl.abs(x) < 0.5, series, exp(x) - 1.0)
