// What follows a convolution at each pixel, and its gradient:
//   out = activation(pre + addend) + residual
// where `pre` is the convolution's result with its bias.
#pragma once

#include <cstdint>

#include "kernels/gated_activation.h"
#include "kernels/macros.h"

namespace genfast {

enum class Activation : int32_t {
  kNone,
  kRelu,
  kElu,
  kConcatElu,  // elu(a) and, in as many channels more, elu(-a)
  kGate,       // tanh of the first half of the channels times sigmoid of the second
};

// A unit is what is computed together: a channel, and with the gate its partner C/2 channels on.
GENFAST_INLINE int64_t epilogue_units(Activation activation, int64_t C) {
  return activation == Activation::kGate ? C / 2 : C;
}

GENFAST_INLINE int64_t result_channels(Activation activation, int64_t C) {
  return activation == Activation::kGate ? C / 2 : activation == Activation::kConcatElu ? 2 * C : C;
}

// Calls function.template operator()<activation>().
template <typename Function>
static void with_activation(Activation activation, Function&& function) {
  switch (activation) {
    case Activation::kNone:
      return function.template operator()<Activation::kNone>();
    case Activation::kRelu:
      return function.template operator()<Activation::kRelu>();
    case Activation::kElu:
      return function.template operator()<Activation::kElu>();
    case Activation::kConcatElu:
      return function.template operator()<Activation::kConcatElu>();
    case Activation::kGate:
      return function.template operator()<Activation::kGate>();
  }
}

// What ELU at a and at -a is computed from, finite for every a: each platform has its own
// exponentials. `number` is a scalar or a vector of them.
template <typename number>
struct EluExponentials {
  number value;  // exp(-|a|)
  number less1;  // exp(-|a|) - 1, exact to the last digits where a is small
};

// Comparisons are written so that NaN comes out where it went in.
template <typename scalar_t, typename number>
GENFAST_INLINE number relu_value(number a) {
  return a < scalar_t(0) ? number{} : a;
}
template <typename scalar_t, typename number>
GENFAST_INLINE number elu_value(number a, const EluExponentials<number>& of) {
  return a > scalar_t(0) ? a : of.less1;
}
template <typename scalar_t, typename number>
GENFAST_INLINE number elu_value_of_minus(number a, const EluExponentials<number>& of) {
  return a < scalar_t(0) ? -a : of.less1;
}

// Gradients by a, given that of the result. `result` is relu(a) or elu(a), or for ReLU a itself.
template <typename scalar_t, typename number>
GENFAST_INLINE number relu_gradient(number grad, number result) {
  return result <= scalar_t(0) ? number{} : grad;
}
template <typename scalar_t, typename number>
GENFAST_INLINE number elu_gradient_of_result(number grad, number result) {
  return result > scalar_t(0) ? grad : grad * (result + scalar_t(1));
}
template <typename scalar_t, typename number>
GENFAST_INLINE number elu_gradient(number grad, number a, const EluExponentials<number>& of) {
  return a > scalar_t(0) ? grad : grad * of.value;
}
template <typename scalar_t, typename number>
GENFAST_INLINE number concat_elu_gradient(number grad, number grad_of_minus, number a,
                                          const EluExponentials<number>& of) {
  return elu_gradient<scalar_t>(grad, a, of) -
         (a < scalar_t(0) ? grad_of_minus : grad_of_minus * of.value);
}

template <typename scalar_t>
struct ConvEpilogue {
  Activation activation;
  int64_t N, C, pixels;  // of the convolution's result
  // Null without one; step_pixel is 0 where one number serves a plane, else 1.
  const scalar_t* addend;
  int64_t addend_example, addend_channel, addend_pixel;
  const scalar_t* residual;  // [N, result channels, pixels], or null
  scalar_t* out;             // [N, result channels, pixels]
  scalar_t* kept;            // [N, C, pixels]: pre + addend for the backward; null: unwanted
};

template <typename scalar_t>
struct ConvEpilogueBackward {
  Activation activation;
  bool of_output;  // `kept` is the output: ReLU and ELU without a residual
  int64_t N, C, pixels;
  const scalar_t* kept;  // [N, C, pixels]
  const scalar_t* grad;  // [N, result channels, pixels]
  scalar_t* grad_pre;    // [N, C, pixels]
  scalar_t* sums;        // [N, C]: of grad_pre over the pixels. CUDA does not write them
};

}  // namespace genfast

#if !defined(__CUDACC__)
namespace genfast::cpu {

// Units [first_unit, first_unit + units) of a convolution's result at pixels [first_pixel,
// first_pixel + pixels) of example n, wherever they were computed.
template <typename scalar_t>
struct EpilogueBlock {
  const scalar_t* pre;  // of the first unit at the first pixel
  int64_t plane;        // elements from a unit to the next
  int64_t half;         // elements from a channel to its partner in the gate
  int64_t n, first_unit, units, first_pixel, pixels;
};

// The block's part of the result. `pre` may be the memory of `kept`, and that of `out` where the
// result has the channels of the convolution; then `kept` is null.
template <SimdLevel level, typename scalar_t>
void apply_epilogue(const ConvEpilogue<scalar_t>& params, const EpilogueBlock<scalar_t>& block);

// Rows (n, unit) in [begin, end) of N * units.
template <SimdLevel level, typename scalar_t>
void epilogue_backward(const ConvEpilogueBackward<scalar_t>& params, int64_t begin, int64_t end);

}  // namespace genfast::cpu
#endif

namespace genfast::cuda {

// `pre` [N, C, pixels] may be the memory of params.kept or params.out as on the CPU.
template <typename scalar_t>
void apply_epilogue(const ConvEpilogue<scalar_t>& params, const scalar_t* pre, void* stream);
template <typename scalar_t>
void epilogue_backward(const ConvEpilogueBackward<scalar_t>& params, void* stream);

}  // namespace genfast::cuda
