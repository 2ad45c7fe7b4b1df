// Elementary functions for the inner loops of losses. For float on the CPU they are polynomials
// without branches or calls, so that the compiler vectorises a loop over them at every SIMD level;
// CUDA and double use the library's.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/macros.h"

namespace genfast {

#if !defined(__CUDA_ARCH__)
// Fused where the processor has it: without the instruction a fused product is a library call.
GENFAST_INLINE float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// 2^exponent for exponent in [-126, 127].
GENFAST_INLINE float power_of_two(int32_t exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
#endif

// exp(-magnitude) for magnitude >= 0 or NaN.
GENFAST_INLINE double exp_of_minus(double magnitude) {
  return exp(-magnitude);
}

// Within 1 ulp, subnormal results too: magnitude = -n ln 2 - r with |r| <= ln 2 / 2, then
// exp(r) = 1 + r + r^2 P(r) with a relative minimax P, times 2^n in two steps, because 2^n alone
// may underflow.
GENFAST_INLINE float exp_of_minus(float magnitude) {
#if defined(__CUDA_ARCH__)
  return expf(-magnitude);
#else
  const float x = magnitude > 105.0f ? -105.0f : -magnitude;  // exp(-105) is 0; NaN stays NaN
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits: no conversion, which
  // would be undefined for NaN.
  const float shifted = multiply_add(x, 1.44269502f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  float r = multiply_add(n, -0x1.63p-1f, x);
  r = multiply_add(n, 2.12194440e-4f, r);
  float p = 0.00139012805f;
  p = multiply_add(p, r, 0.00836314075f);
  p = multiply_add(p, r, 0.0416668542f);
  p = multiply_add(p, r, 0.166665778f);
  p = multiply_add(p, r, 0.5f);
  p = multiply_add(p * r, r, r);
  int32_t exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof(exponent));
  exponent -= 0x4B400000;  // the bits of 1.5 * 2^23
  const int32_t half = exponent >> 1;
  return (1.0f + p) * power_of_two(half) * power_of_two(exponent - half);
#endif
}

// log(1 + t) for t in [0, 1] or NaN.
GENFAST_INLINE double log1p_of_unit(double t) {
  return log1p(t);
}

// Within 2 ulp: t P(t) with a relative minimax P.
GENFAST_INLINE float log1p_of_unit(float t) {
#if defined(__CUDA_ARCH__)
  return log1pf(t);
#else
  float p = -0.0032439807f;
  p = multiply_add(p, t, 0.0198512617f);
  p = multiply_add(p, t, -0.0569591597f);
  p = multiply_add(p, t, 0.106036171f);
  p = multiply_add(p, t, -0.153055698f);
  p = multiply_add(p, t, 0.196759313f);
  p = multiply_add(p, t, -0.249541327f);
  p = multiply_add(p, t, 0.333299637f);
  p = multiply_add(p, t, -0.499999017f);
  p = multiply_add(p, t, 1.0f);
  return p * t;
#endif
}

}  // namespace genfast
