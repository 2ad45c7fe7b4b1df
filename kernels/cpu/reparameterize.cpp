#include "kernels/reparameterize.h"

#include "kernels/cpu/elementary.h"
#include "kernels/cpu/philox_tile.h"

namespace genfast::cpu {
namespace {

constexpr int kSumLanes = 8;

// Adds terms to interleaved partial sums in double: a fixed order that still vectorises.
template <typename scalar_t>
GENFAST_INLINE void add_terms(double* sums, const scalar_t* terms, int64_t count) {
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int lane = 0; lane < kSumLanes; ++lane) sums[lane] += static_cast<double>(terms[i + lane]);
  }
  for (; i < count; ++i) sums[i % kSumLanes] += static_cast<double>(terms[i]);
}

template <bool has_free_bits, typename scalar_t>
void forward_rows(const ReparameterizeForward<scalar_t>& params, int64_t begin, int64_t end) {
  const scalar_t free_bits = static_cast<scalar_t>(params.free_bits);
  scalar_t terms[kTile];
  for (int64_t n = begin; n < end; ++n) {
    const scalar_t* mu = params.mu.data + n * params.mu.row_stride;
    const scalar_t* logvar = params.logvar.data + n * params.logvar.row_stride;
    scalar_t* z = params.z + n * params.D;
    const int64_t row_start = params.offset + n * params.D;
    double sums[kSumLanes] = {};
    for_each_tile(PhiloxKind::kNormal, params.seed, row_start, row_start + params.D,
                  [&](const float* noise, int64_t first, int64_t count) {
                    const int64_t d0 = first - row_start;
                    for (int64_t i = 0; i < count; ++i) {
                      const scalar_t m = mu[d0 + i];
                      const scalar_t lv = logvar[d0 + i];
                      const scalar_t std = vector_exp(lv * scalar_t(0.5));
                      z[d0 + i] = latent(m, std, static_cast<scalar_t>(noise[i]));
                      const scalar_t kl = kl_term(m, lv, vector_expm1(lv, std * std));
                      terms[i] = has_free_bits && takes_free_bits(kl, free_bits) ? free_bits : kl;
                    }
                    add_terms(sums, terms, count);
                  });
    double kl = 0;
    for (int lane = 0; lane < kSumLanes; ++lane) kl += sums[lane];
    params.kl[n] = static_cast<scalar_t>(zero_or_product(params.beta, kl));
  }
}

// What a missing gradient would multiply is not computed: it may be infinite or NaN.
template <bool has_grad_z, bool has_grad_kl, bool has_free_bits, typename scalar_t>
void backward_rows(const ReparameterizeBackward<scalar_t>& params, int64_t begin, int64_t end) {
  const scalar_t free_bits = static_cast<scalar_t>(params.free_bits);
  const bool one_grad_z = !has_grad_z || params.grad_z_step == 0;
  scalar_t same_grad_z[kTile];
  for (scalar_t& grad : same_grad_z) grad = has_grad_z ? *params.grad_z : scalar_t(0);
  for (int64_t n = begin; n < end; ++n) {
    const scalar_t* mu = params.mu.data + n * params.mu.row_stride;
    const scalar_t* logvar = params.logvar.data + n * params.logvar.row_stride;
    const scalar_t grad_kl =
        has_grad_kl ? params.grad_kl[n * params.grad_kl_stride] * static_cast<scalar_t>(params.beta)
                    : scalar_t(0);
    const int64_t row_start = params.offset + n * params.D;
    for_each_tile(PhiloxKind::kNormal, params.seed, row_start, row_start + params.D,
                  [&](const float* noise, int64_t first, int64_t count) {
                    const int64_t d0 = first - row_start;
                    const int64_t at = n * params.D + d0;
                    const scalar_t* grad_z = one_grad_z ? same_grad_z : params.grad_z + at;
                    for (int64_t i = 0; i < count; ++i) {
                      const scalar_t lv = logvar[d0 + i];
                      const scalar_t std = vector_exp(lv * scalar_t(0.5));
                      const scalar_t eps = static_cast<scalar_t>(noise[i]);
                      if constexpr (has_grad_kl) {
                        const scalar_t m = mu[d0 + i];
                        const scalar_t variance_minus_one = vector_expm1(lv, std * std);
                        const bool flat =
                            has_free_bits &&
                            takes_free_bits(kl_term(m, lv, variance_minus_one), free_bits);
                        const scalar_t slope = flat ? scalar_t(0) : grad_kl;
                        params.grad_mu[at + i] = grad_z[i] + slope * m;
                        params.grad_logvar[at + i] =
                            grad_logvar_of_both(grad_z[i], slope, std, eps, variance_minus_one);
                      } else {
                        params.grad_mu[at + i] = grad_z[i];
                        params.grad_logvar[at + i] = grad_logvar_of_z(grad_z[i], std, eps);
                      }
                    }
                  });
  }
}

template <bool has_free_bits, typename scalar_t>
void backward_rows(const ReparameterizeBackward<scalar_t>& params, int64_t begin, int64_t end) {
  if (params.grad_kl == nullptr) {
    if (params.grad_z != nullptr) return backward_rows<true, false, false>(params, begin, end);
    return;
  }
  params.grad_z != nullptr ? backward_rows<true, true, has_free_bits>(params, begin, end)
                           : backward_rows<false, true, has_free_bits>(params, begin, end);
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void reparameterize_forward(const ReparameterizeForward<scalar_t>& params, int64_t begin,
                            int64_t end) {
  params.free_bits > 0 ? forward_rows<true>(params, begin, end)
                       : forward_rows<false>(params, begin, end);
}

template <SimdLevel level, typename scalar_t>
void reparameterize_backward(const ReparameterizeBackward<scalar_t>& params, int64_t begin,
                             int64_t end) {
  params.free_bits > 0 ? backward_rows<true>(params, begin, end)
                       : backward_rows<false>(params, begin, end);
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
