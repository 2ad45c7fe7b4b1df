// Philox streams in tiles: loops over independent blocks that compilers can vectorise.
#pragma once

#include "kernels/cpu/philox_bits.h"
#include "kernels/philox.h"

namespace genfast::cpu {

constexpr int64_t kTileBlocks = 64;
constexpr int64_t kTile = 4 * kTileBlocks;  // stream elements

// values[0, 4 * blocks) = the stream elements of at most kTileBlocks blocks from first_block on;
// what stands behind them is overwritten up to a whole group of blocks.
GENFAST_INLINE void philox_tile(PhiloxKind kind, uint64_t seed, int64_t first_block, int64_t blocks,
                                float (&values)[kTile]) {
  static_assert(kTileBlocks % kBitsGroup == 0);
  // Word by word first: one array per word keeps the arithmetic free of shuffles.
  uint32_t bits[4][kTileBlocks];
  const int64_t whole = (blocks + kBitsGroup - 1) / kBitsGroup * kBitsGroup;
  for (int64_t i = 0; i < whole; i += kBitsGroup) {
    philox_group(seed, static_cast<uint64_t>(first_block + i), bits, i);
  }
  float lanes[4][kTileBlocks];
  if (kind == PhiloxKind::kNormal) {
    for (int pair = 0; pair < 4; pair += 2) {
      for (int64_t i = 0; i < whole; ++i) {
        const NormalPair normals = normal_pair_from_bits(bits[pair][i], bits[pair + 1][i]);
        lanes[pair][i] = normals.first;
        lanes[pair + 1][i] = normals.second;
      }
    }
  } else {
    for (int word = 0; word < 4; ++word) {
      for (int64_t i = 0; i < whole; ++i) lanes[word][i] = uniform_from_bits(bits[word][i]);
    }
  }
  for (int64_t i = 0; i < whole; ++i) {
    for (int lane = 0; lane < 4; ++lane) values[4 * i + lane] = lanes[lane][i];
  }
}

// The stream elements [begin, end) in pieces: function(values, first, count) receives `count`
// values that start at stream element `first`.
template <typename Function>
GENFAST_INLINE void for_each_tile(PhiloxKind kind, uint64_t seed, int64_t begin, int64_t end,
                                  Function&& function) {
  float values[kTile];
  for (int64_t first = begin; first < end;) {
    const int64_t block = first >> 2;
    const int64_t lane = first & 3;
    const int64_t count = end - first < kTile - lane ? end - first : kTile - lane;
    philox_tile(kind, seed, block, (lane + count + 3) >> 2, values);
    function(static_cast<const float*>(values + lane), first, count);
    first += count;
  }
}

}  // namespace genfast::cpu
