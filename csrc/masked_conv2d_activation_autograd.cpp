// masked_conv2d with what follows it, activation(conv(x) + bias + addend) + residual: schema,
// derivatives and autocast rule.
#include "csrc/masked_conv2d_activation.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <string>

#include "csrc/gradient_link.h"

namespace genfast {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Kept = std::tuple<Tensor, Tensor>;
using ForwardOp = Tensor(const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&,
                         const optional<Tensor>&, const optional<Tensor>&, c10::string_view, bool,
                         at::OptionalIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef,
                         c10::SymIntArrayRef, c10::SymInt);
using KeepingOp = Kept(const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&,
                       const optional<Tensor>&, const optional<Tensor>&, c10::string_view, bool,
                       at::OptionalIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef,
                       c10::SymIntArrayRef, c10::SymInt, bool);
using BackwardOp = Kept(const Tensor&, const Tensor&, c10::string_view, bool);

}  // namespace

Activation activation_of(c10::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "elu") return Activation::kElu;
  if (name == "concat_elu") return Activation::kConcatElu;
  if (name == "gate") return Activation::kGate;
  TORCH_CHECK(
      false,
      "masked_conv2d: expected activation none, relu, elu, concat_elu or gate, got activation=",
      name);
}

Kept call_activation(const ConvOperands& o, c10::string_view activation, const ConvGeometry& g,
                     bool keep_pre) {
  static const auto op = find_op<KeepingOp>("genfast::_masked_conv2d_activation");
  return op.call(o.x, o.weight, o.mask, o.bias, o.addend, o.residual, activation, o.rectify, g.taps,
                 g.stride, g.padding, g.dilation, g.groups, keep_pre);
}

namespace {

// The derivative of these follows from the result, where nothing is added to it.
bool needs_output_only(Activation activation, bool residual) {
  return (activation == Activation::kRelu || activation == Activation::kElu) && !residual;
}

Kept call_backward(const Tensor& grad, const Tensor& kept, c10::string_view activation,
                   bool of_output) {
  static const auto op = find_op<BackwardOp>("genfast::_masked_conv2d_activation_backward");
  return op.call(grad, kept, activation, of_output);
}

// The backward in differentiable operators of torch: what a second derivative is made of.
Kept backward_formula(const Tensor& grad, const Tensor& kept, Activation activation,
                      bool of_output) {
  const bool reduced = at::isReducedFloatingType(kept.scalar_type());
  const Tensor a = reduced ? kept.to(at::kFloat) : kept;
  const Tensor of_out = reduced ? grad.to(at::kFloat) : grad;
  // Below zero the exponential, and at no place a large one.
  const auto elu_slope = [](const Tensor& at) {
    return at::where(at > 0, at::ones_like(at), at.clamp_max(0).exp());
  };
  Tensor grad_pre = of_out;
  if (activation == Activation::kRelu) {
    grad_pre = at::threshold_backward(of_out, a, 0);
  } else if (activation == Activation::kElu && of_output) {
    grad_pre = of_out * at::where(a > 0, at::ones_like(a), a + 1);
  } else if (activation == Activation::kElu) {
    grad_pre = of_out * elu_slope(a);
  } else if (activation == Activation::kConcatElu) {
    const auto halves = of_out.chunk(2, 1);
    grad_pre = halves[0] * elu_slope(a) - halves[1] * elu_slope(-a);
  } else if (activation == Activation::kGate) {
    const auto halves = a.chunk(2, 1);
    const Tensor t = halves[0].tanh(), s = halves[1].sigmoid();
    grad_pre = at::cat({of_out * s * (1 - t * t), of_out * t * s * (1 - s)}, 1);
  }
  const Tensor sums = grad_pre.sum(at::IntArrayRef{2, 3});
  return {reduced ? grad_pre.to(kept.scalar_type()) : grad_pre, sums};
}

using GradRectifiedOp = Kept(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                             at::OptionalIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef,
                             c10::SymIntArrayRef, c10::SymInt, bool, bool);

// The gradients by x and the weight, the needed ones.
Kept grad_both(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& mask,
               const ConvGeometry& g, bool rectify, bool need_x, bool need_weight) {
  if (rectify && !at::GradMode::is_enabled()) {
    static const auto op = find_op<GradRectifiedOp>("genfast::_masked_conv2d_grad_rectified");
    auto [of_x, of_weight] = op.call(grad, x, weight, mask, g.taps, g.stride, g.padding, g.dilation,
                                     g.groups, need_x, need_weight);
    return {need_x ? of_x : Tensor(), need_weight ? of_weight : Tensor()};
  }
  // In operators that know their derivatives: somebody may ask for these.
  Tensor of_x, of_weight;
  if (need_x) {
    of_x = call_grad_input(grad, weight, mask, spatial(x), g);
    if (rectify) of_x = at::threshold_backward(of_x, x, 0);
  }
  if (need_weight) {
    of_weight = call_grad_weight(grad, rectify ? x.relu() : x, mask, spatial(weight), g);
  }
  return {linked(of_x, x, weight), linked(of_weight, x, weight)};
}

// Returns the pre-activation as a second output where the backward needs it: as an output it has a
// history of its own, which second derivatives follow.
class ConvActivation : public torch::autograd::Function<ConvActivation> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                               const Tensor& mask, const optional<Tensor>& bias,
                               const optional<Tensor>& addend, const optional<Tensor>& residual,
                               c10::string_view name, bool rectify, const ConvGeometry& geometry) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Activation activation = activation_of(name);
    const bool keep_output = needs_output_only(activation, residual.has_value());
    const bool keep_pre = activation != Activation::kNone && !keep_output;
    auto [out, pre] = call_activation({x, weight, mask, bias, addend, residual, rectify}, name,
                                      geometry, keep_pre);
    ctx->save_for_backward({x, weight, mask, keep_output ? out : keep_pre ? pre : Tensor()});
    SavedGeometry::save(ctx, geometry);
    ctx->saved_data["activation"] = std::string(name);
    ctx->saved_data["rectify"] = rectify;
    ctx->saved_data["of_output"] = keep_output;
    // 0: absent; 1: [N, C, 1, 1]; 2: of the convolution's shape.
    const auto kind = [&](const optional<Tensor>& tensor) -> int64_t { return tensor.has_value(); };
    ctx->saved_data["bias"] = kind(bias);
    ctx->saved_data["residual"] = kind(residual);
    ctx->saved_data["addend"] = kind(addend);
    if (addend.has_value()) {
      const bool of_pixels = addend->sym_size(2) != 1 || addend->sym_size(3) != 1;
      ctx->saved_data["addend"] = int64_t{of_pixels ? 2 : 1};
    }
    ctx->set_materialize_grads(false);
    if (keep_pre) return {out, pre};
    return {out};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(9);
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &mask = saved[2], &kept = saved[3];
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    // Inputs are numbered without the absent ones.
    const int64_t with_bias = ctx->saved_data["bias"].toInt();
    const int64_t addend = ctx->saved_data["addend"].toInt();
    const bool of_residual = ctx->saved_data["residual"].toInt() != 0;
    const auto needed = [&](int64_t input) {
      return ctx->needs_input_grad(static_cast<size_t>(input));
    };
    const bool need_bias = with_bias != 0 && needed(3);
    const bool need_addend = addend != 0 && needed(3 + with_bias);

    const Tensor of_pre = grads.size() > 1 ? grads[1] : Tensor();
    Tensor grad_pre = of_pre, sums;
    if (grads[0].defined()) {
      if (of_residual && needed(3 + with_bias + (addend != 0))) result[5] = grads[0];
      if (kept.defined()) {
        std::tie(grad_pre, sums) =
            call_backward(grads[0], kept, activation, ctx->saved_data["of_output"].toBool());
        if (of_pre.defined()) {
          grad_pre = grad_pre + of_pre;
          sums = Tensor();
        }
      } else {
        grad_pre = grads[0];
      }
    }
    if (!grad_pre.defined()) return result;
    const SavedGeometry geometry(ctx);
    std::tie(result[0], result[1]) =
        grad_both(grad_pre, x, weight, mask, geometry.get(), ctx->saved_data["rectify"].toBool(),
                  needed(0), needed(1));
    if (!sums.defined() && (need_bias || addend == 1)) {
      const bool reduced = at::isReducedFloatingType(x.scalar_type());
      sums = grad_pre.sum(at::IntArrayRef{2, 3}, false,
                          reduced ? optional<at::ScalarType>(at::kFloat) : std::nullopt);
    }
    if (need_bias) result[3] = linked(sums.sum(0).to(x.scalar_type()), x, weight);
    if (need_addend) {
      result[4] = addend == 2 ? grad_pre : sums.to(x.scalar_type()).unsqueeze(2).unsqueeze(3);
    }
    return result;
  }
};

Tensor forward_autograd(const Tensor& x, const Tensor& weight, const Tensor& mask,
                        const optional<Tensor>& bias, const optional<Tensor>& addend,
                        const optional<Tensor>& residual, c10::string_view activation, bool rectify,
                        at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                        c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                        c10::SymInt groups) {
  const ConvGeometry geometry{taps, stride, padding, dilation, std::move(groups)};
  if (is_tracked(x) || is_tracked(weight) || is_tracked(bias) || is_tracked(addend) ||
      is_tracked(residual)) {
    return ConvActivation::apply(x, weight, mask, bias, addend, residual, activation, rectify,
                                 geometry)[0];
  }
  static const auto op = find_op<ForwardOp>("genfast::masked_conv2d_activation");
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(x, weight, mask, bias, addend, residual, activation, rectify, taps, stride,
                 padding, dilation, geometry.groups);
}

Kept backward_autograd(const Tensor& grad, const Tensor& kept, c10::string_view activation,
                       bool of_output) {
  if (at::GradMode::is_enabled() && (grad.requires_grad() || kept.requires_grad())) {
    return backward_formula(grad, kept, activation_of(activation), of_output);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_backward(grad, kept, activation, of_output);
}

// As for conv2d: everything but the mask is cast, weights once per autocast context.
template <c10::DeviceType device>
Tensor forward_autocast(const Tensor& x, const Tensor& weight, const Tensor& mask,
                        const optional<Tensor>& bias, const optional<Tensor>& addend,
                        const optional<Tensor>& residual, c10::string_view activation, bool rectify,
                        at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                        c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                        c10::SymInt groups) {
  static const auto op = find_op<ForwardOp>("genfast::masked_conv2d_activation");
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const auto& tensor) {
    return at::autocast::cached_cast(dtype, tensor, device);
  };
  return op.call(cast(x), cast(weight), mask, cast(bias), cast(addend), cast(residual), activation,
                 rectify, taps, stride, padding, dilation, std::move(groups));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genfast, m) {
  const std::string arguments =
      "Tensor x, Tensor weight, Tensor mask, Tensor? bias, Tensor? addend, Tensor? residual,"
      " str activation, bool rectify, int[]? taps, SymInt[2] stride, SymInt[4] padding, SymInt[2] "
      "dilation,"
      " SymInt groups";
  m.def(("masked_conv2d_activation(" + arguments + ") -> Tensor").c_str(),
        {at::Tag::pt2_compliant_tag});
  // With the pre-activation beside the result, or nothing.
  m.def(("_masked_conv2d_activation(" + arguments + ", bool keep_pre) -> (Tensor out, Tensor kept)")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
  m.def(
      "_masked_conv2d_activation_backward(Tensor grad, Tensor kept, str activation, bool of_output)"
      " -> (Tensor grad_pre, Tensor sums)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_masked_conv2d_grad_rectified(Tensor grad, Tensor x, Tensor weight, Tensor mask,"
      " int[]? taps, SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups,"
      " bool need_x, bool need_weight) -> (Tensor grad_x, Tensor grad_weight)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genfast, Autograd, m) {
  m.impl("masked_conv2d_activation", forward_autograd);
  m.impl("_masked_conv2d_activation_backward", backward_autograd);
}

TORCH_LIBRARY_IMPL(genfast, AutocastCPU, m) {
  m.impl("masked_conv2d_activation", forward_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(genfast, AutocastCUDA, m) {
  m.impl("masked_conv2d_activation", forward_autocast<c10::DeviceType::CUDA>);
}

}  // namespace genfast
