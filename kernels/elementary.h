// Elementary functions that the CPU and the CUDA compiler share by name. On the CPU the float ones
// are polynomials without branches or calls, so that a loop over them vectorises; CUDA and double
// use the library's.
#pragma once

#include <cmath>

#include "kernels/macros.h"

#if !defined(__CUDACC__)
#include "kernels/cpu/elementary.h"
#endif

namespace genfast {

// exp(-magnitude) for magnitude >= 0 or NaN.
GENFAST_INLINE double exp_of_minus(double magnitude) {
  return exp(-magnitude);
}

GENFAST_INLINE float exp_of_minus(float magnitude) {
#if defined(__CUDACC__)
  return expf(-magnitude);
#else
  return cpu::vector_exp_of_minus(magnitude);
#endif
}

// log(1 + t) for t in [0, 1] or NaN.
GENFAST_INLINE double log1p_of_unit(double t) {
  return log1p(t);
}

// On the CPU t P(t) with a relative minimax P, within 2 ulp.
GENFAST_INLINE float log1p_of_unit(float t) {
#if defined(__CUDACC__)
  return log1pf(t);
#else
  float p = -0.0032439807f;
  p = fused_multiply_add(p, t, 0.0198512617f);
  p = fused_multiply_add(p, t, -0.0569591597f);
  p = fused_multiply_add(p, t, 0.106036171f);
  p = fused_multiply_add(p, t, -0.153055698f);
  p = fused_multiply_add(p, t, 0.196759313f);
  p = fused_multiply_add(p, t, -0.249541327f);
  p = fused_multiply_add(p, t, 0.333299637f);
  p = fused_multiply_add(p, t, -0.499999017f);
  p = fused_multiply_add(p, t, 1.0f);
  return p * t;
#endif
}

}  // namespace genfast
