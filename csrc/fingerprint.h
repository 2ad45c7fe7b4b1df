#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace genfast {

// A hash of the bits of a CPU tensor, the same for every number of threads. It depends on where
// each number stands, and not on strides.
int64_t hash_bits(const at::Tensor& tensor);

}  // namespace genfast
