// tanh(a) * sigmoid(b), where a and b are the halves of the channels of a tensor, each with a
// conditioning term added, and its gradient, recomputed from the same inputs.
#pragma once

#include <cstdint>

#include "kernels/macros.h"

namespace genfast {

// What the gate at (a, b) is computed from, all of it finite for every a and b: each platform has
// its own exponentials. `number` is a scalar or a vector of them.
template <typename number>
struct GateExponentials {
  number a;        // exp(-2 |a|)
  number a_less1;  // exp(-2 |a|) - 1, exact to the last digits where a is small
  number b;        // exp(-|b|)
};

// tanh(a) sigmoid(b) = sign(a) (1 - e) / (1 + e) * (b < 0 ? f : 1) / (1 + f), with one division.
template <typename scalar_t, typename number>
GENFAST_INLINE number gate_value(number a, number b, const GateExponentials<number>& of) {
  const number numerator = (a < scalar_t(0) ? of.a_less1 : -of.a_less1) *
                           (b < scalar_t(0) ? of.b : scalar_t(1) + number{});
  return numerator / ((of.a_less1 + scalar_t(2)) * (of.b + scalar_t(1)));
}

template <typename number>
struct GatePoint {
  number value;
  number slope_a, slope_b;  // its derivatives by a and by b
};

// 1 - tanh^2 = 4 e / (1 + e)^2 and sigmoid (1 - sigmoid) = f / (1 + f)^2, without cancellation.
// What the caller does not use is not computed.
template <typename scalar_t, typename number>
GENFAST_INLINE GatePoint<number> gate_point(number a, number b,
                                            const GateExponentials<number>& of) {
  const number tanh_below = of.a_less1 + scalar_t(2), sigmoid_below = of.b + scalar_t(1);
  const number both = scalar_t(1) / (tanh_below * sigmoid_below);
  const number tanh_part = both * sigmoid_below, sigmoid_part = both * tanh_below;
  const number tanh_a = (a < scalar_t(0) ? of.a_less1 : -of.a_less1) * tanh_part;
  const number sigmoid_b = (b < scalar_t(0) ? of.b : scalar_t(1) + number{}) * sigmoid_part;
  return {tanh_a * sigmoid_b, sigmoid_b * (scalar_t(4) * of.a * tanh_part * tanh_part),
          tanh_a * (of.b * sigmoid_part * sigmoid_part)};
}

// Both memory formats are rows of elements one after the other. Contiguous: one row for each
// example, or for each of its channels where the condition is one number per channel.
// channels_last: one row for each position.
struct GateShape {
  int64_t outer, inner, length;  // examples, rows of an example, elements of a row of the output
};

// A tensor of pairs: a at data[i * outer + j * inner + k], its b `half` elements further.
template <typename scalar_t>
struct GatePairs {
  scalar_t* data;
  int64_t outer, inner, half;
};

// The condition that is added to x; `data` is null without one. `step` is 0 where one number serves
// a whole row.
template <typename scalar_t>
struct GateCondition {
  GatePairs<const scalar_t> pairs;
  int64_t step;
};

template <typename scalar_t>
struct GatedActivation {
  GateShape shape;
  GatePairs<const scalar_t> x;
  GateCondition<scalar_t> condition;
  scalar_t* out;  // [outer, inner, length]
};

template <typename scalar_t>
struct GatedActivationBackward {
  GateShape shape;
  GatePairs<const scalar_t> x;
  GateCondition<scalar_t> condition;
  const scalar_t* grad;  // [outer, inner, length]
  GatePairs<scalar_t> grad_x;
  // Sums of grad_x over the rows of a block that share their condition: [outer, blocks, 2 * length]
  // for rows of positions, [outer, 2 * inner] for rows of channels; null: unwanted.
  scalar_t* sums;
};

}  // namespace genfast

#if !defined(__CUDACC__)
#include "kernels/cpu/simd.h"
namespace genfast::cpu {
// Rows of positions are summed in blocks of this many, whoever computes them.
constexpr int64_t kGateBlock = 64;

inline int64_t gate_blocks(int64_t rows) {
  return (rows + kGateBlock - 1) / kGateBlock;
}

// Elements [begin, end) of the output.
template <SimdLevel level, typename scalar_t>
void gated_activation(const GatedActivation<scalar_t>& params, int64_t begin, int64_t end);
// Elements [begin, end); params.sums is null.
template <SimdLevel level, typename scalar_t>
void gated_activation_backward(const GatedActivationBackward<scalar_t>& params, int64_t begin,
                               int64_t end);
// Rows [begin, end) of channels, each with its sum.
template <SimdLevel level, typename scalar_t>
void gated_activation_backward_channels(const GatedActivationBackward<scalar_t>& params,
                                        int64_t begin, int64_t end);
// Blocks [begin, end) of rows of positions, each with its sums.
template <SimdLevel level, typename scalar_t>
void gated_activation_backward_blocks(const GatedActivationBackward<scalar_t>& params,
                                      int64_t begin, int64_t end);
// to[n, c] = the sum over blocks of sums[n, block, c], for n in [begin, end).
template <SimdLevel level, typename scalar_t>
void gated_activation_add_blocks(const scalar_t* sums, int64_t blocks, int64_t channels,
                                 scalar_t* to, int64_t begin, int64_t end);
}  // namespace genfast::cpu
#endif

namespace genfast::cuda {
template <typename scalar_t>
void gated_activation(const GatedActivation<scalar_t>& params, void* stream);
// Does not look at params.sums.
template <typename scalar_t>
void gated_activation_backward(const GatedActivationBackward<scalar_t>& params, void* stream);
}  // namespace genfast::cuda
