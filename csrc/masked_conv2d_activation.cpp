// Kernels of masked_conv2d_activation: the convolution, and what follows it at each pixel.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "csrc/masked_conv2d_activation.h"
#include "csrc/masked_conv2d_ops.h"

#if defined(GENFAST_WITH_CUDA)
#include "csrc/cuda_stream.h"
#endif

namespace genfast {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "masked_conv2d";
constexpr int64_t kGrain = 8192;        // elements that make another thread worthwhile
constexpr int64_t kBlockPixels = 4096;  // of a plane that one task takes

void check_alike(const char* name, const optional<Tensor>& tensor, const Tensor& x) {
  TORCH_CHECK(!tensor.has_value() ||
                  (tensor->scalar_type() == x.scalar_type() && tensor->device() == x.device()),
              kOp, ": expected ", name, " of the dtype and device of x (", x.scalar_type(), ", ",
              x.device(), "), got ", name, ".dtype=", tensor->scalar_type(), ", ", name,
              ".device=", tensor->device());
}

std::vector<int64_t> result_sizes(const Tensor& pre, Activation activation) {
  return {pre.size(0), result_channels(activation, pre.size(1)), pre.size(2), pre.size(3)};
}

void check_epilogue(const Tensor& pre, Activation activation, const optional<Tensor>& addend,
                    const optional<Tensor>& residual) {
  TORCH_CHECK(activation != Activation::kGate || pre.size(1) % 2 == 0, kOp,
              ": expected an even number of output channels for the gate, got C_out=", pre.size(1));
  check_alike("addend", addend, pre);
  check_alike("residual", residual, pre);
  if (addend.has_value()) {
    const std::vector<int64_t> per_example = {pre.size(0), pre.size(1), 1, 1};
    TORCH_CHECK(addend->sizes() == pre.sizes() || addend->sizes() == at::IntArrayRef(per_example),
                kOp, ": expected addend of shape ", pre.sizes(), " or ",
                at::IntArrayRef(per_example), ", got addend.shape=", addend->sizes());
  }
  if (residual.has_value()) {
    const std::vector<int64_t> sizes = result_sizes(pre, activation);
    TORCH_CHECK(residual->sizes() == at::IntArrayRef(sizes), kOp,
                ": expected residual of the result's shape ", at::IntArrayRef(sizes),
                ", got residual.shape=", residual->sizes());
  }
}

// The checked operands of an epilogue, and where its results go.
struct Epilogue {
  Activation activation;
  Tensor pre, addend, residual, out, kept;

  // `pre` is the convolution's result and nobody else's: its memory is used again.
  Epilogue(Activation given, const Tensor& convolved, const optional<Tensor>& added,
           const optional<Tensor>& residual_in, bool keep_pre)
      : activation(given), pre(convolved) {
    check_epilogue(pre, activation, added, residual_in);
    if (added.has_value()) addend = added->contiguous();
    if (residual_in.has_value()) residual = residual_in->contiguous();
    if (keep_pre) kept = pre;
    const bool in_place = !keep_pre && result_channels(activation, pre.size(1)) == pre.size(1);
    out = in_place ? pre : at::empty(result_sizes(pre, activation), pre.options());
  }

  template <typename storage_t>
  ConvEpilogue<storage_t> params() const {
    const auto input = [](const Tensor& tensor) {
      return tensor.defined() ? static_cast<const storage_t*>(tensor.const_data_ptr()) : nullptr;
    };
    const int64_t C = pre.size(1), pixels = pre.size(2) * pre.size(3);
    const bool rows = addend.defined() && addend.sizes() == pre.sizes();
    return {activation,
            pre.size(0),
            C,
            pixels,
            input(addend),
            rows ? C * pixels : C,
            rows ? pixels : 1,
            rows ? 1 : 0,
            input(residual),
            static_cast<storage_t*>(out.mutable_data_ptr()),
            kept.defined() ? static_cast<storage_t*>(kept.mutable_data_ptr()) : nullptr};
  }
};

void run_cpu(const Epilogue& epilogue) {
  AT_DISPATCH_FLOATING_TYPES(epilogue.pre.scalar_type(), kOp, [&] {
    const auto params = epilogue.params<scalar_t>();
    const scalar_t* pre = epilogue.pre.const_data_ptr<scalar_t>();
    const int64_t units = epilogue_units(params.activation, params.C);
    const int64_t pieces = (params.pixels + kBlockPixels - 1) / kBlockPixels;
    const int64_t row = std::min(params.pixels, kBlockPixels);
    const int64_t tasks = params.N * units * pieces;
    at::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / row), [&](int64_t begin, int64_t end) {
      cpu::at_simd_level([&](auto level) {
        for (int64_t task = begin; task < end;) {
          const int64_t n = task / (units * pieces);
          const int64_t unit = task / pieces % units, piece = task % pieces;
          // Whole planes of an example go together.
          const int64_t left = std::min(end - task, units - unit);
          const int64_t count = pieces == 1 ? left : 1;
          const int64_t first = piece * kBlockPixels;
          cpu::apply_epilogue<level()>(
              params,
              cpu::EpilogueBlock<scalar_t>{pre + (n * params.C + unit) * params.pixels + first,
                                           params.pixels, units * params.pixels, n, unit, count,
                                           first, std::min(kBlockPixels, params.pixels - first)});
          task += count;
        }
      });
    });
  });
}

optional<Tensor> in_dtype(const optional<Tensor>& tensor, at::ScalarType type) {
  return tensor.has_value() ? optional<Tensor>(tensor->to(type)) : std::nullopt;
}

Tensor none_kept(const Tensor& x) {
  return at::empty({0}, x.options());
}

using Kept = std::tuple<Tensor, Tensor>;

Kept keeping_cpu(const Tensor& x, const Tensor& weight, const Tensor& mask,
                 const optional<Tensor>& bias, const optional<Tensor>& addend,
                 const optional<Tensor>& residual, c10::string_view activation,
                 at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                 c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                 bool keep_pre) {
  const at::ScalarType type = x.scalar_type();
  if (at::isReducedFloatingType(type)) {
    check_alike("weight", weight, x);
    check_alike("bias", bias, x);
    check_alike("addend", addend, x);
    check_alike("residual", residual, x);
    auto [out, kept] =
        keeping_cpu(x.to(at::kFloat), weight.to(at::kFloat), mask, in_dtype(bias, at::kFloat),
                    in_dtype(addend, at::kFloat), in_dtype(residual, at::kFloat), activation, taps,
                    stride, padding, dilation, std::move(groups), keep_pre);
    return {out.to(type), kept.to(type)};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor pre = call_masked_conv2d(x, weight, mask, bias,
                                        {taps, stride, padding, dilation, std::move(groups)});
  const Epilogue epilogue(activation_of(activation), pre, addend, residual, keep_pre);
  if (pre.numel() > 0) run_cpu(epilogue);
  return {epilogue.out, keep_pre ? epilogue.kept : none_kept(x)};
}

void check_backward(const Tensor& grad, const Tensor& kept, Activation activation) {
  TORCH_CHECK(kept.dim() == 4 && grad.dim() == 4 && kept.is_floating_point(), kOp,
              ": expected grad and kept of four dimensions, got grad.shape=", grad.sizes(),
              ", kept.shape=", kept.sizes());
  const std::vector<int64_t> sizes = result_sizes(kept, activation);
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
                  const optional<Tensor>& residual, c10::string_view activation,
                  at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                  bool keep_pre) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor pre = call_masked_conv2d(x, weight, mask, bias,
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

// Below autograd nothing is kept.
Tensor forward_kernel(const Tensor& x, const Tensor& weight, const Tensor& mask,
                      const optional<Tensor>& bias, const optional<Tensor>& addend,
                      const optional<Tensor>& residual, c10::string_view activation,
                      at::OptionalIntArrayRef taps, c10::SymIntArrayRef stride,
                      c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                      c10::SymInt groups) {
  const ConvGeometry geometry{taps, stride, padding, dilation, std::move(groups)};
  return std::get<0>(call_activation({x, weight, mask, bias, addend, residual}, activation,
                                     geometry,
                                     /*keep_pre=*/false));
}

}  // namespace

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  m.impl("masked_conv2d_activation", forward_kernel);
  m.impl("_masked_conv2d_activation", keeping_cpu);
  m.impl("_masked_conv2d_activation_backward", backward_cpu);
}

#if defined(GENFAST_WITH_CUDA)
TORCH_LIBRARY_IMPL(genfast, CUDA, m) {
  m.impl("masked_conv2d_activation", forward_kernel);
  m.impl("_masked_conv2d_activation", keeping_cuda);
  m.impl("_masked_conv2d_activation_backward", backward_cuda);
}
#endif

}  // namespace genfast
