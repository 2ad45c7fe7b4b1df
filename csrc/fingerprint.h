#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace genfast {

// A hash of CPU tensors: their dtypes, sizes and bits, the same for every number of threads. It
// depends on where each number stands, and not on strides.
int64_t hash_bits(const std::vector<at::Tensor>& tensors);

}  // namespace genfast
