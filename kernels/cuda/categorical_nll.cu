#include "kernels/categorical_nll.h"

#include "kernels/cuda/half.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"

namespace genfast::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float exp_of(float x) {
  return expf(x);
}
__device__ __forceinline__ double exp_of(double x) {
  return ::exp(x);
}
__device__ __forceinline__ double log_of(double x) {
  return ::log(x);
}
__device__ __forceinline__ float log_of(float x) {
  return logf(x);
}

// A site belongs to a team of threads that take its classes in turn: one thread where sites are
// adjacent in memory, a warp where classes are, so that a warp reads adjacent elements.
template <int kTeam, typename acc_t, typename Function>
__device__ acc_t over_team(acc_t value, Function&& combine) {
#pragma unroll
  for (int step = kTeam / 2; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  }
  return value;
}

// Calls function(row, site) for the sites of this team in chunk `chunk`.
template <int kTeam, typename Function>
__device__ void for_sites(const CategoricalLayout& layout, int64_t chunk, int64_t chunks,
                          Function&& function) {
  const int64_t begin = chunk % chunks * kCategoricalChunk;
  const int64_t end =
      begin + kCategoricalChunk < layout.sites ? begin + kCategoricalChunk : layout.sites;
  constexpr int kTeams = kThreads / kTeam;
  for (int64_t site = begin + threadIdx.x / kTeam; site < end; site += kTeams) {
    function(chunk / chunks, site);
  }
}

template <int kTeam, typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads)
    categorical_nll_kernel(CategoricalNll<scalar_t, acc_t> params, int64_t chunks) {
  const CategoricalLayout& layout = params.layout;
  const int lane = threadIdx.x % kTeam;
  for (int64_t chunk = blockIdx.x; chunk < layout.batch * layout.groups * chunks;
       chunk += gridDim.x) {
    double loss = 0;
    for_sites<kTeam>(layout, chunk, chunks, [&](int64_t row, int64_t site) {
      const scalar_t* from =
          params.logits + categorical_offset(layout, row) + site * layout.site_stride;
      acc_t most = -static_cast<acc_t>(INFINITY);
      for (int64_t c = lane; c < layout.classes; c += kTeam) {
        const acc_t score = load<acc_t>(from[c * layout.class_stride]);
        most = score > most ? score : most;
      }
      most = over_team<kTeam>(most, [](acc_t a, acc_t b) { return a > b ? a : b; });
      acc_t sum = 0;
      for (int64_t c = lane; c < layout.classes; c += kTeam) {
        sum += exp_of(load<acc_t>(from[c * layout.class_stride]) - most);
      }
      sum = over_team<kTeam>(sum, [](acc_t a, acc_t b) { return a + b; });
      if (lane != 0) return;
      const int64_t at = row * layout.sites + site;
      const int64_t symbol = params.symbols[at];
      const bool fits = symbol >= 0 && symbol < layout.classes;
      const acc_t score =
          fits ? load<acc_t>(from[symbol * layout.class_stride]) : static_cast<acc_t>(NAN);
      loss += static_cast<double>((most - score) + log_of(sum));
      if (params.most != nullptr) {
        params.most[at] = most;
        params.sum[at] = sum;
      }
    });
    loss = block_sum<kThreads>(loss);
    if (threadIdx.x == 0) params.losses[chunk] = loss;
  }
}

template <int kTeam, typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads)
    categorical_nll_backward_kernel(CategoricalNllBackward<scalar_t, acc_t> params,
                                    int64_t chunks) {
  const CategoricalLayout &layout = params.layout, &to_layout = params.grad_layout;
  const int lane = threadIdx.x % kTeam;
  for (int64_t chunk = blockIdx.x; chunk < layout.batch * layout.groups * chunks;
       chunk += gridDim.x) {
    for_sites<kTeam>(layout, chunk, chunks, [&](int64_t row, int64_t site) {
      const scalar_t* from =
          params.logits + categorical_offset(layout, row) + site * layout.site_stride;
      scalar_t* to =
          params.grad + categorical_offset(to_layout, row) + site * to_layout.site_stride;
      const int64_t at = row * layout.sites + site;
      const acc_t most = params.most[at];
      const acc_t grad_loss = params.grad_loss[row / layout.groups];
      const acc_t factor = grad_loss / params.sum[at];
      const int64_t symbol = params.symbols[at];
      for (int64_t c = lane; c < layout.classes; c += kTeam) {
        acc_t slope = exp_of(load<acc_t>(from[c * layout.class_stride]) - most) * factor;
        if (c == symbol) slope -= grad_loss;
        to[c * to_layout.class_stride] = store<scalar_t>(slope);
      }
    });
  }
}

bool sites_adjacent(const CategoricalLayout& layout) {
  return layout.site_stride == 1 && layout.class_stride != 1;
}

}  // namespace

template <typename scalar_t, typename acc_t>
void categorical_nll(const CategoricalNll<scalar_t, acc_t>& params, void* stream) {
  const int64_t chunks = categorical_chunks(params.layout);
  const unsigned blocks = grid_size(params.layout.batch * params.layout.groups * chunks, 1);
  if (sites_adjacent(params.layout)) {
    categorical_nll_kernel<1><<<blocks, kThreads, 0, as_stream(stream)>>>(params, chunks);
  } else {
    categorical_nll_kernel<32><<<blocks, kThreads, 0, as_stream(stream)>>>(params, chunks);
  }
  check_launch("categorical_nll_kernel");
}

template <typename scalar_t, typename acc_t>
void categorical_nll_backward(const CategoricalNllBackward<scalar_t, acc_t>& params, void* stream) {
  const int64_t chunks = categorical_chunks(params.layout);
  const unsigned blocks = grid_size(params.layout.batch * params.layout.groups * chunks, 1);
  if (sites_adjacent(params.layout)) {
    categorical_nll_backward_kernel<1><<<blocks, kThreads, 0, as_stream(stream)>>>(params, chunks);
  } else {
    categorical_nll_backward_kernel<32><<<blocks, kThreads, 0, as_stream(stream)>>>(params, chunks);
  }
  check_launch("categorical_nll_backward_kernel");
}

#define GENFAST_INSTANTIATE(scalar_t, acc_t)                                    \
  template void categorical_nll(const CategoricalNll<scalar_t, acc_t>&, void*); \
  template void categorical_nll_backward(const CategoricalNllBackward<scalar_t, acc_t>&, void*);
GENFAST_INSTANTIATE(float, float)
GENFAST_INSTANTIATE(double, double)
GENFAST_INSTANTIATE(__half, float)
GENFAST_INSTANTIATE(__nv_bfloat16, float)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cuda
