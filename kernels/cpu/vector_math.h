// Elementary functions on vectors, for float and double: a few ulp, and the same bits at every
// SIMD level, because they are made of correctly rounded operations in one order.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cpu/vector.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
using IndexVector = typename VectorOf<scalar_t>::index;

// a * b + c rounded once, on every processor: results are compared bit for bit between levels.
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> multiply_add(Vector<scalar_t> a, Vector<scalar_t> b,
                                             Vector<scalar_t> c) {
#if defined(__AVX512F__) || defined(__FMA__)
  return fused_multiply_add(a, b, c);
#else
  Vector<scalar_t> result;
  for (int i = 0; i < kLanes<scalar_t>; ++i) result[i] = std::fma(a[i], b[i], c[i]);
  return result;
#endif
}

// x where the lane of `mask` is true, else y.
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> select(IndexVector<scalar_t> mask, Vector<scalar_t> x,
                                       Vector<scalar_t> y) {
  return mask ? x : y;
}

template <typename scalar_t>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kShift = 0x1.8p23f;  // adding it leaves an integer in the low bits
  static constexpr int32_t kShiftBits = 0x4B400000;
  static constexpr float kLog2e = 1.44269502f;
  // ln(2) in two pieces; products of the first with an exponent are exact.
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682e-06f;
  static constexpr float kLowest = -104.0f, kHighest = 89.0f;
  static constexpr int kMantissa = 23;
  static constexpr int32_t kBias = 127;
  // (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2, highest power first.
  static constexpr int kTerms = 6;
  static constexpr float kSeries[kTerms] = {0.000198909809f, 0.00139336416f, 0.00833331048f,
                                            0.0416664667f,   0.166666672f,   0.5f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kShift = 0x1.8p52;
  static constexpr int64_t kShiftBits = 0x4338000000000000;
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -746.0, kHighest = 710.0;
  static constexpr int kMantissa = 52;
  static constexpr int64_t kBias = 1023;
  // Taylor: the first term left out is below 1e-17 of the result.
  static constexpr int kTerms = 12;
  static constexpr double kSeries[kTerms] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
};

// exp(x) = 2^n (1 + p).
template <typename scalar_t>
struct ExpParts {
  Vector<scalar_t> p;
  Vector<scalar_t> low, high;  // 2^n in two factors: n may be beyond one exponent's range
};

template <typename scalar_t>
GENFAST_INLINE ExpParts<scalar_t> exp_parts(Vector<scalar_t> x) {
  using C = ExpConstants<scalar_t>;
  using V = Vector<scalar_t>;
  using I = IndexVector<scalar_t>;
  const V lowest = broadcast(C::kLowest), highest = broadcast(C::kHighest);
  x = select<scalar_t>(x < lowest, lowest, x);  // NaN passes through both
  x = select<scalar_t>(x > highest, highest, x);
  const V shift = broadcast(C::kShift);
  const V shifted = multiply_add<scalar_t>(x, broadcast(C::kLog2e), shift);
  const V n = shifted - shift;
  V r = multiply_add<scalar_t>(n, broadcast(-C::kLn2High), x);
  r = multiply_add<scalar_t>(n, broadcast(-C::kLn2Low), r);
  V q = broadcast(C::kSeries[0]);
#pragma GCC unroll 16
  for (int i = 1; i < C::kTerms; ++i) {
    q = multiply_add<scalar_t>(q, r, broadcast(C::kSeries[i]));
  }
  ExpParts<scalar_t> parts;
  parts.p = multiply_add<scalar_t>(r * r, q, r);
  I exponent;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  exponent -= C::kShiftBits;
  const I half = exponent >> 1;
  const I low = (half + C::kBias) << C::kMantissa;
  const I high = (exponent - half + C::kBias) << C::kMantissa;
  std::memcpy(&parts.low, &low, sizeof(low));
  std::memcpy(&parts.high, &high, sizeof(high));
  return parts;
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> exp_of(Vector<scalar_t> x) {
  const ExpParts<scalar_t> parts = exp_parts<scalar_t>(x);
  return (parts.p + scalar_t(1)) * parts.low * parts.high;
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> expm1_of(Vector<scalar_t> x) {
  const ExpParts<scalar_t> parts = exp_parts<scalar_t>(x);
  // 2^n p + (2^n - 1): for n = 0 that is p itself, which keeps all digits of a small result.
  const Vector<scalar_t> scaled = parts.p * parts.low * parts.high;
  const Vector<scalar_t> sum = scaled + (parts.low * parts.high - scalar_t(1));
  // 2^n may be infinite where its product with 1 + p is not.
  const Vector<scalar_t> large = (parts.p + scalar_t(1)) * parts.low * parts.high;
  const Vector<scalar_t> many = broadcast(ExpConstants<scalar_t>::kHighest - scalar_t(2));
  const Vector<scalar_t> result = select<scalar_t>(x > many, large, sum);
  return select<scalar_t>(x == Vector<scalar_t>{}, x, result);
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> absolute(Vector<scalar_t> x) {
  return select<scalar_t>(x < Vector<scalar_t>{}, -x, x);
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> tanh_of(Vector<scalar_t> x) {
  // Beyond this the result rounds to 1.
  const Vector<scalar_t> enough = broadcast(scalar_t(sizeof(scalar_t) == 4 ? 20 : 44));
  Vector<scalar_t> twice = absolute<scalar_t>(x) * scalar_t(2);
  twice = select<scalar_t>(twice > enough, enough, twice);
  const ExpParts<scalar_t> parts = exp_parts<scalar_t>(twice);
  const Vector<scalar_t> scale = parts.low * parts.high;
  const Vector<scalar_t> minus_one = multiply_add<scalar_t>(parts.p, scale, scale - scalar_t(1));
  const Vector<scalar_t> result = minus_one / (minus_one + scalar_t(2));
  return select<scalar_t>(x < Vector<scalar_t>{}, -result,
                          select<scalar_t>(x == Vector<scalar_t>{}, x, result));
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> sigmoid_of(Vector<scalar_t> x) {
  return scalar_t(1) / (scalar_t(1) + exp_of<scalar_t>(-x));
}

}  // namespace
}  // namespace genfast::cpu
