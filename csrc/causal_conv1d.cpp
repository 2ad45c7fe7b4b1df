// Schema, checks and derivatives of causal_conv1d.
#include "csrc/causal_conv1d.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "csrc/checks.h"
#include "csrc/dispatch.h"
#include "csrc/gradient_link.h"

namespace genfast::causal {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_sizes(const char* name, const Tensor& tensor, at::IntArrayRef sizes, const Tensor& x) {
  if (!tensor.defined()) return;
  TORCH_CHECK(tensor.sizes() == sizes, kOp, ": expected ", name, " of shape ", sizes, ", got ",
              name, ".shape=", tensor.sizes());
  check_alike(kOp, name, tensor, "x", x);
}

bool has_moments(const Tensor& condition, const CausalConv1dShape& shape) {
  return condition.size(2) == shape.T && shape.T != 1;
}

}  // namespace

CausalConv1dShape check_layer(const Layer& layer, int64_t dilation) {
  const Tensor &x = layer.x, &weight = layer.weight;
  check_floating(kOp, "x", x);
  TORCH_CHECK(x.dim() == 3, kOp, ": expected x of shape [N, R, T], got x.shape=", x.sizes());
  TORCH_CHECK(weight.dim() == 3 && weight.size(0) >= 2 && weight.size(0) % 2 == 0 &&
                  weight.size(1) == x.size(1) && weight.size(1) >= 1 && weight.size(2) >= 1,
              kOp, ": expected weight of shape [2G, R, k] with R=", x.size(1),
              ", got weight.shape=", weight.sizes());
  TORCH_CHECK(layer.skip_weight.dim() == 3 && layer.skip_weight.size(0) >= 1, kOp,
              ": expected skip_weight of shape [S, G, 1], got skip_weight.shape=",
              layer.skip_weight.sizes());
  TORCH_CHECK(dilation >= 1 && dilation <= kMostSteps, kOp, ": expected dilation in 1 .. ",
              kMostSteps, ", got dilation=", dilation);
  TORCH_CHECK(layer.residual_weight.defined() || !layer.residual_bias.defined(), kOp,
              ": expected no residual_bias without a residual_weight, got residual_bias.shape=",
              layer.residual_bias.defined() ? layer.residual_bias.sizes() : at::IntArrayRef{});
  CausalConv1dShape shape{};
  shape.N = x.size(0);
  shape.T = x.size(2);
  shape.R = x.size(1);
  shape.G = weight.size(0) / 2;
  shape.S = layer.skip_weight.size(0);
  shape.taps = weight.size(2);
  shape.dilation = dilation;
  shape.residual = layer.residual_weight.defined();
  check_sizes("weight", weight, weight.sizes(), x);
  check_sizes("bias", layer.bias, {2 * shape.G}, x);
  check_sizes("residual_weight", layer.residual_weight, {shape.R, shape.G, 1}, x);
  check_sizes("residual_bias", layer.residual_bias, {shape.R}, x);
  check_sizes("skip_weight", layer.skip_weight, {shape.S, shape.G, 1}, x);
  check_sizes("skip_bias", layer.skip_bias, {shape.S}, x);
  if (layer.condition.defined()) {
    const bool each = layer.condition.dim() == 3 && layer.condition.size(2) == shape.T;
    check_sizes("condition", layer.condition, {shape.N, 2 * shape.G, each ? shape.T : 1}, x);
  }
  return shape;
}

Layer backward_formula(const Tensor& grad_out, const Tensor& grad_skip, const Layer& given,
                       int64_t dilation) {
  const CausalConv1dShape shape = check_layer(given, dilation);
  const auto wide = [](const Tensor& tensor) {
    const bool reduced = tensor.defined() && at::isReducedFloatingType(tensor.scalar_type());
    return reduced ? tensor.to(at::kFloat) : tensor;
  };
  const Layer layer = given.map(wide);
  const Tensor of_out = wide(grad_out), of_skip = wide(grad_skip);
  const int64_t reach = (shape.taps - 1) * dilation;
  const Tensor padded = at::constant_pad_nd(layer.x, {reach, 0});
  Tensor h = at::conv1d(padded, layer.weight, layer.bias, at::IntArrayRef{1}, at::IntArrayRef{0},
                        at::IntArrayRef{dilation});
  if (layer.condition.defined()) h = h + layer.condition;
  const auto halves = h.chunk(2, 1);
  const Tensor t = halves[0].tanh(), s = halves[1].sigmoid(), z = t * s;
  // A product with a 1 x 1 kernel, transposed.
  const auto back = [](const Tensor& grad, const Tensor& weight) {
    return at::conv1d(grad, weight.transpose(0, 1));
  };
  Tensor grad_z = back(of_skip, layer.skip_weight);
  if (shape.residual) grad_z = grad_z + back(of_out, layer.residual_weight);
  const Tensor grad_h = at::cat({grad_z * s * (1 - t * t), grad_z * t * s * (1 - s)}, 1);
  Layer grads;
  grads.x = at::conv_transpose1d(grad_h, layer.weight, {}, at::IntArrayRef{1}, at::IntArrayRef{0},
                                 at::IntArrayRef{0}, 1, at::IntArrayRef{dilation})
                .narrow(2, reach, shape.T);
  if (shape.residual) grads.x = grads.x + of_out;
  const auto correlation = [](const Tensor& grad, const Tensor& input) {
    return at::matmul(grad, input.transpose(1, 2)).sum(0);
  };
  std::vector<Tensor> taps;
  for (int64_t j = 0; j < shape.taps; ++j) {
    taps.push_back(correlation(grad_h, padded.narrow(2, j * dilation, shape.T)));
  }
  grads.weight = at::stack(taps, 2);
  if (layer.bias.defined()) grads.bias = grad_h.sum(at::IntArrayRef{0, 2});
  if (layer.condition.defined()) {
    grads.condition = has_moments(layer.condition, shape) ? grad_h : grad_h.sum(2, true);
  }
  if (shape.residual) {
    grads.residual_weight =
        linked(correlation(of_out, z).unsqueeze(2), layer.residual_weight, Tensor());
  }
  if (layer.residual_bias.defined()) grads.residual_bias = of_out.sum(at::IntArrayRef{0, 2});
  grads.skip_weight = linked(correlation(of_skip, z).unsqueeze(2), layer.skip_weight, Tensor());
  if (layer.skip_bias.defined()) grads.skip_bias = of_skip.sum(at::IntArrayRef{0, 2});
  return grads.map(
      [&](const Tensor& grad) { return grad.defined() ? grad.to(given.x.scalar_type()) : grad; });
}

namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using ForwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const optional<Tensor>&,
                                             const optional<Tensor>&, const optional<Tensor>&,
                                             const optional<Tensor>&, const Tensor&,
                                             const optional<Tensor>&, int64_t);
using BackwardOp = Gradients(const optional<Tensor>&, const Tensor&, const Tensor&, const Tensor&,
                             const optional<Tensor>&, const optional<Tensor>&,
                             const optional<Tensor>&, const optional<Tensor>&, const Tensor&,
                             const optional<Tensor>&, int64_t);

const c10::TypedOperatorHandle<BackwardOp>& backward_op() {
  static const auto op = find_op<BackwardOp>("genfast::_causal_conv1d_backward");
  return op;
}

optional<Tensor> if_defined(const Tensor& tensor) {
  return tensor.defined() ? optional<Tensor>(tensor) : std::nullopt;
}

std::tuple<Tensor, Tensor> call_forward(const Layer& layer, int64_t dilation) {
  static const auto op = find_op<ForwardOp>("genfast::causal_conv1d");
  return op.call(layer.x, layer.weight, if_defined(layer.bias), if_defined(layer.condition),
                 if_defined(layer.residual_weight), if_defined(layer.residual_bias),
                 layer.skip_weight, if_defined(layer.skip_bias), dilation);
}

Gradients call_backward(const Tensor& grad_out, const Tensor& grad_skip, const Layer& layer,
                        int64_t dilation) {
  return backward_op().call(if_defined(grad_out), grad_skip, layer.x, layer.weight,
                            if_defined(layer.bias), if_defined(layer.condition),
                            if_defined(layer.residual_weight), if_defined(layer.residual_bias),
                            layer.skip_weight, if_defined(layer.skip_bias), dilation);
}

class CausalLayer : public torch::autograd::Function<CausalLayer> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                               const optional<Tensor>& bias, const optional<Tensor>& condition,
                               const optional<Tensor>& residual_weight,
                               const optional<Tensor>& residual_bias, const Tensor& skip_weight,
                               const optional<Tensor>& skip_bias, int64_t dilation) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto value = [](const optional<Tensor>& tensor) { return tensor.value_or(Tensor()); };
    ctx->save_for_backward({x, weight, value(bias), value(condition), value(residual_weight),
                            value(residual_bias), skip_weight, value(skip_bias)});
    ctx->saved_data["dilation"] = dilation;
    auto [out, skip] =
        call_forward({x, weight, value(bias), value(condition), value(residual_weight),
                      value(residual_bias), skip_weight, value(skip_bias)},
                     dilation);
    return {out, skip};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Layer layer{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]};
    const Tensor grad_out = layer.residual_weight.defined() ? grads[0] : Tensor();
    const Gradients all =
        call_backward(grad_out, grads[1], layer, ctx->saved_data["dilation"].toInt());
    variable_list result =
        std::apply([](const auto&... each) { return variable_list{each...}; }, all);
    for (size_t i = 0; i < result.size(); ++i) {
      if (!s[i].defined()) result[i] = Tensor();
    }
    result.emplace_back();  // of the dilation
    return result;
  }
};

std::tuple<Tensor, Tensor> forward_autograd(const Tensor& x, const Tensor& weight,
                                            const optional<Tensor>& bias,
                                            const optional<Tensor>& condition,
                                            const optional<Tensor>& residual_weight,
                                            const optional<Tensor>& residual_bias,
                                            const Tensor& skip_weight,
                                            const optional<Tensor>& skip_bias, int64_t dilation) {
  const variable_list outputs = CausalLayer::apply(x, weight, bias, condition, residual_weight,
                                                   residual_bias, skip_weight, skip_bias, dilation);
  return {outputs[0], outputs[1]};
}

Gradients backward_autograd(const optional<Tensor>& grad_out, const Tensor& grad_skip,
                            const Tensor& x, const Tensor& weight, const optional<Tensor>& bias,
                            const optional<Tensor>& condition,
                            const optional<Tensor>& residual_weight,
                            const optional<Tensor>& residual_bias, const Tensor& skip_weight,
                            const optional<Tensor>& skip_bias, int64_t dilation) {
  const auto value = [](const optional<Tensor>& tensor) { return tensor.value_or(Tensor()); };
  const Layer layer{x,
                    weight,
                    value(bias),
                    value(condition),
                    value(residual_weight),
                    value(residual_bias),
                    skip_weight,
                    value(skip_bias)};
  bool tracked = grad_skip.requires_grad() || value(grad_out).requires_grad();
  layer.map([&](const Tensor& each) {
    tracked = tracked || (each.defined() && each.requires_grad());
    return each;
  });
  if (at::GradMode::is_enabled() && tracked) {
    const Layer grads =
        backward_formula(value(grad_out), grad_skip, layer, dilation).map([&](const Tensor& grad) {
          return grad.defined() ? grad : at::empty({0}, x.options());
        });
    return {grads.x,           grads.weight,          grads.bias,
            grads.condition,   grads.residual_weight, grads.residual_bias,
            grads.skip_weight, grads.skip_bias};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_backward(value(grad_out), grad_skip, layer, dilation);
}

// As for conv1d: everything is cast, weights once per autocast context.
template <c10::DeviceType device>
std::tuple<Tensor, Tensor> forward_autocast(const Tensor& x, const Tensor& weight,
                                            const optional<Tensor>& bias,
                                            const optional<Tensor>& condition,
                                            const optional<Tensor>& residual_weight,
                                            const optional<Tensor>& residual_bias,
                                            const Tensor& skip_weight,
                                            const optional<Tensor>& skip_bias, int64_t dilation) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto value = [](const optional<Tensor>& tensor) { return tensor.value_or(Tensor()); };
  const Layer layer{x,
                    weight,
                    value(bias),
                    value(condition),
                    value(residual_weight),
                    value(residual_bias),
                    skip_weight,
                    value(skip_bias)};
  return call_forward(layer.map([&](const Tensor& each) {
    return each.defined() ? at::autocast::cached_cast(dtype, each, device) : each;
  }),
                      dilation);
}

}  // namespace

// Absent gradients, and `out` without a residual, are empty.
TORCH_LIBRARY_FRAGMENT(genfast, m) {
  const std::string layer =
      "Tensor x, Tensor weight, Tensor? bias, Tensor? condition, Tensor? residual_weight,"
      " Tensor? residual_bias, Tensor skip_weight, Tensor? skip_bias, int dilation";
  m.def(("causal_conv1d(" + layer + ") -> (Tensor out, Tensor skip)").c_str(),
        {at::Tag::pt2_compliant_tag});
  m.def(("_causal_conv1d_backward(Tensor? grad_out, Tensor grad_skip, " + layer +
         ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genfast, Autograd, m) {
  m.impl("causal_conv1d", forward_autograd);
  m.impl("_causal_conv1d_backward", backward_autograd);
}

TORCH_LIBRARY_IMPL(genfast, AutocastCPU, m) {
  m.impl("causal_conv1d", forward_autocast<c10::DeviceType::CPU>);
}

}  // namespace genfast::causal
