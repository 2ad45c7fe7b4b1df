#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "csrc/cuda_stream.h"
#include "csrc/dispatch.h"
#include "csrc/masked_conv2d.h"

namespace genfast {
namespace {

using at::Tensor;

constexpr const char* kOp = "masked_conv2d";
// Pixels that one split of the weight gradient sums up, and elements that all splits may take.
constexpr int64_t kSplitPixels = 2048;
constexpr int64_t kMostPartial = int64_t{1} << 26;

template <typename storage_t>
const storage_t* input(const Tensor& tensor) {
  return static_cast<const storage_t*>(tensor.const_data_ptr());
}
template <typename storage_t>
storage_t* output(Tensor& tensor) {
  return static_cast<storage_t*>(tensor.mutable_data_ptr());
}

cuda::LiveTaps by_value(const std::vector<int64_t>& live) {
  TORCH_CHECK(live.size() <= cuda::kMostTaps, kOp, ": expected at most ", cuda::kMostTaps,
              " live taps on CUDA, got ", live.size(),
              "; genfast.ops.masked_conv2d_reference takes any number");
  cuda::LiveTaps taps{};
  taps.count = static_cast<int32_t>(live.size());
  std::copy(live.begin(), live.end(), taps.position);
  return taps;
}

Tensor masked_conv2d_cuda(const Tensor& x, const Tensor& weight, const Tensor& mask,
                          const std::optional<Tensor>& bias, at::OptionalIntArrayRef taps,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                          int64_t groups) {
  check_conv2d_pair("x", x, "weight", weight);
  const Conv2dShape s =
      conv2d_shape(x.sizes(), weight.sizes(), {stride, padding, dilation, groups});
  if (bias.has_value()) check_conv2d_bias(*bias, weight);
  const CudaLaunch launch(x.device());
  const Tensor full_mask = expand_mask(mask, weight.sizes(), weight.scalar_type(), x.device());
  const cuda::LiveTaps live = by_value(live_taps(taps, full_mask, s));
  const Tensor x_dense = x.contiguous();
  const Tensor weight_dense = weight.contiguous();
  const Tensor bias_dense = bias.has_value() ? bias->contiguous() : Tensor();
  Tensor out = at::empty(output_sizes(s), x.options(), at::MemoryFormat::Contiguous);
  at_storage_type(kOp, x.scalar_type(), [&](auto storage) {
    using storage_t = decltype(storage);
    cuda::masked_conv2d_forward(
        cuda::Conv2dForward<storage_t>{
            s, input<storage_t>(x_dense), input<storage_t>(weight_dense),
            weight_mask<storage_t>(full_mask),
            bias_dense.defined() ? input<storage_t>(bias_dense) : nullptr, output<storage_t>(out)},
        live, launch.stream());
  });
  return out;
}

Tensor masked_conv2d_grad_input_cuda(const Tensor& grad, const Tensor& weight, const Tensor& mask,
                                     at::OptionalIntArrayRef taps, at::IntArrayRef input_size,
                                     at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation, int64_t groups) {
  check_conv2d_pair("grad", grad, "weight", weight);
  const Conv2dShape s =
      grad_input_shape(grad, weight.sizes(), input_size, {stride, padding, dilation, groups});
  const CudaLaunch launch(grad.device());
  const Tensor full_mask = expand_mask(mask, weight.sizes(), weight.scalar_type(), grad.device());
  const cuda::LiveTaps live = by_value(live_taps(taps, full_mask, s));
  const Tensor grad_dense = grad.contiguous();
  const Tensor weight_dense = weight.contiguous();
  Tensor grad_x = at::empty(input_sizes(s), grad.options(), at::MemoryFormat::Contiguous);
  at_storage_type(kOp, grad.scalar_type(), [&](auto storage) {
    using storage_t = decltype(storage);
    cuda::masked_conv2d_grad_input(
        cuda::Conv2dGradInput<storage_t>{
            s, input<storage_t>(grad_dense), input<storage_t>(weight_dense),
            weight_mask<storage_t>(full_mask), output<storage_t>(grad_x)},
        live, launch.stream());
  });
  return grad_x;
}

Tensor masked_conv2d_grad_weight_cuda(const Tensor& grad, const Tensor& x, const Tensor& mask,
                                      at::OptionalIntArrayRef taps, at::IntArrayRef kernel_size,
                                      at::IntArrayRef stride, at::IntArrayRef padding,
                                      at::IntArrayRef dilation, int64_t groups) {
  check_conv2d_pair("grad", grad, "x", x);
  const Conv2dShape s =
      grad_weight_shape(grad, x.sizes(), kernel_size, {stride, padding, dilation, groups});
  const CudaLaunch launch(grad.device());
  const std::vector<int64_t> sizes = weight_sizes(s);
  const Tensor full_mask = expand_mask(mask, sizes, grad.scalar_type(), grad.device());
  const cuda::LiveTaps live = by_value(live_taps(taps, full_mask, s));
  const Tensor grad_dense = grad.contiguous();
  const Tensor x_dense = x.contiguous();
  Tensor grad_weight = at::zeros(sizes, grad.options());
  const int64_t live_weights = s.C_out * (s.C_in / s.groups) * live.count;
  if (live_weights == 0) return grad_weight;
  const int64_t most_splits = std::max<int64_t>(1, kMostPartial / live_weights);
  const int64_t splits =
      std::clamp<int64_t>(s.N * s.H_out * s.W_out / kSplitPixels, 1, most_splits);
  const at::ScalarType sum_type = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor partial = at::empty({splits * live_weights}, grad.options().dtype(sum_type));
  at_storage_type(kOp, grad.scalar_type(), [&](auto storage) {
    using storage_t = decltype(storage);
    using sum_t = std::conditional_t<std::is_same_v<storage_t, double>, double, float>;
    cuda::masked_conv2d_grad_weight(
        cuda::Conv2dGradWeight<storage_t, sum_t>{
            s, input<storage_t>(grad_dense), input<storage_t>(x_dense),
            weight_mask<storage_t>(full_mask), output<sum_t>(partial),
            output<storage_t>(grad_weight), splits},
        live, launch.stream());
  });
  return grad_weight;
}

}  // namespace

TORCH_LIBRARY_IMPL(genfast, CUDA, m) {
  m.impl("masked_conv2d", masked_conv2d_cuda);
  m.impl("_masked_conv2d_grad_input", masked_conv2d_grad_input_cuda);
  m.impl("_masked_conv2d_grad_weight", masked_conv2d_grad_weight_cuda);
}

}  // namespace genfast
