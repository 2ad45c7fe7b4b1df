// Checks of op arguments. The message form is `<op>: expected <rule>, got <name>=<value>`.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <limits>
#include <optional>

namespace genfast {

// The largest stride, dilation or padding: products and sums of two stay far from the end of int64.
constexpr int64_t kMostSteps = std::numeric_limits<int32_t>::max();

inline void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_floating_point(), op, ": expected a floating point tensor, got ", name,
              ".dtype=", tensor.scalar_type());
}

inline void check_same(const char* op, const char* name, const at::Tensor& tensor,
                       const char* like_name, const at::Tensor& like) {
  TORCH_CHECK(tensor.sizes() == like.sizes(), op, ": expected ", name, " of the shape of ",
              like_name, " ", like.sizes(), ", got ", name, ".shape=", tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), op, ": expected ", name,
              " of the dtype of ", like_name, " (", like.scalar_type(), "), got ", name,
              ".dtype=", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == like.device(), op, ": expected ", name, " on the device of ",
              like_name, " (", like.device(), "), got ", name, ".device=", tensor.device());
}

inline void check_alike(const char* op, const char* name, const at::Tensor& tensor,
                        const char* like_name, const at::Tensor& like) {
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type() && tensor.device() == like.device(), op,
              ": expected ", name, " of the dtype and device of ", like_name, " (",
              like.scalar_type(), ", ", like.device(), "), got ", name,
              ".dtype=", tensor.scalar_type(), ", ", name, ".device=", tensor.device());
}

inline void check_alike(const char* op, const char* name, const std::optional<at::Tensor>& tensor,
                        const char* like_name, const at::Tensor& like) {
  if (tensor.has_value()) check_alike(op, name, *tensor, like_name, like);
}

}  // namespace genfast
