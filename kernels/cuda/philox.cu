#include "kernels/cuda/launch.cuh"
#include "kernels/philox.h"

namespace genfast::cuda {
namespace {

constexpr int kThreads = 256;

// One thread per Philox block of four stream elements.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    philox_fill_kernel(PhiloxFill<scalar_t> params, const int64_t* device_seed) {
  const uint64_t seed = resolve_seed(params.seed, device_seed);
  const int64_t first_block = params.offset >> 2;
  const int64_t last_block = (params.offset + params.count - 1) >> 2;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t block = first_block + int64_t{blockIdx.x} * kThreads + threadIdx.x;
       block <= last_block; block += stride) {
    float values[4];
    if (params.kind == PhiloxKind::kNormal) {
      const NormalBlock normals = normal_block(seed, static_cast<uint64_t>(block));
      for (int lane = 0; lane < 4; ++lane) values[lane] = normals.lane[lane];
    } else {
      const PhiloxBlock bits = philox_block(seed, static_cast<uint64_t>(block));
      for (int lane = 0; lane < 4; ++lane) values[lane] = uniform_from_bits(bits.lane[lane]);
    }
    for (int lane = 0; lane < 4; ++lane) {
      const int64_t i = block * 4 + lane - params.offset;
      if (i >= 0 && i < params.count) params.out[i] = static_cast<scalar_t>(values[lane]);
    }
  }
}

}  // namespace

template <typename scalar_t>
void philox_fill(const PhiloxFill<scalar_t>& params, const int64_t* device_seed, void* stream) {
  if (params.count == 0) return;
  philox_fill_kernel<<<grid_size(params.count / 4 + 2, kThreads), kThreads, 0, as_stream(stream)>>>(
      params, device_seed);
  check_launch("philox_fill_kernel");
}

template void philox_fill(const PhiloxFill<float>&, const int64_t*, void*);
template void philox_fill(const PhiloxFill<double>&, const int64_t*, void*);

}  // namespace genfast::cuda
