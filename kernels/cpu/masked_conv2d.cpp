#include "kernels/masked_conv2d.h"

#include "kernels/cpu/vector.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
constexpr int kTile = static_cast<int>(kChannelTile<GENFAST_SIMD_LEVEL, scalar_t>);
static_assert(kTile<float> == 2 * kLanes<float>);

// Pixels of a register tile: with two vectors of channels each they fill the registers, less what
// the weights and a broadcast need (AVX-512 has 32 registers, the others 16).
constexpr int kMaxPixels = kVectorBytes == 64 ? 14 : 6;

// What the pixels (n, i, j0 ..) of one tile of channels are computed from.
template <typename scalar_t>
struct TileSource {
  const scalar_t* in;      // image n, first channel of the group
  const scalar_t* packed;  // [taps, K, tile]
  int64_t plane, W_in, K;
  int64_t step_h, step_w;
};

// sums[p, m] += the taps [first, end) at grid row i, columns j + p. Every pixel must lie inside the
// image for every tap whose row does. Sums stay in registers from the first tap to the last.
template <typename scalar_t, int pixels, int vectors, bool unit_step>
void accumulate(const TileSource<scalar_t>& source, const GridTap* first, const GridTap* end,
                int64_t i, int64_t j, scalar_t* sums) {
  constexpr int lanes = kLanes<scalar_t>;
  constexpr int tile = kTile<scalar_t>;
  const int64_t step = unit_step ? 1 : source.step_w;
  Vector<scalar_t> sum[pixels][vectors];
#pragma GCC unroll 16
  for (int p = 0; p < pixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[p][v] = load(sums + p * tile + v * lanes);
  }
  for (const GridTap* tap = first; tap != end; ++tap) {
    if (i < tap->row_begin || i >= tap->row_end) continue;
    const scalar_t* x =
        source.in + (i * source.step_h + tap->row) * source.W_in + j * step + tap->col;
    const scalar_t* weight = source.packed + tap->packed * source.K * tile;
    for (int64_t k = 0; k < source.K; ++k) {
      Vector<scalar_t> factor[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) factor[v] = load(weight + v * lanes);
#pragma GCC unroll 16
      for (int p = 0; p < pixels; ++p) {
        const Vector<scalar_t> value = broadcast(x[p * step]);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          sum[p][v] = fused_multiply_add(value, factor[v], sum[p][v]);
        }
      }
      x += source.plane;
      weight += tile;
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < pixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(sums + p * tile + v * lanes, sum[p][v]);
  }
}

template <typename scalar_t>
using Accumulate = void (*)(const TileSource<scalar_t>&, const GridTap*, const GridTap*, int64_t,
                            int64_t, scalar_t*);

// The instance for a number of pixels in [1, kMaxPixels].
template <typename scalar_t, int vectors, bool unit_step, int pixels = 1>
Accumulate<scalar_t> accumulate_for(int64_t count) {
  if constexpr (pixels == kMaxPixels) {
    return accumulate<scalar_t, pixels, vectors, unit_step>;
  } else {
    if (count == pixels) return accumulate<scalar_t, pixels, vectors, unit_step>;
    return accumulate_for<scalar_t, vectors, unit_step, pixels + 1>(count);
  }
}

template <typename scalar_t>
struct AccumulateTable {
  Accumulate<scalar_t> entry[kMaxPixels + 1];  // by the number of pixels; entry 0 is unused

  AccumulateTable(bool one_vector, bool unit_step) {
    entry[0] = nullptr;
    for (int64_t count = 1; count <= kMaxPixels; ++count) {
      if (one_vector) {
        entry[count] = unit_step ? accumulate_for<scalar_t, 1, true>(count)
                                 : accumulate_for<scalar_t, 1, false>(count);
      } else {
        entry[count] = unit_step ? accumulate_for<scalar_t, 2, true>(count)
                                 : accumulate_for<scalar_t, 2, false>(count);
      }
    }
  }
};

// out[m * plane + p * step] = sums[p, m] for p < pixels, m < channels.
template <typename scalar_t>
void store_tile(const scalar_t* sums, int64_t pixels, int64_t channels, scalar_t* out,
                int64_t plane, int64_t step) {
  constexpr int lanes = kLanes<scalar_t>;
  for (int64_t m0 = 0; m0 < channels; m0 += lanes) {
    const int64_t m_count = channels - m0 < lanes ? channels - m0 : lanes;
    for (int64_t p0 = 0; p0 < pixels; p0 += lanes) {
      const int64_t p_count = pixels - p0 < lanes ? pixels - p0 : lanes;
      Vector<scalar_t> block[lanes];
      // Rows beyond the last pixel hold old sums; they land in columns that are not stored.
#pragma GCC unroll 16
      for (int p = 0; p < lanes; ++p) block[p] = load(sums + (p0 + p) * kTile<scalar_t> + m0);
      transpose<scalar_t>(block);
      for (int64_t m = 0; m < m_count; ++m) {
        scalar_t* to = out + (m0 + m) * plane + p0 * step;
        if (step == 1) {
          store_first(to, block[m], p_count);
        } else {
          for (int64_t p = 0; p < p_count; ++p) to[p * step] = block[m][p];
        }
      }
    }
  }
}

// Columns [j, j + width) of grid row i: runs of taps that cover the same columns share one pass.
template <typename scalar_t>
void correlate_tile(const TileSource<scalar_t>& source, const Grid& grid,
                    const AccumulateTable<scalar_t>& table, int64_t i, int64_t j, int64_t width,
                    scalar_t* sums) {
  const auto begin_of = [&](const GridTap& tap) { return tap.col_begin > j ? tap.col_begin : j; };
  const auto end_of = [&](const GridTap& tap) {
    return tap.col_end < j + width ? tap.col_end : j + width;
  };
  const GridTap* const last = grid.taps + grid.tap_count;
  for (const GridTap* first = grid.taps; first != last;) {
    const int64_t begin = begin_of(*first);
    const int64_t end = end_of(*first);
    const GridTap* next = first + 1;
    while (next != last && begin_of(*next) == begin && end_of(*next) == end) ++next;
    if (begin < end) {
      table.entry[end - begin](source, first, next, i, begin, sums + (begin - j) * kTile<scalar_t>);
    }
    first = next;
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void correlate(const Correlation<scalar_t>& params, const Grid& grid, int64_t begin, int64_t end) {
  constexpr int tile = kTile<scalar_t>;
  constexpr int sum_rows = tiles(kMaxPixels, kLanes<scalar_t>) * kLanes<scalar_t>;
  alignas(64) scalar_t sums[sum_rows * tile] = {};
  alignas(64) scalar_t bias[tile];
  const int64_t m_tiles = tiles(params.M, tile);
  const int64_t in_plane = params.H_in * params.W_in;
  const int64_t out_plane = params.H_out * params.W_out;
  const int64_t width = tiles(grid.cols, tiles(grid.cols, kMaxPixels));
  const bool unit_step = grid.in_step_w == 1;
  const AccumulateTable<scalar_t> wide(false, unit_step), narrow(true, unit_step);

  for (int64_t row = begin; row < end;) {
    // A block: rows of one image. The weights of a tile of channels stay in cache for all of it.
    const int64_t n = row / grid.rows;
    const int64_t i_begin = row % grid.rows;
    const int64_t i_end = grid.rows < i_begin + end - row ? grid.rows : i_begin + end - row;
    row += i_end - i_begin;
    for (int64_t block = 0; block < params.groups * m_tiles; ++block) {
      const int64_t group = block / m_tiles;
      const int64_t m0 = block % m_tiles * tile;
      const int64_t channels = params.M - m0 < tile ? params.M - m0 : tile;
      const AccumulateTable<scalar_t>& table = channels > kLanes<scalar_t> ? wide : narrow;
      const TileSource<scalar_t> source{
          params.in + (n * params.groups + group) * params.K * in_plane,
          params.packed + block * params.taps * params.K * tile,
          in_plane,
          params.W_in,
          params.K,
          grid.in_step_h,
          grid.in_step_w};
      const int64_t channel = group * params.M + m0;
      for (int64_t m = 0; m < tile; ++m) {
        bias[m] = params.bias != nullptr && m < channels ? params.bias[channel + m] : scalar_t(0);
      }
      scalar_t* out = params.out + (n * params.groups * params.M + channel) * out_plane;
      for (int64_t i = i_begin; i < i_end; ++i) {
        for (int64_t j = 0; j < grid.cols; j += width) {
          const int64_t count = grid.cols - j < width ? grid.cols - j : width;
          for (int64_t p = 0; p < count; ++p) std::memcpy(sums + p * tile, bias, sizeof(bias));
          correlate_tile(source, grid, table, i, j, count, sums);
          store_tile(sums, count, channels,
                     out + (grid.first_h + i * grid.step_h) * params.W_out + grid.first_w +
                         j * grid.step_w,
                     out_plane, grid.step_w);
        }
      }
    }
  }
}

template <SimdLevel level, typename scalar_t>
void pack_weights(const PackWeights<scalar_t>& params, int64_t begin, int64_t end) {
  constexpr int tile = kTile<scalar_t>;
  const int64_t K = params.transposed ? params.C_out : params.C_in;
  const int64_t M = params.transposed ? params.C_in : params.C_out;
  const int64_t m_tiles = tiles(M, tile);
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t block = pair / K;
    const int64_t k = pair % K;
    const int64_t m0 = block % m_tiles * tile;
    const int64_t lanes = M - m0 < tile ? M - m0 : tile;
    const int64_t co = block / m_tiles * params.C_out + (params.transposed ? k : m0);
    const int64_t ci = params.transposed ? m0 : k;
    const int64_t kernel = params.kH * params.kW;
    const int64_t weight_step = params.transposed ? kernel : params.C_in * kernel;
    const int64_t mask_step = params.transposed ? params.mask.stride_ci : params.mask.stride_co;
    for (int64_t t = 0; t < params.tap_count; ++t) {
      const int64_t tap = params.taps[t];
      const scalar_t* weight = params.weight + (co * params.C_in + ci) * kernel + tap;
      const int64_t mask = mask_index(params.mask, co, ci, tap / params.kW, tap % params.kW);
      scalar_t* to = params.packed + ((block * params.tap_count + t) * K + k) * tile;
      for (int64_t m = 0; m < lanes; ++m) {
        to[m] = apply_mask(params.mask, mask + m * mask_step, weight[m * weight_step]);
      }
      for (int64_t m = lanes; m < tile; ++m) to[m] = 0;
    }
  }
}

#define GENFAST_INSTANTIATE(scalar_t)                                                              \
  template void correlate<GENFAST_SIMD_LEVEL, scalar_t>(const Correlation<scalar_t>&, const Grid&, \
                                                        int64_t, int64_t);                         \
  template void pack_weights<GENFAST_SIMD_LEVEL, scalar_t>(const PackWeights<scalar_t>&, int64_t,  \
                                                           int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
