// Gradients that do not depend on their argument, where the same in plain PyTorch would count as
// dependent: a penalty on them has a backward pass that adds nothing.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace genfast {

class GradientLink : public torch::autograd::Function<GradientLink> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& gradient,
                            const at::Tensor&, const at::Tensor&) {
    ctx->set_materialize_grads(false);
    return gradient.view_as(gradient);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list grads) {
    return {grads[0], at::Tensor(), at::Tensor()};
  }
};

// The gradient, as a constant function of the two arguments if it is one of nothing else.
inline at::Tensor linked(const at::Tensor& gradient, const at::Tensor& first,
                         const at::Tensor& second) {
  const bool alone = at::GradMode::is_enabled() && gradient.defined() && !gradient.requires_grad();
  if (!alone || !(first.requires_grad() || second.requires_grad())) return gradient;
  return GradientLink::apply(gradient, first, second);
}

}  // namespace genfast
