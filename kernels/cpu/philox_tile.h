// Philox streams in tiles: loops over independent blocks that compilers can vectorise.
#pragma once

#include "kernels/philox.h"

namespace genfast::cpu {

constexpr int64_t kTileBlocks = 64;
constexpr int64_t kTile = 4 * kTileBlocks;  // stream elements

// values[0, 4 * blocks) = the stream elements of at most kTileBlocks blocks from first_block on.
GENFAST_INLINE void philox_tile(PhiloxKind kind, uint64_t seed, int64_t first_block, int64_t blocks,
                                float* values) {
  // Lane by lane first: one array per lane keeps the arithmetic free of shuffles.
  float lanes[4][kTileBlocks];
  if (kind == PhiloxKind::kNormal) {
    for (int64_t i = 0; i < blocks; ++i) {
      const NormalBlock normals = normal_block(seed, static_cast<uint64_t>(first_block + i));
      for (int lane = 0; lane < 4; ++lane) lanes[lane][i] = normals.lane[lane];
    }
  } else {
    for (int64_t i = 0; i < blocks; ++i) {
      const PhiloxBlock bits = philox_block(seed, static_cast<uint64_t>(first_block + i));
      for (int lane = 0; lane < 4; ++lane) lanes[lane][i] = uniform_from_bits(bits.lane[lane]);
    }
  }
  for (int64_t i = 0; i < blocks; ++i) {
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
