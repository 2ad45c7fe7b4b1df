// The ten rounds of Philox for a tile of consecutive blocks, with one array for each of the four
// words of a block. The same bits as philox_block, spelled for the multiplier that processors have.
#pragma once

#include "kernels/philox.h"

#if defined(__AVX2__)
// GCC 12 warns of its own header: AVX-512 intrinsics start from a vector that is undefined on
// purpose (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace genfast::cpu {

#if defined(__AVX2__)
// A block per 64-bit lane, of which each word uses the lower half: the multiplier reads the lower
// halves alone, so that a product is the next word as it stands, with its upper half as litter.
#if defined(__AVX512F__)
constexpr int64_t kBitsLanes = 8;  // blocks in a vector
typedef __m512i BitsVector;
GENFAST_INLINE BitsVector bits_set(int64_t value) {
  return _mm512_set1_epi64(value);
}
GENFAST_INLINE BitsVector bits_counters(uint64_t first) {  // first, first + 2, ...
  return _mm512_add_epi64(bits_set(static_cast<int64_t>(first)),
                          _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14));
}
GENFAST_INLINE BitsVector bits_multiply(BitsVector a, BitsVector b) {
  return _mm512_mul_epu32(a, b);
}
// The upper halves in the lower ones' place. A shuffle: shifts would wait for the multiplier's
// port.
GENFAST_INLINE BitsVector bits_upper(BitsVector a) {
  return _mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(a)));
}
GENFAST_INLINE BitsVector bits_xor(BitsVector a, BitsVector b, BitsVector c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
// The lower halves of both, in turn: blocks 0, 2, 4, ... and 1, 3, 5, ... become 0, 1, 2, ...
GENFAST_INLINE void bits_store(uint32_t* to, BitsVector even, BitsVector odd) {
  const __m512 upper = _mm512_moveldup_ps(_mm512_castsi512_ps(odd));
  _mm512_storeu_si512(to, _mm512_mask_blend_epi32(0xAAAA, even, _mm512_castps_si512(upper)));
}
#else
constexpr int64_t kBitsLanes = 4;
typedef __m256i BitsVector;
GENFAST_INLINE BitsVector bits_set(int64_t value) {
  return _mm256_set1_epi64x(value);
}
GENFAST_INLINE BitsVector bits_counters(uint64_t first) {
  return _mm256_add_epi64(bits_set(static_cast<int64_t>(first)), _mm256_setr_epi64x(0, 2, 4, 6));
}
GENFAST_INLINE BitsVector bits_multiply(BitsVector a, BitsVector b) {
  return _mm256_mul_epu32(a, b);
}
GENFAST_INLINE BitsVector bits_upper(BitsVector a) {
  return _mm256_castps_si256(_mm256_movehdup_ps(_mm256_castsi256_ps(a)));
}
GENFAST_INLINE BitsVector bits_xor(BitsVector a, BitsVector b, BitsVector c) {
  return _mm256_xor_si256(a, _mm256_xor_si256(b, c));
}
GENFAST_INLINE void bits_store(uint32_t* to, BitsVector even, BitsVector odd) {
  const __m256 upper = _mm256_moveldup_ps(_mm256_castsi256_ps(odd));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_blend_epi32(even, _mm256_castps_si256(upper), 0xAA));
}
#endif

constexpr int64_t kBitsGroup = 2 * kBitsLanes;  // blocks at a time: even ones and odd ones

// lanes[word][at + i] = word of block first + i, for i in [0, kBitsGroup).
template <int64_t length>
GENFAST_INLINE void philox_group(uint64_t seed, uint64_t first, uint32_t (&lanes)[4][length],
                                 int64_t at) {
  const BitsVector multiplier0 = bits_set(0xD2511F53u);
  const BitsVector multiplier1 = bits_set(0xCD9E8D57u);
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  BitsVector word[2][4];
  for (int odd = 0; odd < 2; ++odd) {
    word[odd][0] = bits_counters(first + static_cast<uint64_t>(odd));
    word[odd][1] = bits_upper(word[odd][0]);
    word[odd][2] = word[odd][3] = bits_set(0);
  }
  GENFAST_UNROLL
  for (int round = 0; round < 10; ++round) {
    const BitsVector round_key0 = bits_set(key0);
    const BitsVector round_key1 = bits_set(key1);
    GENFAST_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      const BitsVector product0 = bits_multiply(word[odd][0], multiplier0);
      const BitsVector product1 = bits_multiply(word[odd][2], multiplier1);
      word[odd][0] = bits_xor(bits_upper(product1), word[odd][1], round_key0);
      word[odd][1] = product1;
      word[odd][2] = bits_xor(bits_upper(product0), word[odd][3], round_key1);
      word[odd][3] = product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  GENFAST_UNROLL
  for (int w = 0; w < 4; ++w) bits_store(&lanes[w][at], word[0][w], word[1][w]);
}
#else
constexpr int64_t kBitsGroup = 1;

template <int64_t length>
GENFAST_INLINE void philox_group(uint64_t seed, uint64_t first, uint32_t (&lanes)[4][length],
                                 int64_t at) {
  const PhiloxBlock bits = philox_block(seed, first);
  for (int w = 0; w < 4; ++w) lanes[w][at] = bits.lane[w];
}
#endif

}  // namespace genfast::cpu
