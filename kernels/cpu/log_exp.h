// Logarithms and exponentials of the likelihood losses, on vectors: a few ulp, and the same bits at
// every SIMD level. They are shorter than those of vector_math.h because the range is known.
#pragma once

#include "kernels/cpu/vector_math.h"

namespace genfast::cpu {
namespace {

// The smaller or larger one; `bound` never is NaN, and NaN in x comes out.
GENFAST_INLINE FloatVector at_most(FloatVector x, FloatVector bound) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(static_cast<__mmask16>(-1), bound, x);
#elif defined(__AVX2__)
  return _mm256_min_ps(bound, x);
#else
  return select<float>(bound < x, bound, x);
#endif
}

GENFAST_INLINE FloatVector at_least(FloatVector x, FloatVector bound) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(static_cast<__mmask16>(-1), bound, x);
#elif defined(__AVX2__)
  return _mm256_max_ps(bound, x);
#else
  return select<float>(bound > x, bound, x);
#endif
}

GENFAST_INLINE DoubleVector at_most(DoubleVector x, DoubleVector bound) {
  return select<double>(bound < x, bound, x);
}

GENFAST_INLINE DoubleVector at_least(DoubleVector x, DoubleVector bound) {
  return select<double>(bound > x, bound, x);
}

// -|x|
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> minus_absolute(Vector<scalar_t> x) {
  IndexVector<scalar_t> bits, sign;
  const Vector<scalar_t> minus_zero = -Vector<scalar_t>{};
  std::memcpy(&bits, &x, sizeof(bits));
  std::memcpy(&sign, &minus_zero, sizeof(sign));
  bits |= sign;
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

// (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2, highest power first. In float interpolated at
// Chebyshev nodes, one term shorter than that of vector_math.h: within 1e-8 of exp(r).
template <typename scalar_t>
struct ShortExp;
template <>
struct ShortExp<float> {
  static constexpr int kTerms = 5;
  static constexpr float kSeries[kTerms] = {0.00139262504f, 0.00836323295f, 0.0416665524f,
                                            0.166665763f, 0.5f};
};
template <>
struct ShortExp<double> : ExpConstants<double> {};

// exp(x) = (1 + p) scale, both normal numbers.
template <typename scalar_t>
struct BoundedExp {
  Vector<scalar_t> p, scale;
};

// For x between -87 and 87 (double: 708) or NaN.
template <typename scalar_t>
GENFAST_INLINE BoundedExp<scalar_t> bounded_exp(Vector<scalar_t> x) {
  using C = ExpConstants<scalar_t>;
  const Vector<scalar_t> shift = broadcast(C::kShift);
  const Vector<scalar_t> shifted = multiply_add<scalar_t>(x, broadcast(C::kLog2e), shift);
  const Vector<scalar_t> n = shifted - shift;
  Vector<scalar_t> r = multiply_add<scalar_t>(n, broadcast(-C::kLn2High), x);
  r = multiply_add<scalar_t>(n, broadcast(-C::kLn2Low), r);
  Vector<scalar_t> q = broadcast(ShortExp<scalar_t>::kSeries[0]);
#pragma GCC unroll 16
  for (int i = 1; i < ShortExp<scalar_t>::kTerms; ++i) {
    q = multiply_add<scalar_t>(q, r, broadcast(ShortExp<scalar_t>::kSeries[i]));
  }
  BoundedExp<scalar_t> parts;
  parts.p = multiply_add<scalar_t>(r * r, q, r);
  IndexVector<scalar_t> bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  // n stands in the low bits of `shifted`; the shift to the exponent's place drops the others.
  bits = (bits + C::kBias) << C::kMantissa;
  std::memcpy(&parts.scale, &bits, sizeof(bits));
  return parts;
}

// For every x below 87 (double: 708); where the result would be no normal number it is about the
// smallest one.
template <typename scalar_t>
GENFAST_INLINE BoundedExp<scalar_t> falling_exp(Vector<scalar_t> x) {
  const scalar_t least = sizeof(scalar_t) == 4 ? scalar_t(-87) : scalar_t(-708);
  return bounded_exp<scalar_t>(at_least(x, broadcast(least)));
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> exp_value(const BoundedExp<scalar_t>& parts) {
  return multiply_add<scalar_t>(parts.p, parts.scale, parts.scale);
}

// 1 - exp(x), to all digits where x is small.
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> one_minus_exp_value(const BoundedExp<scalar_t>& parts) {
  return multiply_add<scalar_t>(-parts.p, parts.scale, scalar_t(1) - parts.scale);
}

template <typename scalar_t>
struct LogConstants;

template <>
struct LogConstants<float> {
  static constexpr int32_t kSqrtHalf = 0x3F3504F3;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682e-06f;
  // (log(1 + f) - f) / f^2 for 1 + f in [sqrt(1/2), sqrt(2)], interpolated at Chebyshev nodes,
  // highest power first: within 1.4e-8 of the logarithm.
  static constexpr int kTerms = 9;
  static constexpr float kSeries[kTerms] = {-0.0767364129f, 0.127226725f,  -0.13127555f,
                                            0.142048553f,   -0.166266456f, 0.200012341f,
                                            -0.250007808f,  0.333333313f,  -0.49999997f};
};

template <>
struct LogConstants<double> {
  static constexpr int64_t kSqrtHalf = 0x3FE6A09E667F3BCD;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  // 2 (atanh(s) / s - 1) / s^2 in powers of s^2, for s = f / (2 + f).
  static constexpr int kTerms = 11;
  static constexpr double kSeries[kTerms] = {2.0 / 23, 2.0 / 21, 2.0 / 19, 2.0 / 17,
                                             2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9,
                                             2.0 / 7,  2.0 / 5,  2.0 / 3};
};

// log(1 + f), for 1 + f in [sqrt(1/2), sqrt(2)].
GENFAST_INLINE FloatVector log1p_near(FloatVector f) {
  using C = LogConstants<float>;
  FloatVector q = broadcast(C::kSeries[0]);
#pragma GCC unroll 16
  for (int i = 1; i < C::kTerms; ++i) q = multiply_add<float>(q, f, broadcast(C::kSeries[i]));
  return multiply_add<float>(f * f, q, f);
}

GENFAST_INLINE DoubleVector log1p_near(DoubleVector f) {
  using C = LogConstants<double>;
  const DoubleVector s = f / (f + 2.0);
  const DoubleVector square = s * s;
  DoubleVector q = broadcast(C::kSeries[0]);
#pragma GCC unroll 16
  for (int i = 1; i < C::kTerms; ++i) q = multiply_add<double>(q, square, broadcast(C::kSeries[i]));
  // 2 s = f - s f, which keeps the rounding of the division out of the leading term.
  return multiply_add<double>(s, square * q - f, f);
}

// log(x) for normal x > 0, of which `x_minus_one` is known to more digits than x has; NaN at NaN.
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> log_given(Vector<scalar_t> x, Vector<scalar_t> x_minus_one) {
  using C = LogConstants<scalar_t>;
  using I = IndexVector<scalar_t>;
  constexpr int kMantissa = ExpConstants<scalar_t>::kMantissa;
  I bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const I exponent = (bits - C::kSqrtHalf) >> kMantissa;
  const I mantissa_bits = bits - (exponent << kMantissa);
  Vector<scalar_t> mantissa;
  std::memcpy(&mantissa, &mantissa_bits, sizeof(mantissa));
  const Vector<scalar_t> n = __builtin_convertvector(exponent, Vector<scalar_t>);
  const Vector<scalar_t> f = select<scalar_t>(exponent == I{}, x_minus_one, mantissa - scalar_t(1));
  const Vector<scalar_t> low = multiply_add<scalar_t>(n, broadcast(C::kLn2Low), log1p_near(f));
  return multiply_add<scalar_t>(n, broadcast(C::kLn2High), low);
}

// log(x) for normal x > 0; minus infinity at 0, infinity and NaN at themselves.
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> log_of(Vector<scalar_t> x) {
  const Vector<scalar_t> zero{};
  const Vector<scalar_t> infinity = scalar_t(1) / zero;
  const Vector<scalar_t> result = log_given<scalar_t>(x, x - scalar_t(1));
  // x + x spells both infinity and NaN.
  return select<scalar_t>(x == zero, -infinity, select<scalar_t>(x < infinity, result, x + x));
}

}  // namespace
}  // namespace genfast::cpu
