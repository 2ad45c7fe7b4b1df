// The exponentials of a gate on vectors, for float and double.
#pragma once

#include "kernels/cpu/vector_math.h"
#include "kernels/gated_activation.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
struct ExpOfNegative {
  Vector<scalar_t> less1;  // exp(x) - 1
  Vector<scalar_t> value;  // exp(x)
};

// For x <= 0 or NaN, as `exp_parts` does it: without large results one factor 2^n is enough, and a
// result below the normal numbers is 0.
template <typename scalar_t>
GENFAST_INLINE ExpOfNegative<scalar_t> exp_of_negative(Vector<scalar_t> x) {
  using C = ExpConstants<scalar_t>;
  using V = Vector<scalar_t>;
  // Here n is one less than the least exponent, which as a bit pattern is the factor 0.
  const V lowest = broadcast(scalar_t(sizeof(scalar_t) == 4 ? -88 : -709));
  x = select<scalar_t>(x < lowest, lowest, x);  // NaN passes through
  const V shift = broadcast(C::kShift);
  const V shifted = fused_multiply_add(x, broadcast(C::kLog2e), shift);
  const V n = shifted - shift;
  V r = fused_multiply_add(n, broadcast(-C::kLn2High), x);
  r = fused_multiply_add(n, broadcast(-C::kLn2Low), r);
  V q = broadcast(C::kSeries[0]);
#pragma GCC unroll 16
  for (int i = 1; i < C::kTerms; ++i) q = fused_multiply_add(q, r, broadcast(C::kSeries[i]));
  const V p = fused_multiply_add(r * r, q, r);
  IndexVector<scalar_t> bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + C::kBias) << C::kMantissa;  // of the shift itself nothing is left
  V scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return {fused_multiply_add(p, scale, scale - scalar_t(1)), fused_multiply_add(p, scale, scale)};
}

template <typename scalar_t>
GENFAST_INLINE GateExponentials<Vector<scalar_t>> gate_exponentials(Vector<scalar_t> a,
                                                                    Vector<scalar_t> b) {
  const auto of_a = exp_of_negative<scalar_t>(absolute<scalar_t>(a) * scalar_t(-2));
  const auto of_b = exp_of_negative<scalar_t>(-absolute<scalar_t>(b));
  return {of_a.value, of_a.less1, of_b.value};
}

}  // namespace
}  // namespace genfast::cpu
