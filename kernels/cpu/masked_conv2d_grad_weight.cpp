// The gradient of the weight: patches times transposed gradients, summed over pixels. Lanes are
// output channels, so that patches are read a number at a time: where they are in the image already
// in the order wanted.
#include "kernels/cpu/denormals.h"
#include "kernels/cpu/masked_conv2d_patches.h"
#include "kernels/cpu/rows.h"
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

// With fewer channels than this a tap does not fill a register tile: taps share one, and their
// patches are packed.
constexpr int64_t kFewChannels = 8;

// Channels of a register tile. A plane of whole pages puts the same pixel of all channels into one
// set of the first level cache, which has room for 8 or 12 lines.
GENFAST_INLINE int64_t most_channels(int64_t plane_bytes) {
  return plane_bytes % 4096 == 0 && kTileRows > 7 ? 7 : kTileRows;
}

using PixelUnit = PixelRun<kGradUnitPixels>;

// Pixels of a unit that lie in a row, in the gradient as in the image.
struct Run {
  int64_t offset;  // of the first pixel in a plane of x
  int lane, lanes;
};

// What one tap multiplies: pixels of the image, as runs, by those of a unit.
struct TapProduct {
  Run run[kGradUnitPixels];
  int runs;
  int64_t plane, step;  // between two channels of x, between two pixels of a run

  // The pixels that the tap finds inside; the others are passed over.
  TapProduct(const Grid& grid, const PixelUnit& unit, const GridTap& tap, int64_t H, int64_t W)
      : runs(0), plane(H * W), step(grid.in_step_w) {
    const bool flat = is_flat(grid, W);
    for (int s = 0; s < unit.segments; ++s) {
      const Segment& segment = unit.segment[s];
      const Span span = inside(segment, tap);
      if (span.begin == span.end) continue;
      const int64_t col = segment.j + span.begin - segment.lane;
      const Run next{(segment.i * grid.in_step_h + tap.row) * W + col * grid.in_step_w + tap.col,
                     span.begin, span.end - span.begin};
      if (flat && runs > 0 && run[runs - 1].lane + run[runs - 1].lanes == next.lane) {
        run[runs - 1].lanes += next.lanes;
      } else {
        run[runs++] = next;
      }
    }
  }
};

// to[c, m] += the sum over the product's pixels of x[c, pixel] * transposed[pixel, m], for M
// channels of x.
template <typename scalar_t, int M, int vectors>
void multiply_image(const TapProduct& product, const scalar_t* x, const scalar_t* transposed,
                    scalar_t* to, int64_t to_step) {
  const int64_t plane = product.plane, step = product.step;
  Vector<scalar_t> sum[M][vectors] = {};
  for (const Run* run = product.run; run != product.run + product.runs; ++run) {
    const scalar_t* grad = transposed + run->lane * kTile<scalar_t>;
    // Three channels share a pointer, the middle one's: fourteen would not fit the registers.
    const scalar_t* middle[(M + 2) / 3];
#pragma GCC unroll 16
    for (int c = 0; c < M; c += 3) middle[c / 3] = x + (c + 1) * plane + run->offset;
    for (int lane = 0; lane < run->lanes; ++lane) {
      Vector<scalar_t> factor[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) factor[v] = load(grad + v * kLanes<scalar_t>);
#pragma GCC unroll 16
      for (int c = 0; c < M; ++c) {
        const Vector<scalar_t> value = broadcast(middle[c / 3][(c % 3 - 1) * plane]);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          sum[c][v] = fused_multiply_add(value, factor[v], sum[c][v]);
        }
      }
      grad += kTile<scalar_t>;
#pragma GCC unroll 16
      for (int c = 0; c < M; c += 3) middle[c / 3] += step;
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < M; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      scalar_t* at = to + c * to_step + v * kLanes<scalar_t>;
      store(at, load(at) + sum[c][v]);
    }
  }
}

template <typename scalar_t>
using MultiplyImage = void (*)(const TapProduct&, const scalar_t*, const scalar_t*, scalar_t*,
                               int64_t);

// The instance for 1 .. kTileRows channels of x.
template <typename scalar_t, int vectors, int M = 1>
MultiplyImage<scalar_t> image_instance(int64_t channels) {
  if constexpr (M < kTileRows) {
    if (channels > M) return image_instance<scalar_t, vectors, M + 1>(channels);
  }
  return multiply_image<scalar_t, M, vectors>;
}

// Adds a unit's part of rows [begin, end) to the partial sums, from the image as it is.
template <typename scalar_t>
void add_unit(const GradWeight<scalar_t>& params, const PixelUnit& unit, const scalar_t* x,
              const scalar_t* transposed, int64_t begin, int64_t end, scalar_t* partial) {
  const int64_t plane = params.H * params.W;
  const int64_t padded = padded_channels(params);
  const int64_t most = most_channels(plane * int64_t{sizeof(scalar_t)});
  for (int64_t r = begin; r < end;) {
    const GridTap& tap = params.grid.taps[r / params.C_in];
    const int64_t c = r % params.C_in;
    const int64_t channels = smaller(params.C_in - c, end - r);
    const TapProduct product(params.grid, unit, tap, params.H, params.W);
    const Panels panels = Panels::of(channels, most);
    for (int64_t p = 0; p < panels.count; ++p) {
      const auto wide = image_instance<scalar_t, 2>(panels.rows(p));
      const auto narrow = image_instance<scalar_t, 1>(panels.rows(p));
      for (int64_t m = 0; m < params.C_out; m += kTile<scalar_t>) {
        const auto multiply = params.C_out - m > kLanes<scalar_t> ? wide : narrow;
        multiply(product, x + (c + panels.first(p)) * plane, transposed + m * kGradUnitPixels,
                 partial + (r - begin + panels.first(p)) * padded + m, padded);
      }
    }
    r += channels;
  }
}

// The same from packed patches.
template <typename scalar_t>
void add_packed_unit(const GradWeight<scalar_t>& params, const PixelUnit& unit, const scalar_t* x,
                     const scalar_t* transposed, int64_t begin, int64_t end, scalar_t* patches,
                     scalar_t* partial) {
  constexpr int64_t width = kTilePixels<scalar_t>;
  constexpr int64_t step = kGradUnitPixels;
  const PatchSource<scalar_t> source{x, params.H * params.W, params.W, params.C_in};
  const int64_t padded = padded_channels(params);
  PixelTile<scalar_t> cut[step / width];
  for (int64_t p = 0; p < unit.pixels; p += width) {
    cut[p / width].cut(params.grid, unit.first + p, smaller(width, unit.pixels - p));
  }
  const Panels panels = Panels::of(end - begin, kTileRows);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t row = panels.first(p);
    for (int64_t t = 0; t * width < unit.pixels; ++t) {
      pack_patches(source, params.grid, cut[t], begin + row, begin + row + panels.rows(p),
                   patches + t * width, step);
    }
    const auto wide = multiply_rows<scalar_t, step, 2>(panels.rows(p));
    const auto narrow = multiply_rows<scalar_t, step, 1>(panels.rows(p));
    for (int64_t m = 0; m < params.C_out; m += kTile<scalar_t>) {
      const auto multiply = params.C_out - m > kLanes<scalar_t> ? wide : narrow;
      multiply(patches, transposed + m * step, kTile<scalar_t>, unit.pixels,
               partial + row * padded + m, padded);
    }
  }
}

template <typename scalar_t>
void rectify(const scalar_t* from, int64_t count, scalar_t* to) {
  for_vectors<scalar_t>(0, count, [&](int64_t k, auto part) {
    store(to + k, relu_value<scalar_t>(load(from + k, part)), part);
  });
}

}  // namespace

template <SimdLevel level, typename scalar_t>
int64_t grad_weight_scratch(const GradWeight<scalar_t>& params) {
  const int64_t image = params.rectified ? params.C_in * params.H * params.W : 0;
  return kGradUnitPixels * (kTileRows + padded_channels(params)) + image;
}

template <SimdLevel level, typename scalar_t>
void grad_weight_partial(const GradWeight<scalar_t>& params, scalar_t* scratch, int64_t begin,
                         int64_t end) {
  [[maybe_unused]] const DenormalsAreZero fast;
  constexpr int64_t tile = kTile<scalar_t>;
  constexpr int64_t step = kGradUnitPixels;
  const int64_t pixels = params.grid.rows * params.grid.cols;
  const int64_t rows = params.grid.tap_count * params.C_in;
  const int64_t padded = padded_channels(params);
  const int64_t units = params.N * params.units_per_image;
  scalar_t* const patches = scratch;
  scalar_t* const transposed = scratch + kTileRows * step;  // [C_out tiles, pixels, tile]
  scalar_t* const positive = transposed + padded * step;    // an image without negative numbers
  int64_t copied = -1;                                      // which one

  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % params.parts;
    const int64_t group = task / params.parts % params.groups;
    const int64_t chunk = task / params.parts / params.groups;
    const int64_t row_begin = part * rows / params.parts;
    const int64_t row_end = (part + 1) * rows / params.parts;
    scalar_t* partial =
        params.partial + ((chunk * params.groups + group) * rows + row_begin) * padded;
    std::memset(partial, 0, static_cast<size_t>((row_end - row_begin) * padded) * sizeof(scalar_t));
    const int64_t unit_end = (chunk + 1) * units / params.chunks;
    for (int64_t u = chunk * units / params.chunks; u < unit_end; ++u) {
      const int64_t image = u / params.units_per_image * params.groups + group;
      const int64_t first = u % params.units_per_image * params.unit_pixels;
      PixelUnit unit;
      unit.cut(params.grid, first, smaller(params.unit_pixels, pixels - first));
      const int64_t image_size = params.C_in * params.H * params.W;
      const scalar_t* x = params.x + image * image_size;
      if (params.rectified) {
        if (copied != image) rectify(x, image_size, positive);
        copied = image;
        x = positive;
      }
      const scalar_t* grad = params.grad + image * params.C_out * pixels + first;
      for (int64_t m = 0; m < params.C_out; m += tile) {
        transpose_channels(grad + m * pixels, pixels, params.C_out - m, unit.pixels,
                           transposed + m * step);
      }
      if (params.C_in < kFewChannels) {
        add_packed_unit(params, unit, x, transposed, row_begin, row_end, patches, partial);
      } else {
        add_unit(params, unit, x, transposed, row_begin, row_end, partial);
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
