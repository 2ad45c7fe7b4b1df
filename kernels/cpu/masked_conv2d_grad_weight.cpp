// The gradient of the weight: for each live tap a matrix product over pixels. Both factors are
// first turned into panels, pixels by channels, so that a register tile of input channels by a tile
// of output channels runs over the pixels of a row without a branch.
#include "kernels/cpu/vector.h"
#include "kernels/masked_conv2d.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
constexpr int kTile = static_cast<int>(kChannelTile<GENFAST_SIMD_LEVEL, scalar_t>);

constexpr int kMaxInputs = kVectorBytes == 64 ? 14 : 6;  // input channels of a register tile

// Whole rows of at least so many pixels are summed by themselves and then added to the rest: one
// running sum over all pixels would round a thousand times at its full size.
constexpr int64_t kRunPixels = 128;

constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Input channels [first(s), first(s + 1)) form slice s; the widths differ by at most one.
struct Slices {
  int64_t channels, count;
  explicit Slices(int64_t C_in) : channels(C_in), count(tiles(C_in, kMaxInputs)) {}
  int64_t first(int64_t s) const { return s * channels / count; }
  int64_t width(int64_t s) const { return first(s + 1) - first(s); }
};

// panel[pixel * width + c] = from[c * plane + pixel]. Writes up to a vector beyond the last
// element: the caller leaves room there, or fills it later.
template <typename scalar_t>
void pack_panel(const scalar_t* from, int64_t plane, int64_t channels, int64_t pixels,
                int64_t width, scalar_t* panel) {
  constexpr int lanes = kLanes<scalar_t>;
  if (channels == 1 && width == 1) {
    std::memcpy(panel, from, static_cast<size_t>(pixels) * sizeof(scalar_t));
    return;
  }
  constexpr int most_parts = static_cast<int>(tiles(larger(kTile<scalar_t>, kMaxInputs), lanes));
  Vector<scalar_t> block[most_parts][lanes];
  const int64_t parts = tiles(width, lanes);
  for (int64_t pixel = 0; pixel < pixels; pixel += lanes) {
    const int64_t count = smaller(lanes, pixels - pixel);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t rows = smaller(lanes, channels - part * lanes);
      const scalar_t* row = from + part * lanes * plane + pixel;
      Vector<scalar_t> square[lanes];
      for (int c = 0; c < lanes; ++c) {
        square[c] = c >= rows        ? Vector<scalar_t>{}
                    : count == lanes ? load(row + c * plane)
                                     : load_first(row + c * plane, count);
      }
      transpose<scalar_t>(square);
#pragma GCC unroll 16
      for (int c = 0; c < lanes; ++c) block[part][c] = square[c];
    }
    // In ascending order: each pixel overwrites what its predecessor wrote too far.
    for (int64_t p = 0; p < count; ++p) {
      scalar_t* to = panel + (pixel + p) * width;
      for (int64_t part = 0; part < parts; ++part) store(to + part * lanes, block[part][p]);
    }
  }
}

// The rows of a unit, and where their panels are.
template <typename scalar_t>
struct Unit {
  int64_t row_begin, row_end;  // output rows
  int64_t input_row;           // first input row in the panel of x
  const scalar_t* grad;        // [output rows, W_out, tile]
  int64_t W, W_out, stride_h, stride_w;
};

// sum[c, m] += x[c] * grad[m] at one pixel.
template <typename scalar_t, int inputs, int vectors>
GENFAST_INLINE void add_pixel(const scalar_t* x, const scalar_t* grad,
                              Vector<scalar_t> (&sum)[inputs][vectors]) {
  Vector<scalar_t> factor[vectors];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) factor[v] = load(grad + v * kLanes<scalar_t>);
#pragma GCC unroll 16
  for (int c = 0; c < inputs; ++c) {
    const Vector<scalar_t> value = broadcast(x[c]);
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[c][v] = fused_multiply_add(value, factor[v], sum[c][v]);
  }
}

// sums[c, m] += sum over the unit's pixels of x[c] * grad[m], for one tap and one slice of
// channels.
template <typename scalar_t, int inputs, int vectors>
void accumulate(const Unit<scalar_t>& unit, const GridTap& tap, const scalar_t* x_panel,
                scalar_t* sums) {
  constexpr int lanes = kLanes<scalar_t>;
  constexpr int tile = kTile<scalar_t>;
  // A multiply-add takes four cycles and two start in each: with fewer than eight sums the pixels
  // take turns on several copies of them.
  constexpr int copies = inputs * vectors == 1   ? 8
                         : inputs * vectors == 2 ? 4
                         : inputs * vectors < 8  ? 2
                                                 : 1;
  Vector<scalar_t> sum[copies][inputs][vectors] = {};
  const int64_t i_begin = larger(unit.row_begin, tap.row_begin);
  const int64_t i_end = smaller(unit.row_end, tap.row_end);
  const int64_t step = unit.stride_w * inputs;
  int64_t pixels = 0;  // since the sums were last put away
  for (int64_t i = i_begin; i < i_end; ++i) {
    const int64_t row = i * unit.stride_h + tap.row - unit.input_row;
    const scalar_t* x = x_panel + (row * unit.W + tap.col_begin * unit.stride_w + tap.col) * inputs;
    const scalar_t* grad = unit.grad + ((i - unit.row_begin) * unit.W_out + tap.col_begin) * tile;
    int64_t left = tap.col_end - tap.col_begin;
    for (; left >= copies; left -= copies) {
#pragma GCC unroll 8
      for (int copy = 0; copy < copies; ++copy) {
        add_pixel<scalar_t>(x + copy * step, grad + copy * tile, sum[copy]);
      }
      x += copies * step;
      grad += copies * tile;
    }
    if constexpr (copies > 1) {
      for (; left > 0; --left, x += step, grad += tile) add_pixel<scalar_t>(x, grad, sum[0]);
    }
    pixels += tap.col_end - tap.col_begin;
    if (pixels < kRunPixels && i + 1 < i_end) continue;
    pixels = 0;
#pragma GCC unroll 16
    for (int c = 0; c < inputs; ++c) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 8
        for (int copy = 1; copy < copies; ++copy) sum[0][c][v] += sum[copy][c][v];
        scalar_t* to = sums + c * tile + v * lanes;
        store(to, load(to) + sum[0][c][v]);
#pragma GCC unroll 8
        for (int copy = 0; copy < copies; ++copy) sum[copy][c][v] = Vector<scalar_t>{};
      }
    }
  }
}

template <typename scalar_t>
using Accumulate = void (*)(const Unit<scalar_t>&, const GridTap&, const scalar_t*, scalar_t*);

template <typename scalar_t, int inputs = 1>
Accumulate<scalar_t> accumulate_for(int64_t count, bool one_vector) {
  if constexpr (inputs < kMaxInputs) {
    if (count != inputs) return accumulate_for<scalar_t, inputs + 1>(count, one_vector);
  }
  return one_vector ? accumulate<scalar_t, inputs, 1> : accumulate<scalar_t, inputs, 2>;
}

// Input rows that output rows [begin, end) meet through any live tap.
template <typename scalar_t>
void input_rows(const GradWeight<scalar_t>& params, int64_t begin, int64_t end, int64_t* first,
                int64_t* last) {
  *first = params.H;
  *last = 0;
  for (int64_t t = 0; t < params.tap_count; ++t) {
    const GridTap& tap = params.taps[t];
    const int64_t i_begin = larger(begin, tap.row_begin);
    const int64_t i_end = smaller(end, tap.row_end);
    if (i_begin >= i_end) continue;
    *first = smaller(*first, i_begin * params.stride_h + tap.row);
    *last = larger(*last, (i_end - 1) * params.stride_h + tap.row + 1);
  }
}

template <typename scalar_t>
int64_t grad_panel_size(const GradWeight<scalar_t>& params) {
  return params.unit_rows * params.W_out * kTile<scalar_t>;
}

}  // namespace

template <SimdLevel level, typename scalar_t>
int64_t grad_weight_scratch(const GradWeight<scalar_t>& params) {
  int64_t most_rows = 0;
  for (int64_t u = 0; u < params.units_per_image; ++u) {
    int64_t first = 0, last = 0;
    input_rows(params, u * params.unit_rows, smaller(params.H_out, (u + 1) * params.unit_rows),
               &first, &last);
    most_rows = larger(most_rows, last - first);
  }
  return grad_panel_size(params) + most_rows * params.W * params.C_in + 2 * kTile<scalar_t>;
}

template <SimdLevel level, typename scalar_t>
void grad_weight_partial(const GradWeight<scalar_t>& params, scalar_t* scratch, int64_t begin,
                         int64_t end) {
  constexpr int tile = kTile<scalar_t>;
  const int64_t m_tiles = tiles(params.C_out, tile);
  const int64_t blocks = params.groups * m_tiles;
  const int64_t units = params.N * params.units_per_image;
  const int64_t block_size = params.tap_count * params.C_in * tile;
  const Slices slices(params.C_in);
  scalar_t* grad_panel = scratch;
  scalar_t* x_panel = scratch + grad_panel_size(params);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / blocks;
    const int64_t group = task % blocks / m_tiles;
    const int64_t m0 = task % m_tiles * tile;
    const int64_t channels = smaller(tile, params.C_out - m0);
    const bool one_vector = channels <= kLanes<scalar_t>;
    scalar_t* partial = params.partial + task * block_size;
    std::memset(partial, 0, static_cast<size_t>(block_size) * sizeof(scalar_t));
    const int64_t unit_end = (chunk + 1) * units / params.chunks;
    for (int64_t u = chunk * units / params.chunks; u < unit_end; ++u) {
      const int64_t n = u / params.units_per_image;
      Unit<scalar_t> unit{};
      unit.row_begin = u % params.units_per_image * params.unit_rows;
      unit.row_end = smaller(params.H_out, unit.row_begin + params.unit_rows);
      unit.grad = grad_panel;
      unit.W = params.W;
      unit.W_out = params.W_out;
      unit.stride_h = params.stride_h;
      unit.stride_w = params.stride_w;
      int64_t input_end = 0;
      input_rows(params, unit.row_begin, unit.row_end, &unit.input_row, &input_end);
      if (input_end <= unit.input_row) continue;
      const int64_t x_pixels = (input_end - unit.input_row) * params.W;

      const int64_t x_plane = params.H * params.W;
      const int64_t grad_plane = params.H_out * params.W_out;
      const scalar_t* x = params.x + (n * params.groups + group) * params.C_in * x_plane +
                          unit.input_row * params.W;
      const scalar_t* grad = params.grad +
                             ((n * params.groups + group) * params.C_out + m0) * grad_plane +
                             unit.row_begin * params.W_out;
      pack_panel(grad, grad_plane, channels, (unit.row_end - unit.row_begin) * params.W_out, tile,
                 grad_panel);
      for (int64_t s = 0; s < slices.count; ++s) {
        const int64_t c = slices.first(s);
        pack_panel(x + c * x_plane, x_plane, slices.width(s), x_pixels, slices.width(s),
                   x_panel + c * x_pixels);
      }
      for (int64_t s = 0; s < slices.count; ++s) {
        const int64_t c = slices.first(s);
        const auto accumulate = accumulate_for<scalar_t>(slices.width(s), one_vector);
        for (int64_t t = 0; t < params.tap_count; ++t) {
          accumulate(unit, params.taps[t], x_panel + c * x_pixels,
                     partial + (t * params.C_in + c) * tile);
        }
      }
    }
  }
}

template <SimdLevel level, typename scalar_t>
void grad_weight_reduce(const GradWeight<scalar_t>& params, int64_t begin, int64_t end) {
  constexpr int tile = kTile<scalar_t>;
  const int64_t m_tiles = tiles(params.C_out, tile);
  const int64_t kernel = params.kH * params.kW;
  const int64_t chunk_size = params.groups * m_tiles * params.tap_count * params.C_in * tile;
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t block = pair / params.C_in;
    const int64_t ci = pair % params.C_in;
    const int64_t m0 = block % m_tiles * tile;
    const int64_t co = block / m_tiles * params.C_out + m0;
    const int64_t channels = smaller(tile, params.C_out - m0);
    scalar_t* out = params.grad_weight + (co * params.C_in + ci) * kernel;
    const int64_t out_step = params.C_in * kernel;
    for (int64_t m = 0; m < channels; ++m) {
      std::memset(out + m * out_step, 0, static_cast<size_t>(kernel) * sizeof(scalar_t));
    }
    for (int64_t t = 0; t < params.tap_count; ++t) {
      Vector<scalar_t> sum[2] = {};
      const scalar_t* from =
          params.partial + ((block * params.tap_count + t) * params.C_in + ci) * tile;
      for (int64_t chunk = 0; chunk < params.chunks; ++chunk) {
        sum[0] += load(from + chunk * chunk_size);
        sum[1] += load(from + chunk * chunk_size + kLanes<scalar_t>);
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
