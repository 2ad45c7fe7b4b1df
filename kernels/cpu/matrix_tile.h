// Products of small matrices, from register tile to register tile.
#pragma once

#include "kernels/cpu/vector.h"

namespace genfast::cpu {
namespace {

// A register tile has up to this many rows of two vectors: with a row of the second matrix and one
// broadcast number they fill the registers (AVX-512 has 32, the others 16).
constexpr int kTileRows = kVectorBytes == 64 ? 14 : 6;
template <typename scalar_t>
constexpr int64_t kTileColumns = 2 * kLanes<scalar_t>;

// Rows cut into panels of nearly equal size, none above `most`.
struct Panels {
  int64_t count, size, larger;  // the first `larger` ones have one row more than `size`

  GENFAST_INLINE Panels of(int64_t rows, int64_t most) {
    const int64_t count = (rows + most - 1) / most;
    if (count == 0) return {0, 0, 0};
    return {count, rows / count, rows % count};
  }
  int64_t rows(int64_t panel) const { return size + (panel < larger ? 1 : 0); }
  int64_t first(int64_t panel) const { return panel * size + (panel < larger ? panel : larger); }
};

// to[m, c] (+)= the sum over k of a[m * row_step + k * k_step] * b[k * b_step + c], for one
// register tile. A packed panel has row_step 1 and its M rows as k_step. What was there is added
// last: a long running sum would round every product at its full size.
template <typename scalar_t, int M, int vectors, int64_t row_step, int64_t k_step, bool accumulate>
void multiply_tile(const scalar_t* a, const scalar_t* b, int64_t b_step, int64_t K, scalar_t* to,
                   int64_t to_step) {
  Vector<scalar_t> sum[M][vectors] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vector<scalar_t> factor[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) factor[v] = load(b + v * kLanes<scalar_t>);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vector<scalar_t> value = broadcast(a[m * row_step]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[m][v] = fused_multiply_add(value, factor[v], sum[m][v]);
    }
    a += k_step;
    b += b_step;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      scalar_t* at = to + m * to_step + v * kLanes<scalar_t>;
      store(at, accumulate ? load(at) + sum[m][v] : sum[m][v]);
    }
  }
}

template <typename scalar_t>
using MultiplyTile = void (*)(const scalar_t*, const scalar_t*, int64_t, int64_t, scalar_t*,
                              int64_t);

// The instance for a packed panel of 1 .. kTileRows rows.
template <typename scalar_t, int M = 1>
MultiplyTile<scalar_t> multiply_packed(int64_t rows) {
  if constexpr (M < kTileRows) {
    if (rows > M) return multiply_packed<scalar_t, M + 1>(rows);
  }
  return multiply_tile<scalar_t, M, 2, 1, M, false>;
}

// The instance that adds to a tile of one or two vectors the product of rows `row_step` apart.
template <typename scalar_t, int64_t row_step, int vectors = 2, int M = 1>
MultiplyTile<scalar_t> multiply_rows(int64_t rows) {
  if constexpr (M < kTileRows) {
    if (rows > M) return multiply_rows<scalar_t, row_step, vectors, M + 1>(rows);
  }
  return multiply_tile<scalar_t, M, vectors, row_step, 1, true>;
}

// to[c, r] = from[r, c] for `rows` rows and `columns` columns, multiples of a vector both.
template <typename scalar_t>
void transpose_matrix(const scalar_t* from, int64_t from_step, int64_t rows, int64_t columns,
                      scalar_t* to, int64_t to_step) {
  constexpr int64_t lanes = kLanes<scalar_t>;
  for (int64_t r = 0; r < rows; r += lanes) {
    for (int64_t c = 0; c < columns; c += lanes) {
      Vector<scalar_t> block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) block[i] = load(from + (r + i) * from_step + c);
      transpose<scalar_t>(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store(to + (c + i) * to_step + r, block[i]);
    }
  }
}

}  // namespace
}  // namespace genfast::cpu
