// Sums over a thread block, in a fixed order: the same input gives the same bits.
#pragma once

#include <cuda_runtime.h>

namespace genfast::cuda {

// Returns the sum over the block to thread 0. kThreads is a multiple of 32, at most 1,024.
template <int kThreads, typename acc_t>
__device__ acc_t block_sum(acc_t value) {
  __shared__ acc_t warp_sums[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, step);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  __syncthreads();  // a previous call may still be reading warp_sums
  if (lane == 0) warp_sums[warp] = value;
  __syncthreads();
  if (warp == 0) {
    value = lane < kThreads / 32 ? warp_sums[lane] : acc_t(0);
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, step);
  }
  return value;
}

}  // namespace genfast::cuda
