// masked_conv2d and its two gradients as the dispatcher calls them: what derivatives are made of.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>
#include <vector>

#include "csrc/dispatch.h"

namespace genfast {

// The arguments of the three operators that are no tensors.
struct ConvGeometry {
  at::OptionalIntArrayRef taps;
  c10::SymIntArrayRef stride, padding, dilation;
  c10::SymInt groups;
};

at::Tensor call_masked_conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mask,
                              const std::optional<at::Tensor>& bias, const ConvGeometry& geometry);
at::Tensor call_grad_input(const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& mask,
                           c10::SymIntArrayRef input_size, const ConvGeometry& geometry);
at::Tensor call_grad_weight(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& mask,
                            c10::SymIntArrayRef kernel_size, const ConvGeometry& geometry);

// A geometry that outlives its call.
class SavedGeometry {
 public:
  static void save(torch::autograd::AutogradContext* ctx, const ConvGeometry& geometry);
  explicit SavedGeometry(torch::autograd::AutogradContext* ctx);

  // Refers to this object.
  ConvGeometry get() const;

 private:
  std::optional<std::vector<int64_t>> taps_;
  std::vector<c10::SymInt> numbers_;  // stride, padding, dilation, groups
};

// Whether an autograd function must see the call. A tangent, too, goes there: it refuses it, and
// dropping it would mean zero.
inline bool is_tracked(const at::Tensor& tensor) {
  return tensor.defined() &&
         ((at::GradMode::is_enabled() && tensor.requires_grad()) || tensor._fw_grad(0).defined());
}
inline bool is_tracked(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() && is_tracked(*tensor);
}

// Heights and widths: of a tensor [N, C, H, W] or of a weight.
inline c10::SymIntArrayRef spatial(const at::Tensor& tensor) {
  return tensor.sym_sizes().slice(2);
}

}  // namespace genfast
