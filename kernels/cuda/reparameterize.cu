#include "kernels/cuda/half.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/reparameterize.h"

namespace genfast::cuda {
namespace {

constexpr int kThreads = 128;

// One thread block per row; each thread takes every kThreads-th Philox block that touches the row.
// Coordinates: n row, d column, element = offset + n * D + d position in the random stream.
template <bool has_free_bits, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    reparameterize_forward_kernel(ReparameterizeForward<scalar_t> params,
                                  const int64_t* device_seed) {
  using acc_t = acc_type<scalar_t>;
  const uint64_t seed = resolve_seed(params.seed, device_seed);
  const acc_t free_bits = static_cast<acc_t>(params.free_bits);
  for (int64_t n = blockIdx.x; n < params.N; n += gridDim.x) {
    const scalar_t* mu = params.mu.data + n * params.mu.row_stride;
    const scalar_t* logvar = params.logvar.data + n * params.logvar.row_stride;
    const int64_t row_start = params.offset + n * params.D;
    const int64_t last_block = (row_start + params.D - 1) >> 2;
    acc_t kl = 0;
    for (int64_t block = (row_start >> 2) + threadIdx.x; block <= last_block; block += kThreads) {
      const NormalBlock noise = normal_block(seed, static_cast<uint64_t>(block));
      for (int lane = 0; lane < 4; ++lane) {
        const int64_t d = block * 4 + lane - row_start;
        if (d < 0 || d >= params.D) continue;
        const acc_t m = load<acc_t>(mu[d]);
        const acc_t lv = load<acc_t>(logvar[d]);
        const acc_t z = latent(m, exp(lv / 2), static_cast<acc_t>(noise.lane[lane]));
        params.z[n * params.D + d] = store<scalar_t>(z);
        const acc_t term = kl_term(m, lv, expm1(lv));
        kl += has_free_bits && takes_free_bits(term, free_bits) ? free_bits : term;
      }
    }
    kl = block_sum<kThreads>(kl);
    if (threadIdx.x == 0)
      params.kl[n] = store<scalar_t>(zero_or_product(static_cast<acc_t>(params.beta), kl));
  }
}

template <bool has_free_bits, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    reparameterize_backward_kernel(ReparameterizeBackward<scalar_t> params,
                                   const int64_t* device_seed) {
  using acc_t = acc_type<scalar_t>;
  const uint64_t seed = resolve_seed(params.seed, device_seed);
  const acc_t free_bits = static_cast<acc_t>(params.free_bits);
  for (int64_t n = blockIdx.x; n < params.N; n += gridDim.x) {
    const scalar_t* mu = params.mu.data + n * params.mu.row_stride;
    const scalar_t* logvar = params.logvar.data + n * params.logvar.row_stride;
    const acc_t grad_kl = params.grad_kl ? load<acc_t>(params.grad_kl[n * params.grad_kl_stride]) *
                                               static_cast<acc_t>(params.beta)
                                         : acc_t(0);
    const int64_t row_start = params.offset + n * params.D;
    const int64_t last_block = (row_start + params.D - 1) >> 2;
    for (int64_t block = (row_start >> 2) + threadIdx.x; block <= last_block; block += kThreads) {
      const NormalBlock noise = normal_block(seed, static_cast<uint64_t>(block));
      for (int lane = 0; lane < 4; ++lane) {
        const int64_t d = block * 4 + lane - row_start;
        if (d < 0 || d >= params.D) continue;
        const int64_t at = n * params.D + d;
        const acc_t grad_z =
            params.grad_z ? load<acc_t>(params.grad_z[at * params.grad_z_step]) : acc_t(0);
        const acc_t lv = load<acc_t>(logvar[d]);
        const acc_t std = exp(lv / 2), eps = static_cast<acc_t>(noise.lane[lane]);
        if (params.grad_kl == nullptr) {  // what it would multiply may be infinite or NaN
          params.grad_mu[at] = store<scalar_t>(grad_z);
          params.grad_logvar[at] = store<scalar_t>(grad_logvar_of_z(grad_z, std, eps));
          continue;
        }
        const acc_t m = load<acc_t>(mu[d]);
        const acc_t variance_minus_one = expm1(lv);
        const bool flat =
            has_free_bits && takes_free_bits(kl_term(m, lv, variance_minus_one), free_bits);
        const acc_t slope = flat ? acc_t(0) : grad_kl;
        params.grad_mu[at] = store<scalar_t>(grad_z + slope * m);
        params.grad_logvar[at] =
            store<scalar_t>(grad_logvar_of_both(grad_z, slope, std, eps, variance_minus_one));
      }
    }
  }
}

}  // namespace

template <typename scalar_t>
void reparameterize_forward(const ReparameterizeForward<scalar_t>& params,
                            const int64_t* device_seed, void* stream) {
  if (params.N == 0) return;
  const auto kernel = params.free_bits > 0 ? reparameterize_forward_kernel<true, scalar_t>
                                           : reparameterize_forward_kernel<false, scalar_t>;
  kernel<<<grid_size(params.N, 1), kThreads, 0, as_stream(stream)>>>(params, device_seed);
  check_launch("reparameterize_forward_kernel");
}

template <typename scalar_t>
void reparameterize_backward(const ReparameterizeBackward<scalar_t>& params,
                             const int64_t* device_seed, void* stream) {
  if (params.N == 0) return;
  const auto kernel = params.free_bits > 0 ? reparameterize_backward_kernel<true, scalar_t>
                                           : reparameterize_backward_kernel<false, scalar_t>;
  kernel<<<grid_size(params.N, 1), kThreads, 0, as_stream(stream)>>>(params, device_seed);
  check_launch("reparameterize_backward_kernel");
}

#define GENFAST_INSTANTIATE(scalar_t)                                                            \
  template void reparameterize_forward(const ReparameterizeForward<scalar_t>&, const int64_t*,   \
                                       void*);                                                   \
  template void reparameterize_backward(const ReparameterizeBackward<scalar_t>&, const int64_t*, \
                                        void*);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
GENFAST_INSTANTIATE(__half)
GENFAST_INSTANTIATE(__nv_bfloat16)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cuda
