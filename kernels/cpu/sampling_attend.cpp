#include "kernels/cpu/vector_math.h"
#include "kernels/sampling.h"

namespace genfast::cpu {
namespace {

// Vectors that hold one number of each chain.
template <typename scalar_t>
constexpr int kChains = static_cast<int>(kAttendLanes) / kLanes<scalar_t>;

// Adds halves to each other until one vector is left: chain d to chain d + 8, + 4, ...
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> folded(Vector<scalar_t> (&sum)[kChains<scalar_t>]) {
#pragma GCC unroll 4
  for (int half = kChains<scalar_t> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// Bytes from what is being read to what is asked for: heads lie in stretches that are too short for
// the processor to find out by itself where the next begins.
constexpr int64_t kAheadBytes = 4096;

// The same in positions, for so many numbers of each head.
template <typename scalar_t>
int64_t positions_ahead(const AttendStretch<scalar_t>& at, int64_t size) {
  const int64_t bytes = at.heads * size * static_cast<int64_t>(sizeof(scalar_t));
  return 1 + (kAheadBytes - 1) / bytes;
}

// Keys whose products go on side by side: one chain alone waits for itself.
template <typename scalar_t>
constexpr int kSideBySide = kChains<scalar_t> == 1 ? 4 : 8 / kChains<scalar_t>;

// Adds to the chains of M keys. `ahead`: numbers from a key to one that is asked for.
template <typename scalar_t, int M>
GENFAST_INLINE void add_products(const scalar_t* key, int64_t stride, const scalar_t* query,
                                 int64_t count, int64_t ahead,
                                 Vector<scalar_t> (&sum)[M][kChains<scalar_t>]) {
  using V = Vector<scalar_t>;
  constexpr int lanes = kLanes<scalar_t>;
  int64_t d = 0;
  for (; d + kAttendLanes <= count; d += kAttendLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains<scalar_t>; ++i) {
      const int64_t at = d + i * lanes;
      const V factor = load(query + at);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        sum[m][i] = multiply_add<scalar_t>(load(key + m * stride + at), factor, sum[m][i]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      __builtin_prefetch(key + m * stride + d + ahead);
      if constexpr (sizeof(scalar_t) == 8) __builtin_prefetch(key + m * stride + d + 8 + ahead);
    }
  }
  if (d == count) return;
#pragma GCC unroll 8
  for (int i = 0; i < kChains<scalar_t>; ++i) {
    const int64_t at = d + i * lanes, left = count - at;
    if (left <= 0) break;
    const uint32_t bits = left >= lanes ? ~uint32_t{0} >> (32 - lanes) : (1u << left) - 1;
    const LaneMask<scalar_t> mask = lane_mask<scalar_t>(bits);
    const V factor = load(query + at);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const V part = load_where<scalar_t>(key + m * stride + at, mask);
      sum[m][i] = multiply_add<scalar_t>(part, factor, sum[m][i]);
    }
  }
}

template <typename scalar_t>
GENFAST_INLINE const scalar_t* piece_of(const AttendStretch<scalar_t>& at, int32_t number,
                                        int64_t position) {
  const AttendPiece& piece = at.pieces[number];
  const AttendPlace<scalar_t>& place = at.places[piece.read];
  return place.first + position * place.stride + piece.offset * place.step;
}

// How a head's keys lie.
template <typename scalar_t>
struct KeyLayout {
  bool straight = true;  // in parts that are read as they are, for they begin with the first chain
  const scalar_t* whole = nullptr;  // in one part even: that of position 0
  int64_t stride = 0;               // from there to the next position's
};

template <typename scalar_t>
KeyLayout<scalar_t> layout_of(const AttendStretch<scalar_t>& at, int64_t head) {
  KeyLayout<scalar_t> found;
  const int32_t begin = at.begins[head], end = at.begins[head + 1];
  for (int32_t n = begin; n < end; ++n) {
    found.straight = found.straight && at.places[at.pieces[n].read].step == 1 &&
                     at.pieces[n].first % kAttendLanes == 0;
  }
  if (found.straight && end - begin == 1) {
    found.whole = piece_of(at, begin, 0);
    found.stride = at.places[at.pieces[begin].read].stride;
  }
  return found;
}

// The chains of a key's product with its query, as one vector.
template <typename scalar_t>
Vector<scalar_t> product_of_parts(const AttendKeys<scalar_t>& call, int64_t head, int64_t position,
                                  bool straight, int64_t ahead) {
  const AttendStretch<scalar_t>& at = call.at;
  const scalar_t* query = call.queries + head * call.query_stride;
  Vector<scalar_t> sum[1][kChains<scalar_t>] = {};
  for (int32_t n = at.begins[head]; n < at.begins[head + 1]; ++n) {
    const AttendPiece& piece = at.pieces[n];
    const AttendPlace<scalar_t>& place = at.places[piece.read];
    const scalar_t* from = piece_of(at, n, position);
    if (straight) {
      add_products(from, 0, query + piece.first, piece.count, ahead * place.stride, sum);
    } else {
      for (int64_t d = 0; d < piece.count; ++d) call.key[piece.first + d] = from[d * place.step];
    }
  }
  if (!straight) add_products<scalar_t>(call.key, 0, query, call.depth, 0, sum);
  return folded<scalar_t>(sum[0]);
}

// The same for keys that lie whole, of M positions: sums[0 .. M - 1].
template <typename scalar_t, int M>
GENFAST_INLINE void products(const KeyLayout<scalar_t>& layout, const scalar_t* query,
                             int64_t depth, int64_t position, int64_t ahead,
                             Vector<scalar_t>* sums) {
  Vector<scalar_t> sum[M][kChains<scalar_t>] = {};
  const scalar_t* key = layout.whole + position * layout.stride;
  add_products<scalar_t, M>(key, layout.stride, query, depth, ahead * layout.stride, sum);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) sums[m] = folded<scalar_t>(sum[m]);
}

template <typename scalar_t>
GENFAST_INLINE scalar_t lane_sum(Vector<scalar_t> x) {
  scalar_t lanes[kLanes<scalar_t>];
  store(lanes, x);
  for (int half = kLanes<scalar_t> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Positions whose values are added before the totals are stored.
constexpr int kValuesTogether = 4;

// totals[w] += weight * value for `count` numbers of M positions, in their order.
template <typename scalar_t, int M>
GENFAST_INLINE void add_values(const scalar_t* from, int64_t stride, const scalar_t* weights,
                               int64_t count, int64_t ahead, scalar_t* totals) {
  using V = Vector<scalar_t>;
  constexpr int lanes = kLanes<scalar_t>;
  V weight[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) weight[m] = broadcast(weights[m]);
  int64_t w = 0;
  for (; w + lanes <= count; w += lanes) {
    V total = load(totals + w);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      total = multiply_add<scalar_t>(weight[m], load(from + m * stride + w), total);
      __builtin_prefetch(from + m * stride + w + ahead);
    }
    store(totals + w, total);
  }
  if (w == count) return;
  const LaneMask<scalar_t> mask = lane_mask<scalar_t>((1u << (count - w)) - 1);
  V total = load_where<scalar_t>(totals + w, mask);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const V value = load_where<scalar_t>(from + m * stride + w, mask);
    total = multiply_add<scalar_t>(weight[m], value, total);
  }
  store_first(totals + w, total, count - w);
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void sampling_attend_scores(const AttendKeys<scalar_t>& call) {
  using V = Vector<scalar_t>;
  constexpr int lanes = kLanes<scalar_t>, kTogether = kSideBySide<scalar_t>;
  const AttendStretch<scalar_t>& at = call.at;
  const int64_t ahead = positions_ahead(at, call.depth);
  KeyLayout<scalar_t> layouts[kAttendHeads];
  for (int64_t h = 0; h < at.heads; ++h) layouts[h] = layout_of(at, h);
  const int64_t depth = call.depth;
  V sums[kAttendHeads][lanes];
  for (int64_t begin = 0; begin < at.positions; begin += lanes) {
    const int64_t rows = at.positions - begin < lanes ? at.positions - begin : lanes;
    // Heads within few positions: that is how keys lie.
    for (int64_t r = 0; r < rows;) {
      const int64_t some = rows - r >= kTogether ? kTogether : 1;
      for (int64_t h = 0; h < at.heads; ++h) {
        const KeyLayout<scalar_t>& layout = layouts[h];
        const scalar_t* query = call.queries + h * call.query_stride;
        V* const to = sums[h] + r;
        if (layout.whole == nullptr) {
          for (int64_t m = 0; m < some; ++m) {
            to[m] = product_of_parts(call, h, begin + r + m, layout.straight, ahead);
          }
        } else if (some == kTogether) {
          products<scalar_t, kTogether>(layout, query, depth, begin + r, ahead, to);
        } else {
          products<scalar_t, 1>(layout, query, depth, begin + r, ahead, to);
        }
      }
      r += some;
    }
    for (int64_t h = 0; h < at.heads; ++h) {
      for (int64_t r = rows; r < lanes; ++r) sums[h][r] = V{};
      transpose<scalar_t>(sums[h]);
#pragma GCC unroll 4
      for (int half = lanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) sums[h][i] += sums[h][i + half];
      }
      store(call.scores + h * call.score_stride + begin, sums[h][0]);
    }
  }
}

template <SimdLevel level, typename scalar_t>
scalar_t sampling_attend_weights(const AttendWeights<scalar_t>& call) {
  using V = Vector<scalar_t>;
  constexpr int lanes = kLanes<scalar_t>;
  const V scale = broadcast(call.scale);
  scalar_t* score = call.scores;
  for (int64_t r = 0; r < call.run_count; ++r) {
    const int64_t count = call.runs[r].end - call.runs[r].begin;
    const scalar_t* bias = call.bias + call.runs[r].begin * call.bias_step;
    for (int64_t k = 0; k < count; k += lanes) {
      const int64_t some = count - k < lanes ? count - k : lanes;
      V shift;
      if (call.bias_step == 1 && some == lanes) {
        shift = load(bias + k);
      } else {
        shift = V{};
        for (int64_t i = 0; i < some; ++i) shift[i] = bias[(k + i) * call.bias_step];
      }
      const V sum = multiply_add<scalar_t>(scale, load(score + k), shift);
      if (some == lanes) {
        store(score + k, sum);
      } else {
        store_first(score + k, sum, some);
      }
    }
    score += count;
  }
  const scalar_t lowest = static_cast<scalar_t>(-HUGE_VAL);
  const int64_t padded = (call.seen + kAttendLanes - 1) / kAttendLanes * kAttendLanes;
  for (int64_t k = call.seen; k < padded; ++k) call.scores[k] = lowest;
  V most = broadcast(lowest);
  for (int64_t k = 0; k < padded; k += lanes) {
    const V x = load(call.scores + k);
    most = select<scalar_t>(x > most, x, most);
  }
  scalar_t highest = lowest;
  for (int i = 0; i < lanes; ++i) highest = most[i] > highest ? most[i] : highest;
  // With NaN among the scores, or nothing but -inf, the sum is NaN, as softmax would say.
  const V shift = broadcast(highest);
  V sum[kChains<scalar_t>] = {};
  for (int64_t k = 0; k < padded; k += kAttendLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains<scalar_t>; ++i) {
      scalar_t* const at = call.scores + k + i * lanes;
      const V weight = exp_of<scalar_t>(load(at) - shift);
      store(at, weight);
      sum[i] += weight;
    }
  }
  return lane_sum<scalar_t>(folded<scalar_t>(sum));
}

template <SimdLevel level, typename scalar_t>
void sampling_attend_values(const AttendValues<scalar_t>& call) {
  const AttendStretch<scalar_t>& at = call.at;
  const int64_t ahead = kValuesTogether;
  for (int64_t position = 0; position < at.positions;) {
    const int64_t together = at.positions - position >= kValuesTogether ? kValuesTogether : 1;
    for (int64_t h = 0; h < at.heads; ++h) {
      const scalar_t* weights = call.weights + h * call.weight_stride + position;
      for (int32_t n = at.begins[h]; n < at.begins[h + 1]; ++n) {
        const AttendPiece& piece = at.pieces[n];
        const AttendPlace<scalar_t>& place = at.places[piece.read];
        const scalar_t* from = piece_of(at, n, position);
        scalar_t* const totals = call.totals + h * call.total_stride + piece.first;
        if (place.step != 1) {
          for (int64_t m = 0; m < together; ++m, from += place.stride) {
            for (int64_t w = 0; w < piece.count; ++w) {
              totals[w] = std::fma(weights[m], from[w * place.step], totals[w]);
            }
          }
        } else if (together == kValuesTogether) {
          add_values<scalar_t, kValuesTogether>(from, place.stride, weights, piece.count,
                                                ahead * place.stride, totals);
        } else {
          add_values<scalar_t, 1>(from, place.stride, weights, piece.count, ahead * place.stride,
                                  totals);
        }
      }
    }
    position += together;
  }
}

template void sampling_attend_scores<GENFAST_SIMD_LEVEL, float>(const AttendKeys<float>&);
template void sampling_attend_scores<GENFAST_SIMD_LEVEL, double>(const AttendKeys<double>&);
template float sampling_attend_weights<GENFAST_SIMD_LEVEL, float>(const AttendWeights<float>&);
template double sampling_attend_weights<GENFAST_SIMD_LEVEL, double>(const AttendWeights<double>&);
template void sampling_attend_values<GENFAST_SIMD_LEVEL, float>(const AttendValues<float>&);
template void sampling_attend_values<GENFAST_SIMD_LEVEL, double>(const AttendValues<double>&);

}  // namespace genfast::cpu
