// What the CPU and the CUDA side of masked_conv2d share: the checked arguments.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "csrc/checks.h"
#include "kernels/masked_conv2d.h"

namespace genfast {

// Stride, padding and dilation as the schema gives them: pairs (rows, columns), and padding
// (left, right, top, bottom), of which a negative number crops.
struct Conv2dOptions {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
};

// Sizes of a convolution of an input [N, C_in, H, W] with a weight [C_out, C_in / groups, kH, kW];
// an error if there is no such convolution.
Conv2dShape conv2d_shape(at::IntArrayRef x, at::IntArrayRef weight, const Conv2dOptions& options);

// The same from the output side: the sizes of x or of the weight are given, and grad must fit them.
Conv2dShape grad_input_shape(const at::Tensor& grad, at::IntArrayRef weight,
                             at::IntArrayRef input_size, const Conv2dOptions& options);
Conv2dShape grad_weight_shape(const at::Tensor& grad, at::IntArrayRef x,
                              at::IntArrayRef kernel_size, const Conv2dOptions& options);

// The mask expanded to the weight's sizes, as bool or in the dtype of the weight.
at::Tensor expand_mask(const at::Tensor& mask, at::IntArrayRef weight_sizes,
                       at::ScalarType weight_dtype, const at::Device& device);

// The given live taps after a check, or those of the mask (for CUDA that waits for the device).
std::vector<int64_t> live_taps(at::OptionalIntArrayRef taps, const at::Tensor& mask,
                               const Conv2dShape& shape);

// float16, bfloat16, float32 or float64, and `other` alike.
void check_conv2d_pair(const char* name, const at::Tensor& tensor, const char* other_name,
                       const at::Tensor& other);

void check_conv2d_bias(const at::Tensor& bias, const at::Tensor& weight);

template <typename scalar_t>
WeightMask<scalar_t> weight_mask(const at::Tensor& mask) {
  const bool flags = mask.scalar_type() == at::kBool;
  return {flags ? mask.const_data_ptr<bool>() : nullptr,
          flags ? nullptr : static_cast<const scalar_t*>(mask.const_data_ptr()),
          mask.stride(0),
          mask.stride(1),
          mask.stride(2),
          mask.stride(3)};
}

inline std::vector<int64_t> weight_sizes(const Conv2dShape& shape) {
  return {shape.C_out, shape.C_in / shape.groups, shape.kH, shape.kW};
}
inline std::vector<int64_t> input_sizes(const Conv2dShape& shape) {
  return {shape.N, shape.C_in, shape.H, shape.W};
}
inline std::vector<int64_t> output_sizes(const Conv2dShape& shape) {
  return {shape.N, shape.C_out, shape.H_out, shape.W_out};
}

}  // namespace genfast
