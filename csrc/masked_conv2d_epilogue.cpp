#include "csrc/masked_conv2d_epilogue.h"

#include <utility>

#include "csrc/checks.h"

namespace genfast {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "masked_conv2d";

std::vector<int64_t> result_sizes(const std::vector<int64_t>& sizes, Activation activation) {
  return {sizes[0], result_channels(activation, sizes[1]), sizes[2], sizes[3]};
}

}  // namespace

void Epilogue::set_operands(const optional<Tensor>& added, const optional<Tensor>& residual_in,
                            const Tensor& x) {
  TORCH_CHECK(activation != Activation::kGate || sizes[1] % 2 == 0, kOp,
              ": expected an even number of output channels for the gate, got C_out=", sizes[1]);
  check_alike(kOp, "addend", added, "x", x);
  check_alike(kOp, "residual", residual_in, "x", x);
  if (added.has_value()) {
    const std::vector<int64_t> per_example = {sizes[0], sizes[1], 1, 1};
    TORCH_CHECK(
        added->sizes() == at::IntArrayRef(sizes) || added->sizes() == at::IntArrayRef(per_example),
        kOp, ": expected addend of shape ", at::IntArrayRef(sizes), " or ",
        at::IntArrayRef(per_example), ", got addend.shape=", added->sizes());
    addend = added->contiguous();
  }
  if (residual_in.has_value()) {
    const std::vector<int64_t> expected = result_sizes(sizes, activation);
    TORCH_CHECK(residual_in->sizes() == at::IntArrayRef(expected), kOp,
                ": expected residual of the result's shape ", at::IntArrayRef(expected),
                ", got residual.shape=", residual_in->sizes());
    residual = residual_in->contiguous();
  }
}

Epilogue::Epilogue(Activation given, const Tensor& x, std::vector<int64_t> conv_sizes,
                   const optional<Tensor>& added, const optional<Tensor>& residual_in,
                   bool keep_pre)
    : activation(given), sizes(std::move(conv_sizes)) {
  set_operands(added, residual_in, x);
  const auto dense = at::MemoryFormat::Contiguous;
  if (keep_pre) kept = at::empty(sizes, x.options(), dense);
  out = at::empty(result_sizes(sizes, activation), x.options(), dense);
}

Epilogue::Epilogue(Activation given, const Tensor& pre, const optional<Tensor>& added,
                   const optional<Tensor>& residual_in, bool keep_pre)
    : activation(given), sizes(pre.sizes().vec()) {
  set_operands(added, residual_in, pre);
  if (keep_pre) kept = pre;
  const bool in_place = !keep_pre && result_channels(activation, sizes[1]) == sizes[1];
  out = in_place ? pre : at::empty(result_sizes(sizes, activation), pre.options());
}

}  // namespace genfast
