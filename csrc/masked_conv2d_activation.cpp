// Kernels of masked_conv2d_activation: the convolution, and what follows it at each pixel.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "csrc/checks.h"
#include "csrc/masked_conv2d_activation.h"
#include "csrc/masked_conv2d_epilogue.h"
#include "csrc/masked_conv2d_ops.h"

#if defined(GENFAST_WITH_CUDA)
#include "csrc/cuda_stream.h"
#endif

namespace genfast {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "masked_conv2d";
constexpr int64_t kGrain = 8192;  // elements that make another thread worthwhile

optional<Tensor> in_dtype(const optional<Tensor>& tensor, at::ScalarType type) {
  return tensor.has_value() ? optional<Tensor>(tensor->to(type)) : std::nullopt;
}

Tensor none_kept(const Tensor& x) {
  return at::empty({0}, x.options());
}

using Kept = std::tuple<Tensor, Tensor>;

Kept keeping_cpu(const Tensor& x, const Tensor& weight, const Tensor& mask,
                 const optional<Tensor>& bias, const optional<Tensor>& addend,
                 const optional<Tensor>& residual, c10::string_view activation, bool rectify,
                 at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                 c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                 bool keep_pre) {
  const at::ScalarType type = x.scalar_type();
  if (at::isReducedFloatingType(type)) {
    check_alike(kOp, "weight", weight, "x", x);
    check_alike(kOp, "bias", bias, "x", x);
    check_alike(kOp, "addend", addend, "x", x);
    check_alike(kOp, "residual", residual, "x", x);
    auto [out, kept] =
        keeping_cpu(x.to(at::kFloat), weight.to(at::kFloat), mask, in_dtype(bias, at::kFloat),
                    in_dtype(addend, at::kFloat), in_dtype(residual, at::kFloat), activation,
                    rectify, taps, stride, padding, dilation, std::move(groups), keep_pre);
    return {out.to(type), kept.to(type)};
  }
  const Conv2dShape shape =
      conv2d_shape(x.sizes(), weight.sizes(),
                   {C10_AS_INTARRAYREF_SLOW(stride), C10_AS_INTARRAYREF_SLOW(padding),
                    C10_AS_INTARRAYREF_SLOW(dilation), groups.expect_int()});
  const Epilogue epilogue(activation_of(activation), x, output_sizes(shape), addend, residual,
                          keep_pre);
  convolve_cpu(x, weight, mask, bias, taps, shape, rectify, nullptr, &epilogue);
  return {epilogue.out, keep_pre ? epilogue.kept : none_kept(x)};
}

void check_backward(const Tensor& grad, const Tensor& kept, Activation activation) {
  TORCH_CHECK(kept.dim() == 4 && grad.dim() == 4 && kept.is_floating_point(), kOp,
              ": expected grad and kept of four dimensions, got grad.shape=", grad.sizes(),
              ", kept.shape=", kept.sizes());
  const std::vector<int64_t> sizes = {kept.size(0), result_channels(activation, kept.size(1)),
                                      kept.size(2), kept.size(3)};
  TORCH_CHECK(grad.sizes() == at::IntArrayRef(sizes) && grad.scalar_type() == kept.scalar_type() &&
                  grad.device() == kept.device(),
              kOp, ": expected grad of the result's shape ", at::IntArrayRef(sizes),
              " and of the dtype and device of x (", kept.scalar_type(), ", ", kept.device(),
              "), got grad.shape=", grad.sizes(), ", grad.dtype=", grad.scalar_type());
}

template <typename storage_t>
ConvEpilogueBackward<storage_t> backward_params(const Tensor& grad, const Tensor& kept,
                                                const Tensor& grad_pre, const Tensor& sums,
                                                Activation activation, bool of_output) {
  return {activation,
          of_output,
          kept.size(0),
          kept.size(1),
          kept.size(2) * kept.size(3),
          static_cast<const storage_t*>(kept.const_data_ptr()),
          static_cast<const storage_t*>(grad.const_data_ptr()),
          static_cast<storage_t*>(grad_pre.mutable_data_ptr()),
          sums.defined() ? static_cast<storage_t*>(sums.mutable_data_ptr()) : nullptr};
}

// The gradient of the pre-activation, and its sums over the pixels [N, C], float32 for half types.
Kept backward_cpu(const Tensor& grad, const Tensor& kept, c10::string_view name, bool of_output) {
  const Activation activation = activation_of(name);
  check_backward(grad, kept, activation);
  if (at::isReducedFloatingType(kept.scalar_type())) {
    auto [grad_pre, sums] = backward_cpu(grad.to(at::kFloat), kept.to(at::kFloat), name, of_output);
    return {grad_pre.to(kept.scalar_type()), sums};
  }
  const Tensor grad_dense = grad.contiguous(), kept_dense = kept.contiguous();
  const Tensor grad_pre = at::empty(kept.sizes(), kept.options(), at::MemoryFormat::Contiguous);
  const Tensor sums = at::empty({kept.size(0), kept.size(1)}, kept.options());
  if (kept.numel() == 0) return {grad_pre, sums.zero_()};
  AT_DISPATCH_FLOATING_TYPES(kept.scalar_type(), kOp, [&] {
    const auto params =
        backward_params<scalar_t>(grad_dense, kept_dense, grad_pre, sums, activation, of_output);
    const int64_t rows = params.N * epilogue_units(activation, params.C);
    at::parallel_for(
        0, rows, std::max<int64_t>(1, kGrain / params.pixels), [&](int64_t begin, int64_t end) {
          cpu::at_simd_level(
              [&](auto level) { cpu::epilogue_backward<level()>(params, begin, end); });
        });
  });
  return {grad_pre, sums};
}

#if defined(GENFAST_WITH_CUDA)
Kept keeping_cuda(const Tensor& x, const Tensor& weight, const Tensor& mask,
                  const optional<Tensor>& bias, const optional<Tensor>& addend,
                  const optional<Tensor>& residual, c10::string_view activation, bool rectify,
                  at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                  bool keep_pre) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor pre = call_masked_conv2d(rectify ? x.relu() : x, weight, mask, bias,
                                        {taps, stride, padding, dilation, std::move(groups)});
  const CudaLaunch launch(x.device());
  const Epilogue epilogue(activation_of(activation), pre, addend, residual, keep_pre);
  if (pre.numel() > 0) {
    at_storage_type(kOp, x.scalar_type(), [&](auto storage) {
      using storage_t = decltype(storage);
      cuda::apply_epilogue(epilogue.params<storage_t>(),
                           static_cast<const storage_t*>(pre.const_data_ptr()), launch.stream());
    });
  }
  return {epilogue.out, keep_pre ? epilogue.kept : none_kept(x)};
}

Kept backward_cuda(const Tensor& grad, const Tensor& kept, c10::string_view name, bool of_output) {
  const Activation activation = activation_of(name);
  check_backward(grad, kept, activation);
  const CudaLaunch launch(kept.device());
  const Tensor grad_dense = grad.contiguous(), kept_dense = kept.contiguous();
  const Tensor grad_pre = at::empty(kept.sizes(), kept.options(), at::MemoryFormat::Contiguous);
  if (kept.numel() > 0) {
    at_storage_type(kOp, kept.scalar_type(), [&](auto storage) {
      cuda::epilogue_backward(backward_params<decltype(storage)>(grad_dense, kept_dense, grad_pre,
                                                                 Tensor(), activation, of_output),
                              launch.stream());
    });
  }
  // One more pass, by torch: deterministic.
  const at::ScalarType type = kept.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {grad_pre, grad_pre.sum({2, 3}, false, type)};
}
#endif

// The gradients by x and by the weight of a convolution of max(0, x), as far as they are needed.
Kept grad_rectified_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight,
                        const Tensor& mask, at::OptionalIntArrayRef taps, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                        bool need_x, bool need_weight) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  const auto size = [](const Tensor& tensor) { return tensor.sizes().slice(2); };
  return {need_x ? grad_input_cpu(grad, weight, mask, x, taps, size(x), options) : none_kept(x),
          need_weight
              ? grad_weight_cpu(grad, x, mask, /*rectified=*/true, taps, size(weight), options)
              : none_kept(x)};
}

#if defined(GENFAST_WITH_CUDA)
Kept grad_rectified_cuda(const Tensor& grad, const Tensor& x, const Tensor& weight,
                         const Tensor& mask, at::OptionalIntArrayRef taps,
                         c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                         c10::SymIntArrayRef dilation, c10::SymInt groups, bool need_x,
                         bool need_weight) {
  const ConvGeometry g{taps, stride, padding, dilation, std::move(groups)};
  const auto of_x = [&] {
    return at::threshold_backward(call_grad_input(grad, weight, mask, spatial(x), g), x, 0);
  };
  return {need_x ? of_x() : none_kept(x),
          need_weight ? call_grad_weight(grad, x.relu(), mask, spatial(weight), g) : none_kept(x)};
}
#endif

// Below autograd nothing is kept.
Tensor forward_kernel(const Tensor& x, const Tensor& weight, const Tensor& mask,
                      const optional<Tensor>& bias, const optional<Tensor>& addend,
                      const optional<Tensor>& residual, c10::string_view activation, bool rectify,
                      at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                      c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                      c10::SymInt groups) {
  const ConvGeometry geometry{taps, stride, padding, dilation, std::move(groups)};
  return std::get<0>(call_activation({x, weight, mask, bias, addend, residual, rectify}, activation,
                                     geometry,
                                     /*keep_pre=*/false));
}

}  // namespace

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  m.impl("masked_conv2d_activation", forward_kernel);
  m.impl("_masked_conv2d_activation", keeping_cpu);
  m.impl("_masked_conv2d_activation_backward", backward_cpu);
  m.impl("_masked_conv2d_grad_rectified", grad_rectified_cpu);
}

#if defined(GENFAST_WITH_CUDA)
TORCH_LIBRARY_IMPL(genfast, CUDA, m) {
  m.impl("masked_conv2d_activation", forward_kernel);
  m.impl("_masked_conv2d_activation", keeping_cuda);
  m.impl("_masked_conv2d_activation_backward", backward_cuda);
  m.impl("_masked_conv2d_grad_rectified", grad_rectified_cuda);
}
#endif

}  // namespace genfast
