// Vectors of the SIMD level that a file is being compiled for.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/simd.h"
#include "kernels/macros.h"

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

namespace genfast::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVector __attribute__((vector_size(kVectorBytes)));

template <typename scalar_t>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = FloatVector;
  typedef int32_t index __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  using type = DoubleVector;
  typedef int64_t index __attribute__((vector_size(kVectorBytes)));
};
template <typename scalar_t>
using Vector = typename VectorOf<scalar_t>::type;
template <typename scalar_t>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(scalar_t));

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> load(const scalar_t* from) {
  Vector<scalar_t> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename scalar_t>
GENFAST_INLINE void store(scalar_t* to, Vector<scalar_t> value) {
  std::memcpy(to, &value, sizeof(value));
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> broadcast(scalar_t value) {
  return value - Vector<scalar_t>{};  // minus zero is exact, so that only the broadcast remains
}

// a * b + c, rounded once where the processor can.
GENFAST_INLINE FloatVector fused_multiply_add(FloatVector a, FloatVector b, FloatVector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

GENFAST_INLINE DoubleVector fused_multiply_add(DoubleVector a, DoubleVector b, DoubleVector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// Elements 0 .. count-1; the others are zero and are not read.
GENFAST_INLINE FloatVector load_first(const float* from, int64_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
  FloatVector value{};
  std::memcpy(&value, from, static_cast<size_t>(count) * sizeof(float));
  return value;
#endif
}

GENFAST_INLINE DoubleVector load_first(const double* from, int64_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
#else
  DoubleVector value{};
  std::memcpy(&value, from, static_cast<size_t>(count) * sizeof(double));
  return value;
#endif
}

// Writes elements 0 .. count-1 and nothing beyond.
GENFAST_INLINE void store_first(float* to, FloatVector value, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), value);
#else
  for (int64_t i = 0; i < count; ++i) to[i] = value[i];
#endif
}

GENFAST_INLINE void store_first(double* to, DoubleVector value, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), value);
#else
  for (int64_t i = 0; i < count; ++i) to[i] = value[i];
#endif
}

// Which lanes of a vector to load, from one bit a lane; `load_where` leaves the others zero and
// does not read them.
#if defined(__AVX512F__) || !defined(__AVX2__)
template <typename scalar_t>
using LaneMask = uint32_t;
template <typename scalar_t>
GENFAST_INLINE LaneMask<scalar_t> lane_mask(uint32_t bits) {
  return bits;
}
#else
template <typename scalar_t>
using LaneMask = __m256i;
template <typename scalar_t>
GENFAST_INLINE __m256i lane_mask(uint32_t bits) {
  if constexpr (sizeof(scalar_t) == sizeof(float)) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    return _mm256_cmpeq_epi32(_mm256_and_si256(all, lanes), lanes);
  } else {
    const __m256i lanes = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i all = _mm256_set1_epi64x(bits);
    return _mm256_cmpeq_epi64(_mm256_and_si256(all, lanes), lanes);
  }
}
#endif

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> load_where(const scalar_t* from, LaneMask<scalar_t> mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(scalar_t) == sizeof(float)) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
  } else {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(scalar_t) == sizeof(float)) {
    return _mm256_maskload_ps(from, mask);
  } else {
    return _mm256_maskload_pd(from, mask);
  }
#else
  if (mask == (1u << kLanes<scalar_t>)-1) return load(from);
  Vector<scalar_t> value{};
  for (int lane = 0; lane < kLanes<scalar_t>; ++lane) {
    if (mask >> lane & 1u) value[lane] = from[lane];
  }
  return value;
#endif
}

// One exchange of a transposition: swaps the blocks of `half` lanes off the diagonal of the pair.
template <typename scalar_t, int half, int... lane>
GENFAST_INLINE void exchange(Vector<scalar_t>& a, Vector<scalar_t>& b,
                             std::integer_sequence<int, lane...>) {
  constexpr int n = sizeof...(lane);
#if defined(__clang__)
  const Vector<scalar_t> upper =
      __builtin_shufflevector(a, b, ((lane & half) == 0 ? lane : n + lane - half)...);
  const Vector<scalar_t> lower =
      __builtin_shufflevector(a, b, ((lane & half) == 0 ? lane + half : n + lane)...);
#else
  using index = typename VectorOf<scalar_t>::index;
  const Vector<scalar_t> upper =
      __builtin_shuffle(a, b, index{((lane & half) == 0 ? lane : n + lane - half)...});
  const Vector<scalar_t> lower =
      __builtin_shuffle(a, b, index{((lane & half) == 0 ? lane + half : n + lane)...});
#endif
  a = upper;
  b = lower;
}

// Transposes a square of kLanes vectors in place.
template <typename scalar_t, int half = kLanes<scalar_t> / 2>
GENFAST_INLINE void transpose(Vector<scalar_t> (&rows)[kLanes<scalar_t>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<scalar_t>; ++i) {
    if ((i & half) == 0) {
      exchange<scalar_t, half>(rows[i], rows[i + half],
                               std::make_integer_sequence<int, kLanes<scalar_t>>{});
    }
  }
  if constexpr (half > 1) transpose<scalar_t, half / 2>(rows);
}

}  // namespace
}  // namespace genfast::cpu
