// The derivatives of masked_conv2d and of its two gradients. The three are bilinear forms:
//   masked_conv2d(x, weight)   linear in x and in weight, plus the bias
//   grad_input(grad, weight)   its transpose in x
//   grad_weight(grad, x)       its transpose in weight
// so that the derivative of each is made of the other two, to any order.
#include <torch/library.h>

#include "csrc/gradient_link.h"
#include "csrc/masked_conv2d_ops.h"

namespace genfast {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using ForwardOp = Tensor(const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&,
                         at::OptionalIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef,
                         c10::SymIntArrayRef, c10::SymInt);
// Of both gradients: two factors, the mask, taps, the sizes of the result, geometry.
using GradientOp = Tensor(const Tensor&, const Tensor&, const Tensor&, at::OptionalIntArrayRef,
                          c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef,
                          c10::SymIntArrayRef, c10::SymInt);

}  // namespace

Tensor call_masked_conv2d(const Tensor& x, const Tensor& weight, const Tensor& mask,
                          const optional<Tensor>& bias, const ConvGeometry& g) {
  static const auto op = find_op<ForwardOp>("genfast::masked_conv2d");
  return op.call(x, weight, mask, bias, g.taps, g.stride, g.padding, g.dilation, g.groups);
}

Tensor call_grad_input(const Tensor& grad, const Tensor& weight, const Tensor& mask,
                       c10::SymIntArrayRef input_size, const ConvGeometry& g) {
  static const auto op = find_op<GradientOp>("genfast::_masked_conv2d_grad_input");
  return op.call(grad, weight, mask, g.taps, input_size, g.stride, g.padding, g.dilation, g.groups);
}

Tensor call_grad_weight(const Tensor& grad, const Tensor& x, const Tensor& mask,
                        c10::SymIntArrayRef kernel_size, const ConvGeometry& g) {
  static const auto op = find_op<GradientOp>("genfast::_masked_conv2d_grad_weight");
  return op.call(grad, x, mask, g.taps, kernel_size, g.stride, g.padding, g.dilation, g.groups);
}

void SavedGeometry::save(AutogradContext* ctx, const ConvGeometry& g) {
  std::vector<c10::SymInt> numbers;
  numbers.reserve(9);
  for (const auto& each : {g.stride, g.padding, g.dilation}) {
    numbers.insert(numbers.end(), each.begin(), each.end());
  }
  numbers.push_back(g.groups);
  ctx->saved_data["numbers"] = c10::SymIntArrayRef(numbers);
  if (g.taps.has_value()) ctx->saved_data["taps"] = *g.taps;
}

SavedGeometry::SavedGeometry(AutogradContext* ctx)
    : numbers_(ctx->saved_data["numbers"].toSymIntVector()) {
  const auto taps = ctx->saved_data.find("taps");
  if (taps != ctx->saved_data.end()) taps_ = taps->second.toIntVector();
}

ConvGeometry SavedGeometry::get() const {
  const c10::SymIntArrayRef all(numbers_);
  return {taps_.has_value() ? at::OptionalIntArrayRef(*taps_) : std::nullopt, all.slice(0, 2),
          all.slice(2, 4), all.slice(6, 2), all[8]};
}

namespace {

class Convolution : public torch::autograd::Function<Convolution> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const Tensor& mask, const optional<Tensor>& bias,
                        const ConvGeometry& geometry) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({x, weight, mask});
    SavedGeometry::save(ctx, geometry);
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->set_materialize_grads(false);
    return call_masked_conv2d(x, weight, mask, bias, geometry);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(5);
    const Tensor& grad = grads[0];
    if (!grad.defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &mask = saved[2];
    const SavedGeometry geometry(ctx);
    if (ctx->needs_input_grad(0)) {
      result[0] = call_grad_input(grad, weight, mask, spatial(x), geometry.get());
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = call_grad_weight(grad, x, mask, spatial(weight), geometry.get());
    }
    // An absent bias has no number among the inputs.
    const bool has_bias = ctx->saved_data["has_bias"].toBool();
    if (has_bias && ctx->needs_input_grad(3)) result[3] = grad.sum({0, 2, 3});
    for (const size_t input : {0, 1, 3}) result[input] = linked(result[input], x, weight);
    return result;
  }
};

class GradInput : public torch::autograd::Function<GradInput> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& weight,
                        const Tensor& mask, c10::SymIntArrayRef input_size,
                        const ConvGeometry& geometry) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({grad, weight, mask});
    SavedGeometry::save(ctx, geometry);
    ctx->set_materialize_grads(false);
    return call_grad_input(grad, weight, mask, input_size, geometry);
  }

  // `grads[0]` has the shape of x.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(5);
    const Tensor& of_x = grads[0];
    if (!of_x.defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &weight = saved[1], &mask = saved[2];
    const SavedGeometry geometry(ctx);
    if (ctx->needs_input_grad(0)) {
      result[0] = call_masked_conv2d(of_x, weight, mask, std::nullopt, geometry.get());
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = call_grad_weight(grad, of_x, mask, spatial(weight), geometry.get());
    }
    return result;
  }
};

class GradWeight : public torch::autograd::Function<GradWeight> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& x,
                        const Tensor& mask, c10::SymIntArrayRef kernel_size,
                        const ConvGeometry& geometry) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({grad, x, mask});
    SavedGeometry::save(ctx, geometry);
    ctx->set_materialize_grads(false);
    return call_grad_weight(grad, x, mask, kernel_size, geometry);
  }

  // `grads[0]` has the shape of the weight.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(5);
    const Tensor& of_weight = grads[0];
    if (!of_weight.defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &x = saved[1], &mask = saved[2];
    const SavedGeometry geometry(ctx);
    if (ctx->needs_input_grad(0)) {
      result[0] = call_masked_conv2d(x, of_weight, mask, std::nullopt, geometry.get());
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = call_grad_input(grad, of_weight, mask, spatial(x), geometry.get());
    }
    return result;
  }
};

Tensor forward_autograd(const Tensor& x, const Tensor& weight, const Tensor& mask,
                        const optional<Tensor>& bias, at::OptionalIntArrayRef taps,
                        c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                        c10::SymIntArrayRef dilation, c10::SymInt groups) {
  const ConvGeometry geometry{taps, stride, padding, dilation, std::move(groups)};
  if (is_tracked(x) || is_tracked(weight) || is_tracked(bias)) {
    return Convolution::apply(x, weight, mask, bias, geometry);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_masked_conv2d(x, weight, mask, bias, geometry);
}

Tensor grad_input_autograd(const Tensor& grad, const Tensor& weight, const Tensor& mask,
                           at::OptionalIntArrayRef taps, c10::SymIntArrayRef input_size,
                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                           c10::SymIntArrayRef dilation, c10::SymInt groups) {
  const ConvGeometry geometry{taps, stride, padding, dilation, std::move(groups)};
  if (is_tracked(grad) || is_tracked(weight)) {
    return GradInput::apply(grad, weight, mask, input_size, geometry);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_grad_input(grad, weight, mask, input_size, geometry);
}

Tensor grad_weight_autograd(const Tensor& grad, const Tensor& x, const Tensor& mask,
                            at::OptionalIntArrayRef taps, c10::SymIntArrayRef kernel_size,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                            c10::SymIntArrayRef dilation, c10::SymInt groups) {
  const ConvGeometry geometry{taps, stride, padding, dilation, std::move(groups)};
  if (is_tracked(grad) || is_tracked(x)) {
    return GradWeight::apply(grad, x, mask, kernel_size, geometry);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_grad_weight(grad, x, mask, kernel_size, geometry);
}

}  // namespace

TORCH_LIBRARY_IMPL(genfast, Autograd, m) {
  m.impl("masked_conv2d", forward_autograd);
  m.impl("_masked_conv2d_grad_input", grad_input_autograd);
  m.impl("_masked_conv2d_grad_weight", grad_weight_autograd);
}

}  // namespace genfast
