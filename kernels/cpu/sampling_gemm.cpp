#include "kernels/cpu/vector_math.h"
#include "kernels/sampling.h"

namespace genfast::cpu {
namespace {

// Sums held in registers: with the weights and one broadcast they fill the register file.
constexpr int kMaxSums = kVectorBytes == 64 ? 24 : 12;
constexpr int kMaxRows = kMaxSums / 2;

// Inputs of the only row that are not zero, in order; NaN is none. Returns how many.
template <typename scalar_t>
int64_t find_live(const GemmCall<scalar_t>& call) {
  int64_t found = 0;
  for (int64_t t = 0; t < call.tap_count; ++t) {
    const GemmTap<scalar_t>& tap = call.taps[t];
    const scalar_t* x = tap.rows[0];
    if (x == nullptr) continue;
    for (int64_t k = 0; k < tap.count; ++k, x += tap.step) {
      call.live[found] = {tap.first_k + k, *x};
      found += *x != 0 ? 1 : 0;
    }
  }
  return found;
}

// Rows row .. row + M - 1 of P panels, of which W vectors count; with kLive only live inputs.
template <typename scalar_t, int M, int P, int W, bool kLive = false>
void gemm_tile(const GemmCall<scalar_t>& call, int64_t row, const int32_t* panels) {
  using V = Vector<scalar_t>;
  constexpr int lanes = kLanes<scalar_t>;
  constexpr int width = static_cast<int>(kPanelVectors) * lanes;
  const int64_t whole = call.features / lanes;  // vectors that are stored whole
  V sum[M][P * W];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int w = 0; w < W; ++w) {
      const int64_t vector = panels[p] * kPanelVectors + w;
      const V bias = load(call.bias + vector * lanes);
      if (call.initial == nullptr) {
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) sum[m][p * W + w] = bias;
      } else if (vector < whole) {
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
          sum[m][p * W + w] = load(call.initial[row + m] + vector * lanes) + bias;
        }
      } else {
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
          const scalar_t* from = call.initial[row + m] + vector * lanes;
          sum[m][p * W + w] = load_first(from, call.features - vector * lanes) + bias;
        }
      }
    }
  }
  if constexpr (kLive) {
    const scalar_t* weight[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) weight[p] = call.packed + panels[p] * call.K * width;
    const LiveInput<scalar_t>* const end = call.live + call.live_count;
    for (const LiveInput<scalar_t>* input = call.live; input < end; ++input) {
      const V value = broadcast(input->value);
#pragma GCC unroll 8
      for (int v = 0; v < P * W; ++v) {
        const V factor = load(weight[v / W] + input->k * width + v % W * lanes);
        sum[0][v] = multiply_add<scalar_t>(value, factor, sum[0][v]);
      }
    }
  }
  const int64_t ahead = call.K * width;
  for (int64_t t = 0; t < (kLive ? 0 : call.tap_count); ++t) {
    const GemmTap<scalar_t>& tap = call.taps[t];
    const scalar_t* x[M];
    bool outside = true;
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const scalar_t* from = tap.rows[row + m];
      outside = outside && from == nullptr;
      x[m] = from == nullptr ? call.zeros : from;
    }
    if (outside) continue;
    const scalar_t* weight[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
      weight[p] = call.packed + (panels[p] * call.K + tap.first_k) * width;
    int64_t at = 0;
    for (int64_t k = 0; k < tap.count; ++k) {
      V factor[P * W];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int w = 0; w < W; ++w) {
          const scalar_t* from = weight[p] + k * width + w * lanes;
          factor[p * W + w] = load(from);
          // Many rows leave time to fetch the next panel from beyond the second level cache.
          if constexpr (P == 1 && M >= kMaxRows / 2) __builtin_prefetch(from + ahead, 0, 2);
        }
      }
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const V value = broadcast(x[m][at]);
#pragma GCC unroll 8
        for (int v = 0; v < P * W; ++v) {
          sum[m][v] = multiply_add<scalar_t>(value, factor[v], sum[m][v]);
        }
      }
      at += tap.step;
    }
  }
  const auto write = [&](scalar_t* const* to) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
      for (int w = 0; w < W; ++w) {
        const int64_t vector = panels[p] * kPanelVectors + w;
        if (vector < whole) {
#pragma GCC unroll 12
          for (int m = 0; m < M; ++m) store(to[row + m] + vector * lanes, sum[m][p * W + w]);
        } else {
#pragma GCC unroll 12
          for (int m = 0; m < M; ++m) {
            store_first(to[row + m] + vector * lanes, sum[m][p * W + w],
                        call.features - vector * lanes);
          }
        }
      }
    }
  };
  write(call.out);
  if (call.rectified == nullptr) return;
  const V zero{};
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < P * W; ++v)
      sum[m][v] = select<scalar_t>(sum[m][v] <= zero, zero, sum[m][v]);
  }
  write(call.rectified);
}

template <typename scalar_t>
using Tile = void (*)(const GemmCall<scalar_t>&, int64_t, const int32_t*);

// The instance for a number of rows in M .. kMaxSums / (P * W).
template <typename scalar_t, int P, int W, int M = 1>
Tile<scalar_t> tile_for(int64_t rows) {
  if constexpr ((M + 1) * P * W > kMaxSums || M == kMaxRows) {
    return gemm_tile<scalar_t, M, P, W>;
  } else {
    if (rows == M) return gemm_tile<scalar_t, M, P, W>;
    return tile_for<scalar_t, P, W, M + 1>(rows);
  }
}

// Panels first .. end - 1 of the list, P at a time, for rows that fit `most` to a tile.
template <typename scalar_t, int P, int W>
void run_panels(const GemmCall<scalar_t>& call, int64_t most, int64_t first, int64_t end) {
  if (call.live != nullptr) {
    for (; first < end; first += P) {
      gemm_tile<scalar_t, 1, P, W, true>(call, 0, call.panels + first);
    }
    return;
  }
  if (call.rows == 1) {
    for (; first < end; first += P) gemm_tile<scalar_t, 1, P, W>(call, 0, call.panels + first);
    return;
  }
  const int64_t tiles = (call.rows + most - 1) / most;
  const int64_t size = call.rows / tiles, larger = call.rows % tiles;
  const Tile<scalar_t> tile = tile_for<scalar_t, P, W>(size);
  const Tile<scalar_t> larger_tile = larger > 0 ? tile_for<scalar_t, P, W>(size + 1) : tile;
  for (int64_t panel = first; panel < end; panel += P) {
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const bool large = i < larger;
      (large ? larger_tile : tile)(call, row, call.panels + panel);
      row += size + (large ? 1 : 0);
    }
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void sampling_gemm(GemmCall<scalar_t> call) {
  static_assert(kPanelWidth<GENFAST_SIMD_LEVEL, scalar_t> == kPanelVectors * kLanes<scalar_t>);
  const int64_t panels =
      (call.features + kPanelVectors * kLanes<scalar_t> - 1) / (kPanelVectors * kLanes<scalar_t>);
  const bool last_is_half =
      call.features - (panels - 1) * kPanelVectors * kLanes<scalar_t> <= kLanes<scalar_t>;
  int64_t end = call.panel_count;
  const bool half = last_is_half && end > 0 && call.panels[end - 1] == panels - 1;
  if (half) --end;
  if (call.live != nullptr) call.live_count = find_live(call);
  // Few rows leave room for more panels side by side: more independent chains.
  const int64_t rows = call.rows_alone ? 1 : call.rows;
  const int64_t most = call.rows_alone ? 1 : kMaxRows;
  int64_t first = 0;
  if (rows <= kMaxSums / 8) {
    for (; first + 4 <= end; first += 4) run_panels<scalar_t, 4, 2>(call, most, first, first + 4);
  }
  if (rows <= kMaxSums / 4) {
    for (; first + 2 <= end; first += 2) run_panels<scalar_t, 2, 2>(call, most, first, first + 2);
  }
  if (first < end) run_panels<scalar_t, 1, 2>(call, most, first, end);
  if (half) run_panels<scalar_t, 1, 1>(call, most, end, end + 1);
}

template void sampling_gemm<GENFAST_SIMD_LEVEL, float>(GemmCall<float>);
template void sampling_gemm<GENFAST_SIMD_LEVEL, double>(GemmCall<double>);

}  // namespace genfast::cpu
