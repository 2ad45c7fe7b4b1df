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

// What is added to the product of row c: the bias and the condition, of vectors from time t on.
template <typename scalar_t>
class Added {
 public:
  Added(const CausalConv1dInputs<scalar_t>& inputs, const TimeTile& tile, int64_t c) {
    const CausalConv1dShape& shape = inputs.shape;
    scalar_t number = inputs.bias == nullptr ? scalar_t(0) : inputs.bias[c];
    if (inputs.condition != nullptr) {
      const int64_t row = tile.n * 2 * shape.G + c;
      if (inputs.condition_step == 0) {
        number += inputs.condition[row];
      } else {
        row_ = inputs.condition + row * shape.T + tile.start;
      }
    }
    number_ = broadcast(number);
  }

  GENFAST_INLINE Vector<scalar_t> at(const Added& added, int64_t t, int64_t count) {
    if (added.row_ == nullptr) return added.number_;
    return added.number_ + load_within(added.row_ + t, count - t);
  }

 private:
  Vector<scalar_t> number_;
  const scalar_t* row_ = nullptr;
};

// Calls function(g, t, a, b) for every gate g and every vector of moments from t on of a tile,
// where a and b are the arguments of the gate.
template <typename scalar_t, typename Prepare, typename Function>
void for_gates(const CausalConv1dInputs<scalar_t>& inputs, const scalar_t* packed,
               const TimeTile& tile, const scalar_t* taps, Prepare&& prepare, Function&& function) {
  constexpr int64_t columns = kTileColumns<scalar_t>, lanes = kLanes<scalar_t>;
  const CausalConv1dShape& shape = inputs.shape;
  const int64_t K = shape.K();
  alignas(64) scalar_t product[kTileRows * columns];
  const Panels panels = Panels::of(shape.G, kTilePairs);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t pairs = panels.rows(p), first = panels.first(p);
    const auto multiply = multiply_packed<scalar_t>(2 * pairs);
    for (int64_t t = 0; t < tile.width; t += columns) {
      multiply(packed + 2 * first * K, taps + t, kBufferStep, K, product, columns);
      prepare(p, first, pairs, t);
      for (int64_t i = 0; i < pairs; ++i) {
        const Added<scalar_t> to_a(inputs, tile, first + i);
        const Added<scalar_t> to_b(inputs, tile, shape.G + first + i);
        for (int64_t v = 0; v < columns; v += lanes) {
          const Vector<scalar_t> a =
              load(product + i * columns + v) + Added<scalar_t>::at(to_a, t + v, tile.count);
          const Vector<scalar_t> b = load(product + (pairs + i) * columns + v) +
                                     Added<scalar_t>::at(to_b, t + v, tile.count);
          function(first + i, i, t, v, a, b);
        }
      }
    }
  }
}

}  // namespace
}  // namespace genfast::cpu
