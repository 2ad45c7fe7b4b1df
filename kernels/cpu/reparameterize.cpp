#include "kernels/reparameterize.h"

namespace genfast::cpu {
namespace {

// A row is worked through in tiles: first the noise of a tile, then the arithmetic on it.
constexpr int64_t kTile = 256;  // elements, a multiple of the 4 lanes of a Philox block

// noise[i] = stream element `first + i`, for i in [0, count).
GENFAST_INLINE void fill_noise(uint64_t seed, int64_t first, int64_t count, float* noise) {
  const int64_t end = first + count;
  for (int64_t block = first >> 2; block * 4 < end; ++block) {
    const NormalBlock normals = normal_block(seed, static_cast<uint64_t>(block));
    for (int64_t lane = 0; lane < 4; ++lane) {
      const int64_t i = block * 4 + lane - first;
      if (i >= 0 && i < count) noise[i] = normals.lane[lane];
    }
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void reparameterize_forward(const ReparameterizeForward<scalar_t>& params, int64_t begin,
                            int64_t end) {
  float noise[kTile];
  for (int64_t n = begin; n < end; ++n) {
    const scalar_t* mu = params.mu.data + n * params.mu.row_stride;
    const scalar_t* logvar = params.logvar.data + n * params.logvar.row_stride;
    scalar_t* z = params.z + n * params.D;
    double kl = 0;
    for (int64_t d0 = 0; d0 < params.D; d0 += kTile) {
      const int64_t count = params.D - d0 < kTile ? params.D - d0 : kTile;
      fill_noise(params.seed, params.offset + n * params.D + d0, count, noise);
      for (int64_t i = 0; i < count; ++i) {
        const scalar_t m = mu[d0 + i];
        const scalar_t lv = logvar[d0 + i];
        z[d0 + i] = latent(m, std::exp(lv / 2), static_cast<scalar_t>(noise[i]));
        kl += kl_term(m, lv, std::expm1(lv));
      }
    }
    params.kl[n] = static_cast<scalar_t>(kl);
  }
}

template <SimdLevel level, typename scalar_t>
void reparameterize_backward(const ReparameterizeBackward<scalar_t>& params, int64_t begin,
                             int64_t end) {
  float noise[kTile];
  for (int64_t n = begin; n < end; ++n) {
    const scalar_t* mu = params.mu.data + n * params.mu.row_stride;
    const scalar_t* logvar = params.logvar.data + n * params.logvar.row_stride;
    const scalar_t grad_kl = params.grad_kl ? params.grad_kl[n] : scalar_t(0);
    for (int64_t d0 = 0; d0 < params.D; d0 += kTile) {
      const int64_t count = params.D - d0 < kTile ? params.D - d0 : kTile;
      fill_noise(params.seed, params.offset + n * params.D + d0, count, noise);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = n * params.D + d0 + i;
        const scalar_t grad_z = params.grad_z ? params.grad_z[at] : scalar_t(0);
        const scalar_t lv = logvar[d0 + i];
        params.grad_mu[at] = grad_z + grad_kl * mu[d0 + i];
        params.grad_logvar[at] = grad_logvar_term(grad_z, grad_kl, std::exp(lv / 2),
                                                  static_cast<scalar_t>(noise[i]), std::expm1(lv));
      }
    }
  }
}

#define GENFAST_INSTANTIATE(scalar_t)                                  \
  template void reparameterize_forward<GENFAST_SIMD_LEVEL, scalar_t>(  \
      const ReparameterizeForward<scalar_t>&, int64_t, int64_t);       \
  template void reparameterize_backward<GENFAST_SIMD_LEVEL, scalar_t>( \
      const ReparameterizeBackward<scalar_t>&, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
