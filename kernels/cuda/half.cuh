// Storage types and the type each one is computed in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace genfast::cuda {

template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename scalar_t>
using acc_type = typename Accumulate<scalar_t>::type;

// Explicit conversions: the implicit ones between half types and float are ambiguous in templates.
template <typename acc_t, typename scalar_t>
__device__ __forceinline__ acc_t load(scalar_t value) {
  return static_cast<acc_t>(value);
}
template <typename scalar_t, typename acc_t>
__device__ __forceinline__ scalar_t store(acc_t value) {
  return static_cast<scalar_t>(value);
}

}  // namespace genfast::cuda
