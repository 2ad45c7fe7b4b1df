#include "kernels/gated_activation.h"

#include "kernels/cpu/gate.h"
#include "kernels/cpu/rows.h"

namespace genfast::cpu {
namespace {

enum class Condition { kNone, kOneNumber, kRow };

// The pair of rows (i, j), with its condition added where it is read.
template <Condition condition, typename scalar_t>
class PairOfRows {
 public:
  GENFAST_INLINE PairOfRows at(const GatePairs<const scalar_t>& x,
                               const GateCondition<scalar_t>& given, int64_t i, int64_t j) {
    PairOfRows rows;
    rows.a_ = x.data + i * x.outer + j * x.inner;
    rows.b_ = rows.a_ + x.half;
    if constexpr (condition != Condition::kNone) {
      rows.of_a_ = given.pairs.data + i * given.pairs.outer + j * given.pairs.inner;
      rows.of_b_ = rows.of_a_ + given.pairs.half;
    }
    return rows;
  }

  template <typename Part>
  Vector<scalar_t> a(int64_t k, Part part) const {
    return sum(a_, of_a_, k, part);
  }
  template <typename Part>
  Vector<scalar_t> b(int64_t k, Part part) const {
    return sum(b_, of_b_, k, part);
  }

 private:
  template <typename Part>
  static Vector<scalar_t> sum(const scalar_t* x, const scalar_t* added, int64_t k, Part part) {
    const Vector<scalar_t> value = load(x + k, part);
    if constexpr (condition == Condition::kNone) return value;
    if constexpr (condition == Condition::kOneNumber) return value + broadcast(*added);
    return value + load(added + k, part);
  }

  const scalar_t *a_, *b_;
  const scalar_t *of_a_, *of_b_;
};

// Calls function.template operator()<the kind of condition>().
template <typename scalar_t, typename Function>
void with_condition(const GateCondition<scalar_t>& condition, Function&& function) {
  if (condition.pairs.data == nullptr) return function.template operator()<Condition::kNone>();
  if (condition.step == 0) return function.template operator()<Condition::kOneNumber>();
  return function.template operator()<Condition::kRow>();
}

// Calls function(i, j, row, first, last) for the parts of rows that elements [begin, end) make.
template <typename Function>
void for_rows(const GateShape& shape, int64_t begin, int64_t end, Function&& function) {
  int64_t row = begin / shape.length;
  int64_t first = begin % shape.length;
  int64_t i = row / shape.inner, j = row % shape.inner;
  while (begin < end) {
    const int64_t left = shape.length - first;
    const int64_t count = end - begin < left ? end - begin : left;
    function(i, j, row, first, first + count);
    begin += count;
    first = 0;
    ++row;
    if (++j == shape.inner) {
      j = 0;
      ++i;
    }
  }
}

// Writes the gradients of elements [first, last) of row (i, j), and calls added(k, a, b, part).
template <Condition condition, typename scalar_t, typename Added>
GENFAST_INLINE void backward_row(const GatedActivationBackward<scalar_t>& params, int64_t i,
                                 int64_t j, int64_t first, int64_t last, Added&& added) {
  const auto rows = PairOfRows<condition, scalar_t>::at(params.x, params.condition, i, j);
  const scalar_t* grad = params.grad + (i * params.shape.inner + j) * params.shape.length;
  scalar_t* to_a = params.grad_x.data + i * params.grad_x.outer + j * params.grad_x.inner;
  scalar_t* to_b = to_a + params.grad_x.half;
  for_vectors<scalar_t>(first, last, [&](int64_t k, auto part) {
    const Vector<scalar_t> a = rows.a(k, part), b = rows.b(k, part);
    const auto point = gate_point<scalar_t>(a, b, gate_exponentials<scalar_t>(a, b));
    const Vector<scalar_t> of_out = load(grad + k, part);
    const Vector<scalar_t> of_a = of_out * point.slope_a, of_b = of_out * point.slope_b;
    store(to_a + k, of_a, part);
    store(to_b + k, of_b, part);
    added(k, of_a, of_b, part);
  });
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void gated_activation(const GatedActivation<scalar_t>& params, int64_t begin, int64_t end) {
  with_condition(params.condition, [&]<Condition condition>() {
    for_rows(
        params.shape, begin, end,
        [&](int64_t i, int64_t j, int64_t row, int64_t first, int64_t last) {
          const auto rows = PairOfRows<condition, scalar_t>::at(params.x, params.condition, i, j);
          scalar_t* out = params.out + row * params.shape.length;
          for_vectors<scalar_t>(first, last, [&](int64_t k, auto part) {
            const Vector<scalar_t> a = rows.a(k, part), b = rows.b(k, part);
            store(out + k, gate_value<scalar_t>(a, b, gate_exponentials<scalar_t>(a, b)), part);
          });
        });
  });
}

template <SimdLevel level, typename scalar_t>
void gated_activation_backward(const GatedActivationBackward<scalar_t>& params, int64_t begin,
                               int64_t end) {
  with_condition(params.condition, [&]<Condition condition>() {
    for_rows(params.shape, begin, end,
             [&](int64_t i, int64_t j, int64_t, int64_t first, int64_t last) {
               backward_row<condition>(params, i, j, first, last, [](int64_t, auto, auto, auto) {});
             });
  });
}

template <SimdLevel level, typename scalar_t>
void gated_activation_backward_channels(const GatedActivationBackward<scalar_t>& params,
                                        int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t i = row / params.shape.inner, j = row % params.shape.inner;
    RowSum<scalar_t> sum_a, sum_b;
    backward_row<Condition::kOneNumber>(params, i, j, 0, params.shape.length,
                                        [&](int64_t, auto a, auto b, auto part) {
                                          sum_a.add(a, part);
                                          sum_b.add(b, part);
                                        });
    scalar_t* to = params.sums + i * 2 * params.shape.inner + j;
    to[0] = sum_a.total();
    to[params.shape.inner] = sum_b.total();
  }
}

template <SimdLevel level, typename scalar_t>
void gated_activation_backward_blocks(const GatedActivationBackward<scalar_t>& params,
                                      int64_t begin, int64_t end) {
  const GateShape& shape = params.shape;
  const int64_t blocks = gate_blocks(shape.inner);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t i = block / blocks;
    const int64_t first = block % blocks * kGateBlock;
    const int64_t last = first + kGateBlock < shape.inner ? first + kGateBlock : shape.inner;
    scalar_t* sums = params.sums + block * 2 * shape.length;
    for (int64_t c = 0; c < 2 * shape.length; ++c) sums[c] = 0;
    for (int64_t j = first; j < last; ++j) {
      backward_row<Condition::kRow>(
          params, i, j, 0, shape.length, [&](int64_t k, auto a, auto b, auto part) {
            scalar_t *to_a = sums + k, *to_b = to_a + shape.length;
            store(to_a, load(static_cast<const scalar_t*>(to_a), part) + a, part);
            store(to_b, load(static_cast<const scalar_t*>(to_b), part) + b, part);
          });
    }
  }
}

template <SimdLevel level, typename scalar_t>
void gated_activation_add_blocks(const scalar_t* sums, int64_t blocks, int64_t channels,
                                 scalar_t* to, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        total += static_cast<double>(sums[(n * blocks + block) * channels + c]);
      }
      to[n * channels + c] = static_cast<scalar_t>(total);
    }
  }
}

#define GENFAST_INSTANTIATE(scalar_t)                                                            \
  template void gated_activation<GENFAST_SIMD_LEVEL, scalar_t>(const GatedActivation<scalar_t>&, \
                                                               int64_t, int64_t);                \
  template void gated_activation_backward<GENFAST_SIMD_LEVEL, scalar_t>(                         \
      const GatedActivationBackward<scalar_t>&, int64_t, int64_t);                               \
  template void gated_activation_backward_channels<GENFAST_SIMD_LEVEL, scalar_t>(                \
      const GatedActivationBackward<scalar_t>&, int64_t, int64_t);                               \
  template void gated_activation_backward_blocks<GENFAST_SIMD_LEVEL, scalar_t>(                  \
      const GatedActivationBackward<scalar_t>&, int64_t, int64_t);                               \
  template void gated_activation_add_blocks<GENFAST_SIMD_LEVEL, scalar_t>(                       \
      const scalar_t*, int64_t, int64_t, scalar_t*, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
