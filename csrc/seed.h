// The seed of a random op: an int64 tensor with one element, on the CPU or on the op's device.
#pragma once

#include <ATen/ATen.h>

#include <limits>

namespace genfast {

struct Seed {
  uint64_t value;               // meaningful when device_value is null
  const int64_t* device_value;  // on the op's device, or null
};

inline Seed read_seed(const char* op, const at::Tensor& seed, const at::Device& device) {
  TORCH_CHECK(seed.scalar_type() == at::kLong && seed.numel() == 1, op,
              ": expected an int64 seed with one element, got seed.dtype=", seed.scalar_type(),
              ", seed.shape=", seed.sizes());
  if (seed.device().is_cpu()) {
    return {static_cast<uint64_t>(*seed.const_data_ptr<int64_t>()), nullptr};
  }
  TORCH_CHECK(seed.device() == device, op, ": expected a seed on the CPU or on ", device,
              ", got seed.device=", seed.device());
  return {0, seed.const_data_ptr<int64_t>()};
}

inline void check_offset(const char* op, int64_t offset, int64_t count) {
  TORCH_CHECK(offset >= 0, op, ": expected offset >= 0, got offset=", offset);
  TORCH_CHECK(offset <= std::numeric_limits<int64_t>::max() - count, op, ": expected offset + ",
              count, " elements < 2**63, got offset=", offset);
}

}  // namespace genfast
