#include "kernels/categorical_nll.h"

#include "kernels/cpu/log_exp.h"

namespace genfast::cpu {
namespace {

// Classes are taken so many at a time, at every SIMD level: sums are added in one order.
constexpr int kBlock = 16;

// Reads and writes the scores of `kBlock` classes of a vector of sites, a vector for each class.
template <typename scalar_t>
struct Sites {
  int64_t site_stride, class_stride;
  int64_t count;  // sites, at most kLanes

  // Classes beyond `classes` and sites beyond `count` read as they are initialised.
  void read(const scalar_t* from, int64_t classes, Vector<scalar_t> (&scores)[kBlock]) const {
    constexpr int n = kLanes<scalar_t>;
    if (site_stride == 1 && count == n) {
      for (int64_t c = 0; c < classes; ++c) {
        scores[c] = load(from + c * class_stride);
        __builtin_prefetch(from + c * class_stride + n);  // too many streams to be foreseen
      }
    } else if (class_stride == 1 && count == n && classes == kBlock) {
#pragma GCC unroll 8
      for (int part = 0; part < kBlock; part += n) {
        Vector<scalar_t> square[n];
        for (int i = 0; i < n; ++i) square[i] = load(from + i * site_stride + part);
        transpose<scalar_t>(square);
        for (int i = 0; i < n; ++i) scores[part + i] = square[i];
      }
    } else {
      for (int64_t c = 0; c < classes; ++c) {
        for (int64_t i = 0; i < count; ++i) {
          scores[c][i] = from[c * class_stride + i * site_stride];
        }
      }
    }
  }

  void write(scalar_t* to, int64_t classes, Vector<scalar_t> (&scores)[kBlock]) const {
    constexpr int n = kLanes<scalar_t>;
    if (site_stride == 1 && count == n) {
      for (int64_t c = 0; c < classes; ++c) store(to + c * class_stride, scores[c]);
    } else if (class_stride == 1 && count == n && classes == kBlock) {
#pragma GCC unroll 8
      for (int part = 0; part < kBlock; part += n) {
        Vector<scalar_t> square[n];
        for (int i = 0; i < n; ++i) square[i] = scores[part + i];
        transpose<scalar_t>(square);
        for (int i = 0; i < n; ++i) store(to + i * site_stride + part, square[i]);
      }
    } else {
      for (int64_t c = 0; c < classes; ++c) {
        for (int64_t i = 0; i < count; ++i) {
          to[c * class_stride + i * site_stride] = scores[c][i];
        }
      }
    }
  }
};

// exp(x) for x <= 0, down to 0.
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> weight_of(Vector<scalar_t> x) {
  const Vector<scalar_t> least = broadcast(sizeof(scalar_t) == 4 ? scalar_t(-87) : scalar_t(-708));
  return select<scalar_t>(x < least, Vector<scalar_t>{}, exp_value(falling_exp<scalar_t>(x)));
}

template <typename scalar_t>
struct Normaliser {
  Vector<scalar_t> most, sum;
};

// The largest score of each site and the sum of exp(score - largest), in one pass: when a block has
// a larger score, the sum so far shrinks.
template <typename scalar_t>
Normaliser<scalar_t> normaliser(const Sites<scalar_t>& sites, const scalar_t* logits,
                                int64_t classes) {
  using V = Vector<scalar_t>;
  // Not infinity: scores of minus infinity must find a finite number to be subtracted from.
  constexpr scalar_t kLeast =
      sizeof(scalar_t) == 4 ? scalar_t(-__FLT_MAX__) : static_cast<scalar_t>(-__DBL_MAX__);
  V most = broadcast(kLeast), sum{};
  const V minus_infinity = broadcast(static_cast<scalar_t>(-__builtin_inf()));
  for (int64_t c = 0; c < classes; c += kBlock) {
    const int64_t left = classes - c < kBlock ? classes - c : kBlock;
    V scores[kBlock];
    if (left < kBlock) {
      for (V& score : scores) score = minus_infinity;
    }
    if (left < kBlock || sites.count < kLanes<scalar_t>) {
      for (int64_t i = 0; i < left; ++i) scores[i] = V{};
    }
    sites.read(logits + c * sites.class_stride, left, scores);
    V larger = most;
#pragma GCC unroll 16
    for (int i = 0; i < kBlock; ++i) {
      larger = select<scalar_t>(scores[i] > larger, scores[i], larger);
    }
    V part[4] = {};
#pragma GCC unroll 16
    for (int i = 0; i < kBlock; ++i) part[i % 4] += weight_of<scalar_t>(scores[i] - larger);
    sum = sum * weight_of<scalar_t>(most - larger) + ((part[0] + part[1]) + (part[2] + part[3]));
    most = larger;
  }
  return {most, sum};
}

// Calls function(row, first site, number of sites) for the vectors of sites of chunk `chunk`.
template <typename scalar_t, typename Function>
void for_vectors(const CategoricalLayout& layout, int64_t chunk, Function&& function) {
  const int64_t chunks = categorical_chunks(layout);
  const int64_t begin = chunk % chunks * kCategoricalChunk;
  const int64_t end =
      begin + kCategoricalChunk < layout.sites ? begin + kCategoricalChunk : layout.sites;
  constexpr int n = kLanes<scalar_t>;
  for (int64_t site = begin; site < end; site += n) {
    function(chunk / chunks, site, end - site < n ? end - site : n);
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
bool categorical_nll(const CategoricalNll<scalar_t, scalar_t>& params, int64_t begin, int64_t end) {
  constexpr int n = kLanes<scalar_t>;
  const CategoricalLayout& layout = params.layout;
  bool fits = true;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    double loss = 0;
    for_vectors<scalar_t>(layout, chunk, [&](int64_t row, int64_t site, int64_t count) {
      const scalar_t* const from =
          params.logits + categorical_offset(layout, row) + site * layout.site_stride;
      const int64_t first = row * layout.sites + site;
      const Normaliser<scalar_t> found = normaliser<scalar_t>(
          {layout.site_stride, layout.class_stride, count}, from, layout.classes);
      scalar_t most[n], logs[n];
      store(most, found.most);
      store(logs, log_of<scalar_t>(found.sum));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t symbol = params.symbols[first + i];
        if (symbol < 0 || symbol >= layout.classes) {
          fits = false;
          continue;
        }
        const scalar_t score = from[symbol * layout.class_stride + i * layout.site_stride];
        loss += static_cast<double>((most[i] - score) + logs[i]);
      }
      if (params.most != nullptr) {
        store_first(params.most + first, found.most, count);
        store_first(params.sum + first, found.sum, count);
      }
    });
    params.losses[chunk] = loss;
  }
  return fits;
}

template <SimdLevel level, typename scalar_t>
void categorical_nll_backward(const CategoricalNllBackward<scalar_t, scalar_t>& params,
                              int64_t begin, int64_t end) {
  using V = Vector<scalar_t>;
  const CategoricalLayout &layout = params.layout, &to_layout = params.grad_layout;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    for_vectors<scalar_t>(layout, chunk, [&](int64_t row, int64_t site, int64_t count) {
      const scalar_t* const from =
          params.logits + categorical_offset(layout, row) + site * layout.site_stride;
      scalar_t* const to =
          params.grad + categorical_offset(to_layout, row) + site * to_layout.site_stride;
      const int64_t first = row * layout.sites + site;
      const scalar_t grad_loss = params.grad_loss[row / layout.groups];
      const V most = load_first(params.most + first, count);
      const V factor = broadcast(grad_loss) / load_first(params.sum + first, count);
      const Sites<scalar_t> reading{layout.site_stride, layout.class_stride, count};
      const Sites<scalar_t> writing{to_layout.site_stride, to_layout.class_stride, count};
      for (int64_t c = 0; c < layout.classes; c += kBlock) {
        const int64_t left = layout.classes - c < kBlock ? layout.classes - c : kBlock;
        V scores[kBlock];
        if (left < kBlock || count < kLanes<scalar_t>) {
          for (V& score : scores) score = V{};
        }
        reading.read(from + c * layout.class_stride, left, scores);
#pragma GCC unroll 16
        for (int i = 0; i < kBlock; ++i) {
          scores[i] = weight_of<scalar_t>(scores[i] - most) * factor;
        }
        writing.write(to + c * to_layout.class_stride, left, scores);
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t symbol = params.symbols[first + i];
        if (symbol < 0 || symbol >= layout.classes) continue;  // the forward has refused it
        to[symbol * to_layout.class_stride + i * to_layout.site_stride] -= grad_loss;
      }
    });
  }
}

#define GENFAST_INSTANTIATE(scalar_t)                                   \
  template bool categorical_nll<GENFAST_SIMD_LEVEL, scalar_t>(          \
      const CategoricalNll<scalar_t, scalar_t>&, int64_t, int64_t);     \
  template void categorical_nll_backward<GENFAST_SIMD_LEVEL, scalar_t>( \
      const CategoricalNllBackward<scalar_t, scalar_t>&, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
