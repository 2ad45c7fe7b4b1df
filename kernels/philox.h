// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011), and the map from its bits to uniform and normal float32 numbers.
//
// One stream per 64-bit seed. Element e of the stream lives in lane e % 4 of counter block e / 4,
// so that any part of the stream can be made anywhere, in any order, by any number of threads.
//
// The arithmetic below uses integer operations, fused multiply-adds and square roots only, all of
// which are exact or correctly rounded by IEEE 754: the C++ and the CUDA compiler agree bit for
// bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/macros.h"

namespace genfast {

struct PhiloxBlock {
  uint32_t lane[4];
};

GENFAST_INLINE PhiloxBlock philox4x32_10(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.lane[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.lane[2];
    const uint32_t high0 = static_cast<uint32_t>(product0 >> 32);
    const uint32_t high1 = static_cast<uint32_t>(product1 >> 32);
    counter = {{high1 ^ counter.lane[1] ^ key0, static_cast<uint32_t>(product1),
                high0 ^ counter.lane[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Block number `block` of the stream of `seed`. The upper half of the counter stays zero.
GENFAST_INLINE PhiloxBlock philox_block(uint64_t seed, uint64_t block) {
  const PhiloxBlock counter = {
      {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0u, 0u}};
  return philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The upper 24 bits as a multiple of 2^-24 in [0, 1): every value is exact in float32.
GENFAST_INLINE float uniform_from_bits(uint32_t bits) {
  return static_cast<float>(static_cast<int32_t>(bits >> 8)) * 0x1p-24f;
}

GENFAST_INLINE float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

GENFAST_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

GENFAST_INLINE float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// ln(u) for u in (0, 1], relative error below 2^-22: u = m * 2^e with m in [sqrt(1/2), sqrt(2)),
// then ln(1 + f) = f - f^2/2 + f^3 P(f) with a degree-8 interpolant P at Chebyshev nodes.
GENFAST_INLINE float log_of_uniform(float u) {
  const uint32_t shifted = float_to_bits(u) - 0x3F3504F3u;  // bits of sqrt(1/2)
  const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
  const float f = bits_to_float((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  float p = 0.0697161183f;
  p = fused_multiply_add(p, f, -0.114797339f);
  p = fused_multiply_add(p, f, 0.116854198f);
  p = fused_multiply_add(p, f, -0.124256872f);
  p = fused_multiply_add(p, f, 0.142490581f);
  p = fused_multiply_add(p, f, -0.166678026f);
  p = fused_multiply_add(p, f, 0.200007156f);
  p = fused_multiply_add(p, f, -0.24999997f);
  p = fused_multiply_add(p, f, 0.333333313f);
  p = fused_multiply_add(p, f, -0.5f);
  const float square = f * f;
  const float log_mantissa = fused_multiply_add(square, p, f);
  return fused_multiply_add(static_cast<float>(exponent), 0.693147182f, log_mantissa);
}

struct NormalPair {
  float first, second;
};

// Box and Muller (1958). The radius comes from all 32 bits of `radius_bits` (tail up to 6.76), the
// angle from 24 bits: its quadrant is split off exactly, and the rest, at most an eighth of a turn,
// goes through polynomials in units of a quarter turn.
GENFAST_INLINE NormalPair normal_pair_from_bits(uint32_t radius_bits, uint32_t angle_bits) {
  const float high = static_cast<float>(static_cast<int32_t>(radius_bits >> 16));
  const float low = static_cast<float>(static_cast<int32_t>(radius_bits & 0xFFFFu));
  // One rounding, to nearest; the half step keeps zero out of the logarithm.
  const float u = fused_multiply_add(fused_multiply_add(high, 65536.0f, low), 0x1p-32f, 0x1p-33f);
  const float radius = sqrtf(-2.0f * log_of_uniform(u));

  const float quarter_turns = uniform_from_bits(angle_bits) * 4.0f;
  const int32_t quadrant = static_cast<int32_t>(quarter_turns + 0.5f);
  const float d = quarter_turns - static_cast<float>(quadrant);
  const float d2 = d * d;
  float s = 0.000158206298f;
  s = fused_multiply_add(s, d2, -0.00468126638f);
  s = fused_multiply_add(s, d2, 0.0796925798f);
  s = fused_multiply_add(s, d2, -0.645964086f);
  s = fused_multiply_add(s, d2, 1.57079637f);
  const float sine = s * d;
  float c = 0.000903628068f;
  c = fused_multiply_add(c, d2, -0.0208600704f);
  c = fused_multiply_add(c, d2, 0.253669202f);
  c = fused_multiply_add(c, d2, -1.23370051f);
  const float cosine = fused_multiply_add(c, d2, 1.0f);

  // Rotate by the quadrant: (c, s), (-s, c), (-c, -s), (s, -c).
  const float a = (quadrant & 1) ? sine : cosine;
  const float b = (quadrant & 1) ? cosine : sine;
  const float x = ((quadrant + 1) & 2) ? -a : a;
  const float y = (quadrant & 2) ? -b : b;
  return {radius * x, radius * y};
}

struct NormalBlock {
  float lane[4];
};

GENFAST_INLINE NormalBlock normal_block(uint64_t seed, uint64_t block) {
  const PhiloxBlock bits = philox_block(seed, block);
  const NormalPair first = normal_pair_from_bits(bits.lane[0], bits.lane[1]);
  const NormalPair second = normal_pair_from_bits(bits.lane[2], bits.lane[3]);
  return {{first.first, first.second, second.first, second.second}};
}

enum class PhiloxKind : int32_t { kUniform = 0, kNormal = 1 };

template <typename scalar_t>
struct PhiloxFill {
  scalar_t* out;   // [count], contiguous
  int64_t count;   // elements
  int64_t offset;  // stream position of out[0], in elements
  uint64_t seed;
  PhiloxKind kind;
};

}  // namespace genfast

#if !defined(__CUDACC__)
#include "kernels/cpu/simd.h"
namespace genfast::cpu {
// Fills out[begin, end).
template <SimdLevel level, typename scalar_t>
void philox_fill(const PhiloxFill<scalar_t>& params, int64_t begin, int64_t end);
}  // namespace genfast::cpu
#endif

namespace genfast::cuda {
// `device_seed`, when not null, is read on the device instead of params.seed.
template <typename scalar_t>
void philox_fill(const PhiloxFill<scalar_t>& params, const int64_t* device_seed, void* stream);
}  // namespace genfast::cuda
