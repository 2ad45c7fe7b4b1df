// Pieces of the patch matrix of a convolution (kernels/masked_conv2d.h), packed for register tiles.
#pragma once

#include "kernels/cpu/matrix_tile.h"
#include "kernels/masked_conv2d.h"
#include "kernels/masked_conv2d_epilogue.h"

namespace genfast::cpu {
namespace {

// A tile of patches is two vectors of grid pixels wide.
template <typename scalar_t>
constexpr int kTilePixels = 2 * kLanes<scalar_t>;

constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Neighbouring grid pixels of one row.
struct Segment {
  int64_t i, j;  // grid row, and column of the first pixel
  int lane, lanes;
};

// Up to `most` grid pixels, counted row by row, as the pieces of rows that they are.
template <int64_t most>
struct PixelRun {
  int64_t first;
  int pixels, segments;
  Segment segment[most];

  void cut(const Grid& grid, int64_t from, int64_t count) {
    first = from;
    pixels = static_cast<int>(count);
    segments = 0;
    int64_t i = first / grid.cols, j = first % grid.cols;
    for (int lane = 0; lane < pixels; ++i, j = 0) {
      const int lanes = static_cast<int>(smaller(grid.cols - j, pixels - lane));
      segment[segments++] = {i, j, lane, lanes};
      lane += lanes;
    }
  }
};
template <typename scalar_t>
using PixelTile = PixelRun<kTilePixels<scalar_t>>;

// The part of a segment that a tap finds inside the image: lanes [begin, end), none if equal.
struct Span {
  int begin, end;
};

GENFAST_INLINE Span inside(const Segment& segment, const GridTap& tap) {
  if (segment.i < tap.row_begin || segment.i >= tap.row_end) return {0, 0};
  const int64_t begin = larger(tap.col_begin - segment.j, 0);
  const int64_t end = smaller(tap.col_end - segment.j, segment.lanes);
  if (begin >= end) return {0, 0};
  return {segment.lane + static_cast<int>(begin), segment.lane + static_cast<int>(end)};
}

// One bit for each lane of the tile, set where the tap meets the image.
template <typename scalar_t>
uint32_t lanes_inside(const PixelTile<scalar_t>& tile, const GridTap& tap) {
  uint64_t bits = 0;
  for (int s = 0; s < tile.segments; ++s) {
    const Span span = inside(tile.segment[s], tap);
    bits |= (uint64_t{1} << span.end) - (uint64_t{1} << span.begin);
  }
  return static_cast<uint32_t>(bits);
}

// Whether neighbouring grid pixels are neighbours in an image of width W too, also across the end
// of a row.
GENFAST_INLINE bool is_flat(const Grid& grid, int64_t W) {
  return grid.in_step_h == 1 && grid.in_step_w == 1 && grid.cols == W;
}

// The image that patches are cut from: one group of channels of image n.
template <typename scalar_t>
struct PatchSource {
  const scalar_t* in;
  int64_t plane, W, K;
  bool rectified = false;  // `in` counts as max(0, in)
};

// Rows [begin, end) of the patch matrix; what a tile does not need it leaves out at both ends.
struct PatchRows {
  int64_t begin, end;
};

// The rows of the taps from the first to the last that meets the image anywhere in the tile.
template <typename scalar_t>
PatchRows rows_inside(const Grid& grid, const PixelTile<scalar_t>& tile, int64_t K) {
  int64_t begin = 0, end = grid.tap_count;
  while (begin < end && lanes_inside<scalar_t>(tile, grid.taps[begin]) == 0) ++begin;
  while (begin < end && lanes_inside<scalar_t>(tile, grid.taps[end - 1]) == 0) --end;
  return {begin * K, end * K};
}

// to[(r - begin) * to_step + lane] = patch[r, pixel of the lane] for rows r of [begin, end); lanes
// beyond the tile's pixels get zero up to the end of their vector.
template <typename scalar_t>
void pack_patches(const PatchSource<scalar_t>& source, const Grid& grid,
                  const PixelTile<scalar_t>& tile, int64_t begin, int64_t end, scalar_t* to,
                  int64_t to_step) {
  constexpr int lanes = kLanes<scalar_t>;
  const bool flat = is_flat(grid, source.W);
  for (int64_t r = begin; r < end;) {
    const GridTap& tap = grid.taps[r / source.K];
    int64_t k = r % source.K;
    const int64_t k_end = smaller(source.K, k + end - r);
    r += k_end - k;
    if (flat) {
      const uint32_t bits = lanes_inside<scalar_t>(tile, tap);
      const auto first = lane_mask<scalar_t>(bits & ((1u << lanes) - 1));
      const auto second = lane_mask<scalar_t>(static_cast<uint32_t>(uint64_t{bits} >> lanes));
      const int64_t offset = tile.first + tap.row * source.W + tap.col;
      for (; k < k_end; ++k, to += to_step) {
        const scalar_t* from = source.in + k * source.plane + offset;
        const auto put = [&](scalar_t* at, Vector<scalar_t> value) {
          store(at, source.rectified ? relu_value<scalar_t>(value) : value);
        };
        put(to, load_where(from, first));
        if (tile.pixels > lanes) put(to + lanes, load_where(from + lanes, second));
      }
      continue;
    }
    for (; k < k_end; ++k, to += to_step) {
      store(to, Vector<scalar_t>{});
      if (tile.pixels > lanes) store(to + lanes, Vector<scalar_t>{});
      for (int s = 0; s < tile.segments; ++s) {
        const Segment& segment = tile.segment[s];
        const Span span = inside(segment, tap);
        const scalar_t* row =
            source.in + k * source.plane + (segment.i * grid.in_step_h + tap.row) * source.W;
        for (int lane = span.begin; lane < span.end; ++lane) {
          const scalar_t value = row[(segment.j + lane - segment.lane) * grid.in_step_w + tap.col];
          to[lane] = source.rectified ? relu_value<scalar_t>(value) : value;
        }
      }
    }
  }
}

}  // namespace
}  // namespace genfast::cpu
