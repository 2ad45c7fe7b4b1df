// From names and dtypes to code: operators of the dispatcher, CUDA storage types.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#if defined(GENFAST_WITH_CUDA)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace genfast {

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

#if defined(GENFAST_WITH_CUDA)
// Calls function(a value of the CUDA storage type of `type`).
template <typename Function>
void at_storage_type(const char* op, at::ScalarType type, Function&& function) {
  switch (type) {
    case at::kFloat:
      return function(float{});
    case at::kDouble:
      return function(double{});
    case at::kHalf:
      return function(__half{});
    case at::kBFloat16:
      return function(__nv_bfloat16{});
    default:
      TORCH_CHECK(false, op, ": expected float16, bfloat16, float32 or float64, got dtype=", type);
  }
}
#endif

}  // namespace genfast
