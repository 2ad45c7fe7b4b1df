// The gradient of the weight: patches times transposed gradients, summed over pixels. Lanes are
// output channels.
#include "kernels/cpu/patches.h"
#include "kernels/masked_conv2d.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
constexpr int kTile = static_cast<int>(kChannelTile<GENFAST_SIMD_LEVEL, scalar_t>);

// Output channels of the partial sums: whole tiles.
template <typename scalar_t>
int64_t padded_channels(const GradWeight<scalar_t>& params) {
  return tiles(params.C_out, kTile<scalar_t>) * kTile<scalar_t>;
}

// panel[pixel * tile + m] = from[m * plane + pixel]; lanes beyond the channels are zero.
template <typename scalar_t>
void transpose_channels(const scalar_t* from, int64_t plane, int64_t channels, int64_t pixels,
                        scalar_t* panel) {
  constexpr int lanes = kLanes<scalar_t>;
  for (int64_t half = 0; half < kTile<scalar_t>; half += lanes) {
    for (int64_t pixel = 0; pixel < pixels; pixel += lanes) {
      const int64_t count = smaller(lanes, pixels - pixel);
      const scalar_t* corner = from + half * plane + pixel;
      Vector<scalar_t> square[lanes];
      for (int m = 0; m < lanes; ++m) {
        square[m] = half + m >= channels ? Vector<scalar_t>{}
                    : count == lanes     ? load(corner + m * plane)
                                         : load_first(corner + m * plane, count);
      }
      transpose<scalar_t>(square);
      for (int64_t p = 0; p < count; ++p) {
        store(panel + (pixel + p) * kTile<scalar_t> + half, square[p]);
      }
    }
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
int64_t grad_weight_scratch(const GradWeight<scalar_t>& params) {
  return kGradUnitPixels * (kTileRows + padded_channels(params));
}

template <SimdLevel level, typename scalar_t>
void grad_weight_partial(const GradWeight<scalar_t>& params, scalar_t* scratch, int64_t begin,
                         int64_t end) {
  constexpr int64_t tile = kTile<scalar_t>;
  constexpr int64_t width = kTilePixels<scalar_t>;
  constexpr int64_t step = kGradUnitPixels;  // between two rows of packed patches
  const Grid& grid = params.grid;
  const int64_t pixels = grid.rows * grid.cols;
  const int64_t rows = grid.tap_count * params.C_in;
  const int64_t padded = padded_channels(params);
  const int64_t units = params.N * params.units_per_image;
  const int64_t x_plane = params.H * params.W;
  scalar_t* const patches = scratch;
  scalar_t* const transposed = scratch + kTileRows * step;  // [C_out tiles, pixels, tile]

  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % params.parts;
    const int64_t group = task / params.parts % params.groups;
    const int64_t chunk = task / params.parts / params.groups;
    const int64_t row_begin = part * rows / params.parts;
    const int64_t row_end = (part + 1) * rows / params.parts;
    const Panels panels = Panels::of(row_end - row_begin, kTileRows);
    scalar_t* partial =
        params.partial + ((chunk * params.groups + group) * rows + row_begin) * padded;
    std::memset(partial, 0, static_cast<size_t>((row_end - row_begin) * padded) * sizeof(scalar_t));
    const int64_t unit_end = (chunk + 1) * units / params.chunks;
    for (int64_t u = chunk * units / params.chunks; u < unit_end; ++u) {
      const int64_t n = u / params.units_per_image;
      const int64_t first = u % params.units_per_image * params.unit_pixels;
      const int64_t count = smaller(params.unit_pixels, pixels - first);
      const PatchSource<scalar_t> source{
          params.x + (n * params.groups + group) * params.C_in * x_plane, x_plane, params.W,
          params.C_in};
      const scalar_t* grad =
          params.grad + (n * params.groups + group) * params.C_out * pixels + first;
      for (int64_t m = 0; m < params.C_out; m += tile) {
        transpose_channels(grad + m * pixels, pixels, params.C_out - m, count,
                           transposed + m * step);
      }
      PixelTile<scalar_t> cut[step / width];
      for (int64_t p = 0; p < count; p += width) {
        cut_pixels(grid, first + p, smaller(width, count - p), &cut[p / width]);
      }
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t row = panels.first(p);
        for (int64_t t = 0; t * width < count; ++t) {
          pack_patches(source, grid, cut[t], row_begin + row, row_begin + row + panels.rows(p),
                       patches + t * width, step);
        }
        const auto wide = multiply_rows<scalar_t, step, 2>(panels.rows(p));
        const auto narrow = multiply_rows<scalar_t, step, 1>(panels.rows(p));
        for (int64_t m = 0; m < params.C_out; m += tile) {
          const auto multiply = params.C_out - m > kLanes<scalar_t> ? wide : narrow;
          multiply(patches, transposed + m * step, tile, count, partial + row * padded + m, padded);
        }
      }
    }
  }
}

template <SimdLevel level, typename scalar_t>
void grad_weight_reduce(const GradWeight<scalar_t>& params, int64_t begin, int64_t end) {
  constexpr int64_t tile = kTile<scalar_t>;
  const int64_t kernel = params.kH * params.kW;
  const int64_t rows = params.grid.tap_count * params.C_in;
  const int64_t padded = padded_channels(params);
  const int64_t out_step = params.C_in * kernel;
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t group = pair / params.C_in;
    const int64_t ci = pair % params.C_in;
    for (int64_t m0 = 0; m0 < params.C_out; m0 += tile) {
      const int64_t channels = smaller(tile, params.C_out - m0);
      const int64_t co = group * params.C_out + m0;
      scalar_t* out = params.grad_weight + (co * params.C_in + ci) * kernel;
      for (int64_t m = 0; m < channels; ++m) {
        std::memset(out + m * out_step, 0, static_cast<size_t>(kernel) * sizeof(scalar_t));
      }
      for (int64_t t = 0; t < params.grid.tap_count; ++t) {
        Vector<scalar_t> sum[2] = {};
        const scalar_t* from = params.partial + (group * rows + t * params.C_in + ci) * padded + m0;
        for (int64_t chunk = 0; chunk < params.chunks; ++chunk) {
          sum[0] += load(from);
          sum[1] += load(from + kLanes<scalar_t>);
          from += params.groups * rows * padded;
        }
        alignas(64) scalar_t total[tile];
        std::memcpy(total, sum, sizeof(total));
        const int64_t tap = params.positions[t];
        const int64_t mask = mask_index(params.mask, co, ci, tap / params.kW, tap % params.kW);
        for (int64_t m = 0; m < channels; ++m) {
          out[m * out_step + tap] =
              apply_mask(params.mask, mask + m * params.mask.stride_co, total[m]);
        }
      }
    }
  }
}

#define GENFAST_INSTANTIATE(scalar_t)                                                              \
  template int64_t grad_weight_scratch<GENFAST_SIMD_LEVEL, scalar_t>(const GradWeight<scalar_t>&); \
  template void grad_weight_partial<GENFAST_SIMD_LEVEL, scalar_t>(const GradWeight<scalar_t>&,     \
                                                                  scalar_t*, int64_t, int64_t);    \
  template void grad_weight_reduce<GENFAST_SIMD_LEVEL, scalar_t>(const GradWeight<scalar_t>&,      \
                                                                 int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
