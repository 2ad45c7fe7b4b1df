// Checks of op arguments. The message form is `<op>: expected <rule>, got <name>=<value>`.
#pragma once

#include <ATen/ATen.h>

namespace genfast {

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

}  // namespace genfast
