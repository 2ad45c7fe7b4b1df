// The op _masked_conv2d_reorder: a copy of [N, C, H, W] that is contiguous or channels last.
// PyTorch's own copies number by number, which takes several times as long.
#include "kernels/masked_conv2d_reorder.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/dispatch.h"

namespace genfast {
namespace {

using at::Tensor;

constexpr const char* kOp = "_masked_conv2d_reorder";
constexpr int64_t kStrip = 16;  // rows of a task: 16 numbers of 4 bytes fill a cache line

template <typename number_t>
void transpose_all(const Tensor& from, Tensor& to, int64_t rows, int64_t columns) {
  const auto* source = static_cast<const number_t*>(from.const_data_ptr());
  auto* target = static_cast<number_t*>(to.mutable_data_ptr());
  const int64_t strips = (rows + kStrip - 1) / kStrip, size = rows * columns;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 15) / (kStrip * columns));
  at::parallel_for(0, from.size(0) * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t image = strip / strips, row = strip % strips * kStrip;
      cpu::at_simd_level([&](auto level) {
        cpu::transpose_rows<level()>(source + image * size, target + image * size, rows, columns,
                                     row, std::min(row + kStrip, rows));
      });
    }
  });
}

Tensor reorder_cpu(const Tensor& x, bool channels_last) {
  TORCH_CHECK(x.dim() == 4, kOp, ": expected x of shape [N, C, H, W], got x.shape=", x.sizes());
  const auto wanted = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const auto other = channels_last ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
  Tensor out = at::empty(x.sizes(), x.options(), wanted);
  if (!x.is_contiguous(other) || x.numel() == 0) return out.copy_(x);
  const int64_t channels = x.size(1), pixels = x.size(2) * x.size(3);
  const int64_t rows = channels_last ? channels : pixels, columns = x.numel() / x.size(0) / rows;
  switch (x.element_size()) {
    case 2:
      transpose_all<uint16_t>(x, out, rows, columns);
      break;
    case 4:
      transpose_all<float>(x, out, rows, columns);
      break;
    case 8:
      transpose_all<double>(x, out, rows, columns);
      break;
    default:
      out.copy_(x);
  }
  return out;
}

Tensor reorder_elsewhere(const Tensor& x, bool channels_last) {
  return x.clone(channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

Tensor reorder(const Tensor& x, bool channels_last) {
  static const auto op = find_op<Tensor(const Tensor&, bool)>("genfast::_masked_conv2d_reorder");
  return op.call(x, channels_last);
}

// The gradient goes back in the order that x had.
class Reorder : public torch::autograd::Function<Reorder> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x,
                        bool channels_last) {
    ctx->saved_data["channels_last"] = channels_last;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return reorder(x, channels_last);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    return {reorder(grads[0], !ctx->saved_data["channels_last"].toBool()), Tensor()};
  }
};

Tensor reorder_autograd(const Tensor& x, bool channels_last) {
  return Reorder::apply(x, channels_last);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genfast, m) {
  m.def("_masked_conv2d_reorder(Tensor x, bool channels_last) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  m.impl("_masked_conv2d_reorder", reorder_cpu);
}

TORCH_LIBRARY_IMPL(genfast, CUDA, m) {
  m.impl("_masked_conv2d_reorder", reorder_elsewhere);
}

TORCH_LIBRARY_IMPL(genfast, Autograd, m) {
  m.impl("_masked_conv2d_reorder", reorder_autograd);
}

}  // namespace genfast
