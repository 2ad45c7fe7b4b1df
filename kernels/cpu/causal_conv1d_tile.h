// What the forward and the backward pass of causal_conv1d share: a tile of time in buffers that the
// second level cache holds, and the walk over its gates.
#pragma once

#include "kernels/causal_conv1d.h"
#include "kernels/cpu/gate.h"
#include "kernels/cpu/matrix_tile.h"

namespace genfast::cpu {
namespace {

// Rows of a buffer lie an odd number of cache lines apart, so that a column of it spreads over the
// cache.
constexpr int64_t kBufferStep = kCausalConv1dTile + 16;

// A pair of rows makes a gate.
constexpr int64_t kTilePairs = kTileRows / 2;

struct TimeTile {
  int64_t n, start, count;  // example, first moment, moments
  int64_t width;            // count, rounded up to whole register tiles

  template <typename scalar_t>
  GENFAST_INLINE TimeTile of(const CausalConv1dShape& shape, int64_t tile) {
    constexpr int64_t columns = kTileColumns<scalar_t>;
    const int64_t per_example = causal_conv1d_tiles(shape) / shape.N;
    const int64_t start = tile % per_example * kCausalConv1dTile;
    const int64_t left = shape.T - start;
    const int64_t count = left < kCausalConv1dTile ? left : kCausalConv1dTile;
    return {tile / per_example, start, count, (count + columns - 1) / columns * columns};
  }
};

// Fills rows of a buffer with rows of a tensor [rows, T], from moment `start` on; beyond [0, T) and
// beyond `count` stand zeros.
template <typename scalar_t>
void read_rows(const scalar_t* from, int64_t rows, int64_t T, int64_t start, const TimeTile& tile,
               scalar_t* to) {
  const int64_t before = start < 0 ? (-start < tile.count ? -start : tile.count) : 0;
  int64_t end = T - start < tile.count ? T - start : tile.count;
  if (end < before) end = before;
  for (int64_t r = 0; r < rows; ++r) {
    scalar_t* row = to + r * kBufferStep;
    for (int64_t t = 0; t < before; ++t) row[t] = 0;
    if (end > before) {
      std::memcpy(row + before, from + r * T + start + before,
                  static_cast<size_t>(end - before) * sizeof(scalar_t));
    }
    for (int64_t t = end; t < tile.width; ++t) row[t] = 0;
  }
}

// The inputs of all taps, [taps * R] rows.
template <typename scalar_t>
void read_taps(const CausalConv1dInputs<scalar_t>& inputs, const TimeTile& tile, scalar_t* to) {
  const CausalConv1dShape& shape = inputs.shape;
  for (int64_t j = 0; j < shape.taps; ++j) {
    const int64_t shift = (shape.taps - 1 - j) * shape.dilation;
    read_rows(inputs.x + tile.n * shape.R * shape.T, shape.R, shape.T, tile.start - shift, tile,
              to + j * shape.R * kBufferStep);
  }
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> load_within(const scalar_t* from, int64_t left) {
  if (left >= kLanes<scalar_t>) return load(from);
  return left <= 0 ? Vector<scalar_t>{} : load_first(from, left);
}

template <typename scalar_t>
GENFAST_INLINE void store_within(scalar_t* to, Vector<scalar_t> value, int64_t left) {
  if (left >= kLanes<scalar_t>) {
    store(to, value);
  } else if (left > 0) {
    store_first(to, value, left);
  }
}

// What is added to the product of row c: the bias and the condition.
template <typename scalar_t>
struct Added {
  scalar_t number;
  const scalar_t* row;  // from the start of the tile on, or null

  GENFAST_INLINE Added of(const CausalConv1dInputs<scalar_t>& inputs, const TimeTile& tile,
                          int64_t c) {
    Added added{inputs.bias == nullptr ? scalar_t(0) : inputs.bias[c], nullptr};
    if (inputs.condition != nullptr) {
      const int64_t row = tile.n * 2 * inputs.shape.G + c;
      if (inputs.condition_step == 0) {
        added.number += inputs.condition[row];
      } else {
        added.row = inputs.condition + row * inputs.shape.T + tile.start;
      }
    }
    return added;
  }
};

// A vector of h at moment t of the tile; `whole` where all of its moments exist.
template <bool whole, typename scalar_t>
GENFAST_INLINE Vector<scalar_t> sum_at(const scalar_t* product, const Added<scalar_t>& added,
                                       int64_t t, int64_t count) {
  const Vector<scalar_t> value = load(product) + broadcast(added.number);
  if (added.row == nullptr) return value;
  return value + (whole ? load(added.row + t) : load_within(added.row + t, count - t));
}

// For every register tile of a tile of time: calls prepare(first gate, gates, t), then function(g,
// i, v, t, a, b) for each gate g, the i-th of them, and each vector of moments from t on, the v-th
// number of its columns; a and b are the arguments of the gate.
template <typename scalar_t, typename Prepare, typename Function>
void for_gates(const CausalConv1dInputs<scalar_t>& inputs, const scalar_t* packed,
               const TimeTile& tile, const scalar_t* taps, Prepare&& prepare, Function&& function) {
  constexpr int64_t columns = kTileColumns<scalar_t>, lanes = kLanes<scalar_t>;
  const CausalConv1dShape& shape = inputs.shape;
  const int64_t K = shape.K();
  alignas(64) scalar_t product[kTileRows * columns];
  Added<scalar_t> added[kTileRows];
  const Panels panels = Panels::of(shape.G, kTilePairs);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t pairs = panels.rows(p), first = panels.first(p);
    for (int64_t i = 0; i < pairs; ++i) {
      added[i] = Added<scalar_t>::of(inputs, tile, first + i);
      added[pairs + i] = Added<scalar_t>::of(inputs, tile, shape.G + first + i);
    }
    const auto multiply = multiply_packed<scalar_t>(2 * pairs);
    const auto gates = [&](int64_t start, auto whole) {
      for (int64_t i = 0; i < pairs; ++i) {
        const scalar_t *of_a = product + i * columns, *of_b = of_a + pairs * columns;
#pragma GCC unroll 2
        for (int64_t v = 0; v < columns; v += lanes) {
          const int64_t t = start + v;
          function(first + i, i, v, t, sum_at<whole()>(of_a + v, added[i], t, tile.count),
                   sum_at<whole()>(of_b + v, added[pairs + i], t, tile.count));
        }
      }
    };
    for (int64_t t = 0; t < tile.width; t += columns) {
      multiply(packed + 2 * first * K, taps + t, kBufferStep, K, product, columns);
      prepare(first, pairs, t);
      if (t + columns <= tile.count) {
        gates(t, std::true_type{});
      } else {
        gates(t, std::false_type{});
      }
    }
  }
}

}  // namespace
}  // namespace genfast::cpu
