// The output of a convolution, and the gradient of its input: panels of weights times tiles of
// patches. Lanes are pixels, so that a register tile is stored as the image has it.
#include "kernels/masked_conv2d.h"

#include "kernels/cpu/denormals.h"
#include "kernels/cpu/masked_conv2d_patches.h"
#include "kernels/cpu/rows.h"

namespace genfast::cpu {
namespace {

// Rows of a packed tile of patches: it stays in the first level cache while all panels of weights
// pass by.
constexpr int64_t kPatchRows = 192;

// A line of memory to fetch for each row that is multiplied: the next tile's pixels arrive while
// this one's are in use.
template <typename scalar_t>
struct Ahead {
  const scalar_t* line;
  int64_t step;
};

// to[m, c] = the sum over k of panel[k, m] * patches[k, c], on top of what is there or, when fresh,
// of the bias.
template <typename scalar_t, int M, int vectors>
void multiply_panel(const scalar_t* panel, const scalar_t* patches, int64_t K, bool fresh,
                    const scalar_t* bias, Ahead<scalar_t> ahead, scalar_t* to, int64_t to_step) {
  constexpr int lanes = kLanes<scalar_t>;
  Vector<scalar_t> sum[M][vectors];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      sum[m][v] = !fresh            ? load(to + m * to_step + v * lanes)
                  : bias != nullptr ? broadcast(bias[m])
                                    : Vector<scalar_t>{};
    }
  }
  for (int64_t k = 0; k < K; ++k) {
    __builtin_prefetch(ahead.line);
    ahead.line += ahead.step;
    Vector<scalar_t> factor[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) factor[v] = load(patches + v * lanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vector<scalar_t> value = broadcast(panel[m]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[m][v] = fused_multiply_add(value, factor[v], sum[m][v]);
    }
    panel += M;
    patches += kTilePixels<scalar_t>;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(to + m * to_step + v * lanes, sum[m][v]);
  }
}

template <typename scalar_t>
using MultiplyPanel = void (*)(const scalar_t*, const scalar_t*, int64_t, bool, const scalar_t*,
                               Ahead<scalar_t>, scalar_t*, int64_t);

// The instance for a panel of 1 .. kTileRows channels.
template <typename scalar_t, int vectors, int M = 1>
MultiplyPanel<scalar_t> panel_instance(int64_t channels) {
  if constexpr (M < kTileRows) {
    if (channels > M) return panel_instance<scalar_t, vectors, M + 1>(channels);
  }
  return multiply_panel<scalar_t, M, vectors>;
}

// A tile of sums [channels, pixels], `step` from a channel to the next.
template <typename scalar_t>
struct SumTile {
  scalar_t* first;
  int64_t step;
};

// The sums of one group of image n at the pixels of a tile.
template <typename scalar_t>
void sum_tile(const Correlation<scalar_t>& params, const Grid& grid,
              const PixelTile<scalar_t>& tile, int64_t n, int64_t group, scalar_t* patches,
              SumTile<scalar_t> sums) {
  constexpr int64_t width = kTilePixels<scalar_t>;
  const int64_t plane = params.H_in * params.W_in;
  const int64_t rows = grid.tap_count * params.K;
  const PatchSource<scalar_t> source{params.in + (n * params.groups + group) * params.K * plane,
                                     plane, params.W_in, params.K, params.rectified};
  const scalar_t* weights = params.packed + group * params.M * rows;
  const scalar_t* bias = params.bias == nullptr ? nullptr : params.bias + group * params.M;
  const scalar_t* next = source.in + tile.first + width;
  const bool wide = tile.pixels > kLanes<scalar_t>;
  const Panels panels = Panels::of(params.M, kTileRows);
  const PatchRows met = rows_inside<scalar_t>(grid, tile, params.K);
  int64_t row = met.begin;
  do {  // once where no tap is met: the output is the bias
    const int64_t row_end = smaller(row + kPatchRows, met.end);
    pack_patches(source, grid, tile, row, row_end, patches, width);
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t m = panels.first(p);
      const auto multiply = wide ? panel_instance<scalar_t, 2>(panels.rows(p))
                                 : panel_instance<scalar_t, 1>(panels.rows(p));
      // The first two panels fetch a vector of each channel's next pixels.
      multiply(
          weights + m * rows + row * panels.rows(p), patches, row_end - row, row == met.begin,
          bias == nullptr ? nullptr : bias + m,
          p < 2 ? Ahead<scalar_t>{next + p * kLanes<scalar_t>, plane} : Ahead<scalar_t>{patches, 0},
          sums.first + m * sums.step, sums.step);
    }
    row = row_end;
  } while (row < met.end);
}

// Puts sums where their pixels lie in the image.
template <typename scalar_t>
void scatter(SumTile<scalar_t> sums, const PixelTile<scalar_t>& tile, const Grid& grid,
             int64_t channels, int64_t W_out, int64_t plane, scalar_t* out) {
  for (int64_t m = 0; m < channels; ++m) {
    for (int s = 0; s < tile.segments; ++s) {
      const Segment& segment = tile.segment[s];
      const scalar_t* from = sums.first + m * sums.step + segment.lane;
      scalar_t* to = out + m * plane + (grid.first_h + segment.i * grid.step_h) * W_out +
                     grid.first_w + segment.j * grid.step_w;
      for (int lane = 0; lane < segment.lanes; ++lane) to[lane * grid.step_w] = from[lane];
    }
  }
}

// Zero where `open` is not positive.
template <typename scalar_t>
void close_sums(const scalar_t* open, int64_t channels, int64_t plane, int64_t pixels,
                scalar_t* sums) {
  for (int64_t m = 0; m < channels; ++m, open += plane, sums += plane) {
    for_vectors<scalar_t>(0, pixels, [&](int64_t k, auto part) {
      store(sums + k, relu_gradient<scalar_t>(load(sums + k, part), load(open + k, part)), part);
    });
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
int64_t correlate_scratch(const Correlation<scalar_t>& params) {
  return kPatchRows * kTilePixels<scalar_t> +
         params.groups * params.M * kUnitPixels<level, scalar_t>;
}

template <SimdLevel level, typename scalar_t>
void correlate(const Correlation<scalar_t>& params, const Grid& grid, scalar_t* scratch,
               int64_t begin, int64_t end) {
  [[maybe_unused]] const DenormalsAreZero fast;
  constexpr int64_t width = kTilePixels<scalar_t>;
  constexpr int64_t unit = kUnitPixels<level, scalar_t>;
  static_assert(unit % width == 0);
  const int64_t pixels = grid.rows * grid.cols;
  const int64_t units_per_image = tiles(pixels, unit);
  const int64_t channels = params.groups * params.M;
  const int64_t plane = params.H_out * params.W_out;
  // Sums grow in the image where there is one with room for whole vectors.
  const bool dense = params.out != nullptr && grid.step_h == 1 && grid.step_w == 1;
  scalar_t* const patches = scratch;
  scalar_t* const beside = scratch + kPatchRows * width;  // [channels, unit]

  for (int64_t number = begin; number < end; ++number) {
    const int64_t n = number / units_per_image;
    const int64_t first = number % units_per_image * unit;
    const int64_t count = smaller(unit, pixels - first);
    for (int64_t pixel = first; pixel < first + count; pixel += width) {
      PixelTile<scalar_t> tile;
      tile.cut(grid, pixel, smaller(width, first + count - pixel));
      const bool in_image = dense && tile.pixels % kLanes<scalar_t> == 0;
      for (int64_t group = 0; group < params.groups; ++group) {
        const int64_t channel = group * params.M;
        const int64_t image = (n * channels + channel) * plane;
        const SumTile<scalar_t> sums =
            in_image ? SumTile<scalar_t>{params.out + image + pixel, plane}
                     : SumTile<scalar_t>{beside + channel * unit + pixel - first, unit};
        sum_tile(params, grid, tile, n, group, patches, sums);
        if (!in_image && params.out != nullptr) {
          scatter(sums, tile, grid, params.M, params.W_out, plane, params.out + image);
        }
      }
    }
    if (params.open != nullptr) {
      const int64_t at = n * channels * plane + first;
      close_sums(params.open + at, channels, plane, count, params.out + at);
    }
    if (params.epilogue == nullptr) continue;
    const int64_t together = epilogue_units(params.epilogue->activation, channels);
    const SumTile<scalar_t> sums =
        params.out == nullptr ? SumTile<scalar_t>{beside, unit}
                              : SumTile<scalar_t>{params.out + n * channels * plane + first, plane};
    apply_epilogue<level>(*params.epilogue,
                          EpilogueBlock<scalar_t>{sums.first, sums.step, together * sums.step, n, 0,
                                                  together, first, count});
  }
}

template <SimdLevel level, typename scalar_t>
void pack_weights(const PackWeights<scalar_t>& params, int64_t begin, int64_t end) {
  const int64_t K = params.transposed ? params.C_out : params.C_in;
  const int64_t M = params.transposed ? params.C_in : params.C_out;
  const int64_t kernel = params.kH * params.kW;
  const int64_t weight_step = params.transposed ? kernel : params.C_in * kernel;
  const int64_t mask_step = params.transposed ? params.mask.stride_ci : params.mask.stride_co;
  const int64_t rows = params.tap_count * K;
  const Panels panels = Panels::of(M, kTileRows);
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t group = pair / K;
    const int64_t k = pair % K;
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t m0 = panels.first(p);
      const int64_t channels = panels.rows(p);
      const int64_t co = group * params.C_out + (params.transposed ? k : m0);
      const int64_t ci = params.transposed ? m0 : k;
      scalar_t* panel = params.packed + group * M * rows + m0 * rows;
      for (int64_t t = 0; t < params.tap_count; ++t) {
        const int64_t tap = params.taps[t];
        const scalar_t* weight = params.weight + (co * params.C_in + ci) * kernel + tap;
        const int64_t mask = mask_index(params.mask, co, ci, tap / params.kW, tap % params.kW);
        scalar_t* to = panel + (t * K + k) * channels;
        for (int64_t m = 0; m < channels; ++m) {
          to[m] = apply_mask(params.mask, mask + m * mask_step, weight[m * weight_step]);
        }
      }
    }
  }
}

#define GENFAST_INSTANTIATE(scalar_t)                                                              \
  template int64_t correlate_scratch<GENFAST_SIMD_LEVEL, scalar_t>(const Correlation<scalar_t>&);  \
  template void correlate<GENFAST_SIMD_LEVEL, scalar_t>(const Correlation<scalar_t>&, const Grid&, \
                                                        scalar_t*, int64_t, int64_t);              \
  template void pack_weights<GENFAST_SIMD_LEVEL, scalar_t>(const PackWeights<scalar_t>&, int64_t,  \
                                                           int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
