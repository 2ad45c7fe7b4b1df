// Schema, checks and autocast rule of masked_conv2d and its two gradients.
#include "csrc/masked_conv2d.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/checks.h"
#include "csrc/masked_conv2d_ops.h"

namespace genfast {
namespace {

constexpr const char* kOp = "masked_conv2d";
constexpr int64_t kMostPixels = int64_t{1} << 62;  // of an axis: with padding still an int64

void check_pair(const char* name, at::IntArrayRef values, int64_t least,
                int64_t most = kMostSteps) {
  const auto fits = [&](int64_t value) { return value >= least && value <= most; };
  TORCH_CHECK(values.size() == 2 && fits(values[0]) && fits(values[1]), kOp,
              ": expected a pair of integers in ", least, " .. ", most, ", got ", name, "=",
              values);
}

void check_grad(const at::Tensor& grad, const Conv2dShape& shape) {
  const std::vector<int64_t> expected = output_sizes(shape);
  TORCH_CHECK(grad.sizes() == at::IntArrayRef(expected), kOp,
              ": expected grad of the output's shape ", at::IntArrayRef(expected),
              ", got grad.shape=", grad.sizes());
}

}  // namespace

Conv2dShape conv2d_shape(at::IntArrayRef x, at::IntArrayRef weight, const Conv2dOptions& options) {
  TORCH_CHECK(x.size() == 4, kOp, ": expected x of shape [N, C_in, H, W], got x.shape=", x);
  TORCH_CHECK(weight.size() == 4, kOp,
              ": expected weight of shape [C_out, C_in/groups, kH, kW], got weight.shape=", weight);
  check_pair("stride", options.stride, 1);
  const at::IntArrayRef padding = options.padding;
  const bool small = std::all_of(padding.begin(), padding.end(), [](int64_t side) {
    return side >= -kMostSteps && side <= kMostSteps;
  });
  TORCH_CHECK(padding.size() == 4 && small, kOp,
              ": expected padding (left, right, top, bottom) in -", kMostSteps, " .. ", kMostSteps,
              ", got padding=", padding);
  check_pair("dilation", options.dilation, 1);
  const int64_t groups = options.groups;
  TORCH_CHECK(
      groups >= 1 && weight[0] % groups == 0 && x[1] == weight[1] * groups, kOp,
      ": expected C_out divisible by groups and C_in = groups * weight.shape[1], got groups=",
      groups, ", x.shape=", x, ", weight.shape=", weight);
  TORCH_CHECK(weight[0] > 0 && weight[1] > 0 && weight[2] > 0 && weight[3] > 0, kOp,
              ": expected a weight with elements, got weight.shape=", weight);
  check_pair("kernel_size", weight.slice(2), 1);
  check_pair("input_size", x.slice(2), 0, kMostPixels);
  const auto output_size = [&](int axis) {
    const int64_t before = padding[2 - 2 * axis], after = padding[3 - 2 * axis];
    TORCH_CHECK(before >= -x[2 + axis] && after >= -x[2 + axis], kOp,
                ": expected padding that crops no more than the input, got x.shape=", x,
                ", padding=", padding);
    const int64_t room =
        x[2 + axis] + before + after - options.dilation[axis] * (weight[2 + axis] - 1) - 1;
    TORCH_CHECK(room >= 0, kOp,
                ": expected a kernel that fits into the padded input, got x.shape=", x,
                ", weight.shape=", weight, ", padding=", padding, ", dilation=", options.dilation);
    return room / options.stride[axis] + 1;
  };
  Conv2dShape shape{};
  shape.N = x[0];
  shape.C_in = x[1];
  shape.C_out = weight[0];
  shape.groups = groups;
  shape.H = x[2];
  shape.W = x[3];
  shape.H_out = output_size(0);
  shape.W_out = output_size(1);
  shape.kH = weight[2];
  shape.kW = weight[3];
  shape.stride_h = options.stride[0];
  shape.stride_w = options.stride[1];
  shape.padding_h = padding[2];
  shape.padding_w = padding[0];
  shape.dilation_h = options.dilation[0];
  shape.dilation_w = options.dilation[1];
  return shape;
}

Conv2dShape grad_input_shape(const at::Tensor& grad, at::IntArrayRef weight,
                             at::IntArrayRef input_size, const Conv2dOptions& options) {
  TORCH_CHECK(grad.dim() == 4 && weight.size() == 4, kOp,
              ": expected grad and weight of four dimensions, got grad.shape=", grad.sizes(),
              ", weight.shape=", weight);
  check_pair("input_size", input_size, 0, kMostPixels);
  const Conv2dShape shape = conv2d_shape(
      {grad.size(0), weight[1] * options.groups, input_size[0], input_size[1]}, weight, options);
  check_grad(grad, shape);
  return shape;
}

Conv2dShape grad_weight_shape(const at::Tensor& grad, at::IntArrayRef x,
                              at::IntArrayRef kernel_size, const Conv2dOptions& options) {
  TORCH_CHECK(grad.dim() == 4 && x.size() == 4 && options.groups >= 1 && x[1] % options.groups == 0,
              kOp, ": expected grad and x of four dimensions and C_in divisible by groups, got ",
              "grad.shape=", grad.sizes(), ", x.shape=", x, ", groups=", options.groups);
  check_pair("kernel_size", kernel_size, 1);
  const Conv2dShape shape = conv2d_shape(
      x, {grad.size(1), x[1] / options.groups, kernel_size[0], kernel_size[1]}, options);
  check_grad(grad, shape);
  return shape;
}

at::Tensor expand_mask(const at::Tensor& mask, at::IntArrayRef weight_sizes,
                       at::ScalarType weight_dtype, const at::Device& device) {
  TORCH_CHECK(mask.scalar_type() == at::kBool || mask.is_floating_point(), kOp,
              ": expected a bool or floating point mask, got mask.dtype=", mask.scalar_type());
  TORCH_CHECK(mask.device() == device, kOp, ": expected mask on ", device,
              ", got mask.device=", mask.device());
  bool fits = mask.dim() <= 4;
  for (int64_t axis = 1; fits && axis <= mask.dim(); ++axis) {
    fits = mask.size(-axis) == 1 || mask.size(-axis) == weight_sizes[4 - axis];
  }
  TORCH_CHECK(fits, kOp, ": expected a mask that broadcasts to the weight ", weight_sizes,
              ", got mask.shape=", mask.sizes());
  const at::Tensor converted = mask.scalar_type() == at::kBool ? mask : mask.to(weight_dtype);
  return converted.expand(weight_sizes);
}

std::vector<int64_t> live_taps(at::OptionalIntArrayRef taps, const at::Tensor& mask,
                               const Conv2dShape& shape) {
  const int64_t kernel = shape.kH * shape.kW;
  if (taps.has_value()) {
    for (size_t t = 0; t < taps->size(); ++t) {
      TORCH_CHECK((*taps)[t] >= (t == 0 ? 0 : (*taps)[t - 1] + 1) && (*taps)[t] < kernel, kOp,
                  ": expected ascending taps in [0, kH*kW), kH*kW=", kernel, ", got taps=", *taps);
    }
    return taps->vec();
  }
  // One channel stands for all where the mask was broadcast over it.
  const auto channels = [&](int64_t axis) { return mask.stride(axis) == 0 ? 1 : mask.size(axis); };
  // A sum of magnitudes is zero where all of them are, and much faster than any() over channels.
  const at::Tensor live = mask.narrow(0, 0, channels(0))
                              .narrow(1, 0, channels(1))
                              .to(mask.scalar_type() == at::kDouble ? at::kDouble : at::kFloat)
                              .abs()
                              .reshape({-1, kernel})
                              .sum(0)
                              .ne(0)
                              .cpu();
  std::vector<int64_t> found;
  for (int64_t tap = 0; tap < kernel; ++tap) {
    if (live.const_data_ptr<bool>()[tap]) found.push_back(tap);
  }
  return found;
}

void check_conv2d_pair(const char* name, const at::Tensor& tensor, const char* other_name,
                       const at::Tensor& other) {
  const auto known = [](at::ScalarType type) {
    return type == at::kFloat || type == at::kDouble || at::isReducedFloatingType(type);
  };
  TORCH_CHECK(known(tensor.scalar_type()), kOp,
              ": expected float16, bfloat16, float32 or float64, got ", name,
              ".dtype=", tensor.scalar_type());
  check_alike(kOp, other_name, other, name, tensor);
}

void check_conv2d_bias(const at::Tensor& bias, const at::Tensor& weight) {
  check_conv2d_pair("weight", weight, "bias", bias);
  TORCH_CHECK(bias.dim() == 1 && bias.size(0) == weight.size(0), kOp,
              ": expected bias of shape [C_out], C_out=", weight.size(0),
              ", got bias.shape=", bias.sizes());
}

namespace {

// As for conv2d: the operands are cast, weights once per autocast context. The mask stays as it is.
template <c10::DeviceType device>
at::Tensor masked_conv2d_autocast(const at::Tensor& x, const at::Tensor& weight,
                                  const at::Tensor& mask, const std::optional<at::Tensor>& bias,
                                  at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                  c10::SymInt groups) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  return call_masked_conv2d(at::autocast::cached_cast(dtype, x, device),
                            at::autocast::cached_cast(dtype, weight, device), mask,
                            at::autocast::cached_cast(dtype, bias, device),
                            {taps, stride, padding, dilation, std::move(groups)});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genfast, m) {
  m.def(
      "masked_conv2d(Tensor x, Tensor weight, Tensor mask, Tensor? bias, int[]? taps,"
      " SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_masked_conv2d_grad_input(Tensor grad, Tensor weight, Tensor mask, int[]? taps,"
      " SymInt[2] input_size, SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation,"
      " SymInt groups) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_masked_conv2d_grad_weight(Tensor grad, Tensor x, Tensor mask, int[]? taps,"
      " SymInt[2] kernel_size, SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation,"
      " SymInt groups) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genfast, AutocastCPU, m) {
  m.impl("masked_conv2d", masked_conv2d_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(genfast, AutocastCUDA, m) {
  m.impl("masked_conv2d", masked_conv2d_autocast<c10::DeviceType::CUDA>);
}

}  // namespace genfast
