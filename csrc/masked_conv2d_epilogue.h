// The tensors of what follows a convolution: activation(conv + addend) + residual.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "csrc/masked_conv2d.h"
#include "kernels/masked_conv2d_epilogue.h"

namespace genfast {

// Checked operands of an epilogue, and where its results go.
struct Epilogue {
  Activation activation;
  std::vector<int64_t> sizes;  // of the convolution's result
  at::Tensor addend, residual, out, kept;

  // After a convolution of x that gives these sizes; `kept` is its result with the addend, if it is
  // wanted.
  Epilogue(Activation activation, const at::Tensor& x, std::vector<int64_t> sizes,
           const std::optional<at::Tensor>& addend, const std::optional<at::Tensor>& residual,
           bool keep_pre);

  // After one whose result `pre` is nobody else's: its memory is used again.
  Epilogue(Activation activation, const at::Tensor& pre, const std::optional<at::Tensor>& addend,
           const std::optional<at::Tensor>& residual, bool keep_pre);

  template <typename storage_t>
  ConvEpilogue<storage_t> params() const {
    const auto input = [](const at::Tensor& tensor) {
      return tensor.defined() ? static_cast<const storage_t*>(tensor.const_data_ptr()) : nullptr;
    };
    const auto output = [](const at::Tensor& tensor) {
      return tensor.defined() ? static_cast<storage_t*>(tensor.mutable_data_ptr()) : nullptr;
    };
    const int64_t C = sizes[1], pixels = sizes[2] * sizes[3];
    const bool rows = addend.defined() && addend.sizes() == at::IntArrayRef(sizes);
    return {activation,
            sizes[0],
            C,
            pixels,
            input(addend),
            rows ? C * pixels : C,
            rows ? pixels : 1,
            rows ? 1 : 0,
            input(residual),
            output(out),
            output(kept)};
  }

 private:
  void set_operands(const std::optional<at::Tensor>& addend,
                    const std::optional<at::Tensor>& residual, const at::Tensor& x);
};

// The convolution on the CPU, of max(0, x) if rectified: into `out` or, when something follows it,
// into the epilogue's.
void convolve_cpu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mask,
                  const std::optional<at::Tensor>& bias, at::OptionalIntArrayRef taps,
                  const Conv2dShape& shape, bool rectified, at::Tensor* out,
                  const Epilogue* epilogue);

// The gradient by x; zero where `open`, of its shape, is not positive, unless that is absent.
at::Tensor grad_input_cpu(const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& mask,
                          const std::optional<at::Tensor>& open, at::OptionalIntArrayRef taps,
                          at::IntArrayRef input_size, const Conv2dOptions& options);

// The gradient by the weight of a convolution of x, or of max(0, x) if rectified.
at::Tensor grad_weight_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& mask,
                           bool rectified, at::OptionalIntArrayRef taps,
                           at::IntArrayRef kernel_size, const Conv2dOptions& options);

}  // namespace genfast
