// The arguments of the causal_conv1d ops, checked.
#pragma once

#include "kernels/causal_conv1d.h"

#include <ATen/ATen.h>

#include <optional>
#include <tuple>

namespace genfast::causal {

constexpr const char* kOp = "causal_conv1d";

// What is absent is undefined. The gradients of a layer are held in the same form.
struct Layer {
  at::Tensor x, weight, bias, condition;
  at::Tensor residual_weight, residual_bias, skip_weight, skip_bias;

  // In the order of the schema.
  template <typename Function>
  Layer map(Function&& function) const {
    return {function(x),           function(weight),          function(bias),
            function(condition),   function(residual_weight), function(residual_bias),
            function(skip_weight), function(skip_bias)};
  }
};

// Checks every argument and returns the sizes.
CausalConv1dShape check_layer(const Layer& layer, int64_t dilation);

// The backward of `layer` in differentiable operators of torch: what a second derivative is made
// of.
Layer backward_formula(const at::Tensor& grad_out, const at::Tensor& grad_skip, const Layer& layer,
                       int64_t dilation);

}  // namespace genfast::causal
