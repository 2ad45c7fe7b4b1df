// What the kernels and the derivatives of masked_conv2d_activation share.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <tuple>

#include "csrc/masked_conv2d_ops.h"
#include "kernels/masked_conv2d_epilogue.h"

namespace genfast {

// "none", "relu", "elu", "concat_elu" or "gate".
Activation activation_of(c10::string_view name);

// The tensors of a call.
struct ConvOperands {
  at::Tensor x, weight, mask;
  std::optional<at::Tensor> bias, addend, residual;
  bool rectify;  // max(0, x) is convolved
};

// The result and, where it is wanted, the pre-activation; else that is empty.
std::tuple<at::Tensor, at::Tensor> call_activation(const ConvOperands& operands,
                                                   c10::string_view activation,
                                                   const ConvGeometry& geometry, bool keep_pre);

}  // namespace genfast
