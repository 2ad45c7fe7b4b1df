// exp and expm1 that compilers can vectorise, for float; double goes to the C library.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/macros.h"
#include "kernels/philox.h"

namespace genfast::cpu {

// exp(x) = 2^n * exp(r), |r| <= ln(2) / 2, with 1 + r + r^2 Q(r) for exp(r): Q interpolates at
// Chebyshev nodes. Within 1.1 ulp of the true value; 0 and infinity where the result has no float,
// NaN for NaN.
GENFAST_INLINE float vector_exp(float x) {
  const float clamped = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;  // NaN passes through
  const float to_integer = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const float shifted = fused_multiply_add(clamped, 1.44269502f, to_integer);
  const float n = shifted - to_integer;
  const int32_t exponent =
      static_cast<int32_t>(float_to_bits(shifted)) - static_cast<int32_t>(0x4B400000);
  // ln(2) in two pieces; the first has trailing zeros, so that its product with n is exact.
  float r = fused_multiply_add(n, -0.693145751953125f, clamped);
  r = fused_multiply_add(n, -1.42860682e-06f, r);
  float q = 0.000198909809f;
  q = fused_multiply_add(q, r, 0.00139336416f);
  q = fused_multiply_add(q, r, 0.00833331048f);
  q = fused_multiply_add(q, r, 0.0416664667f);
  q = fused_multiply_add(q, r, 0.166666672f);
  q = fused_multiply_add(q, r, 0.5f);
  const float exp_r = fused_multiply_add(r * r, q, r) + 1.0f;
  // 2^n in two factors: n runs from -150 to 128, more than one float exponent holds.
  const int32_t half = exponent >> 1;
  const float scale_low = bits_to_float(static_cast<uint32_t>(half + 127) << 23);
  const float scale_high = bits_to_float(static_cast<uint32_t>(exponent - half + 127) << 23);
  return exp_r * scale_low * scale_high;
}

// The same bits for exp(-magnitude), magnitude >= 0 or NaN: 2^n is at most 1, so that one of its
// two factors may be a constant.
GENFAST_INLINE float vector_exp_of_minus(float magnitude) {
  const float clamped = magnitude > 104.0f ? -104.0f : -magnitude;  // NaN passes through
  const float to_integer = 0x1.8p23f;
  const float shifted = fused_multiply_add(clamped, 1.44269502f, to_integer);
  const float n = shifted - to_integer;
  float r = fused_multiply_add(n, -0.693145751953125f, clamped);
  r = fused_multiply_add(n, -1.42860682e-06f, r);
  float q = 0.000198909809f;
  q = fused_multiply_add(q, r, 0.00139336416f);
  q = fused_multiply_add(q, r, 0.00833331048f);
  q = fused_multiply_add(q, r, 0.0416664667f);
  q = fused_multiply_add(q, r, 0.166666672f);
  q = fused_multiply_add(q, r, 0.5f);
  const float exp_r = fused_multiply_add(r * r, q, r) + 1.0f;
  // 2^(n + 32), a normal number for n in [-150, 0]; the bits of `shifted` are those of n, moved.
  const float scale = bits_to_float((float_to_bits(shifted) - 0x4B400000u + 159u) << 23);
  return exp_r * scale * 0x1p-32f;
}

// exp(x) - 1: the Taylor series where the subtraction would cancel.
GENFAST_INLINE float vector_expm1(float x, float exp_x) {
  float p = 2.75573192e-07f;
  p = fused_multiply_add(p, x, 2.75573192e-06f);
  p = fused_multiply_add(p, x, 2.48015873e-05f);
  p = fused_multiply_add(p, x, 1.98412698e-04f);
  p = fused_multiply_add(p, x, 1.38888889e-03f);
  p = fused_multiply_add(p, x, 8.33333333e-03f);
  p = fused_multiply_add(p, x, 4.16666667e-02f);
  p = fused_multiply_add(p, x, 1.66666667e-01f);
  p = fused_multiply_add(p, x, 0.5f);
  const float series = fused_multiply_add(x * x, p, x);
  const float difference = exp_x - 1.0f;
  return x > -0.5f && x < 0.5f ? series : difference;
}

GENFAST_INLINE double vector_exp(double x) {
  return std::exp(x);
}
GENFAST_INLINE double vector_expm1(double x, double) {
  return std::expm1(x);
}

}  // namespace genfast::cpu
