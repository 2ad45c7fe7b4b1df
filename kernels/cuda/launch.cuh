// What every launch needs: an error check, and the seed read where it lives.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace genfast::cuda {

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": launch failed: " + cudaGetErrorString(error));
  }
}

inline cudaStream_t as_stream(void* stream) {
  return static_cast<cudaStream_t>(stream);
}

// A seed that was drawn on the device stays there: no synchronisation, and a CUDA graph replays
// with a fresh one.
__device__ inline uint64_t resolve_seed(uint64_t seed, const int64_t* device_seed) {
  return device_seed == nullptr ? seed : static_cast<uint64_t>(*device_seed);
}

// Blocks for `work` items of `per_block`, bounded so that kernels stride over the rest.
inline unsigned grid_size(int64_t work, int64_t per_block, int64_t most = 65535) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

}  // namespace genfast::cuda
