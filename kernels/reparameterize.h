// z = mu + exp(logvar / 2) * noise, and the divergence of N(mu, exp(logvar)) from N(0, 1) per
// example: beta * sum over latent dimensions of max(free_bits, divergence of the dimension).
#pragma once

#include <limits>

#include "kernels/philox.h"

namespace genfast {

// A matrix whose rows are contiguous; rows may lie apart (the two halves of an encoder's output
// do).
template <typename scalar_t>
struct RowMatrix {
  scalar_t* data;
  int64_t row_stride;  // elements
};

template <typename scalar_t>
struct ReparameterizeForward {
  RowMatrix<const scalar_t> mu;      // [N, D]
  RowMatrix<const scalar_t> logvar;  // [N, D]
  scalar_t* z;                       // [N, D], contiguous
  scalar_t* kl;                      // [N], nats
  int64_t N, D;
  uint64_t seed;
  int64_t offset;          // stream position of the noise of z[0, 0], in elements
  double beta, free_bits;  // free_bits 0: the divergence as it stands
};

template <typename scalar_t>
struct ReparameterizeBackward {
  RowMatrix<const scalar_t> mu;      // [N, D]
  RowMatrix<const scalar_t> logvar;  // [N, D]
  const scalar_t* grad_z;            // [N, D], contiguous, or null: no term
  int64_t grad_z_step;               // 1, or 0: one value for all elements
  const scalar_t* grad_kl;           // [N], or null: no term
  int64_t grad_kl_stride;            // elements
  scalar_t* grad_mu;                 // [N, D], contiguous
  scalar_t* grad_logvar;             // [N, D], contiguous
  int64_t N, D;
  uint64_t seed;
  int64_t offset;
  double beta, free_bits;
};

// 0 for zero times infinity: the infinity stands for a number too large for the type, and zero
// times that is zero. NaN stays NaN.
template <typename acc_t>
GENFAST_INLINE acc_t zero_or_product(acc_t factor, acc_t large) {
  return factor == 0 && large == large ? acc_t(0) : factor * large;
}

// One element. `std` is exp(logvar / 2), computed once: exp(logvar) is its square.
template <typename acc_t>
GENFAST_INLINE acc_t latent(acc_t mu, acc_t std, acc_t noise) {
  return mu + zero_or_product(noise, std);
}

template <typename acc_t>
GENFAST_INLINE acc_t kl_term(acc_t mu, acc_t logvar, acc_t variance_minus_one) {
  return acc_t(0.5) * (mu * mu + variance_minus_one - logvar);
}

// Whether max(free_bits, kl) is free_bits and so has no slope. False at NaN, which stays.
template <typename acc_t>
GENFAST_INLINE bool takes_free_bits(acc_t kl, acc_t free_bits) {
  return kl <= free_bits;
}

// The gradient by logvar of z alone.
template <typename acc_t>
GENFAST_INLINE acc_t grad_logvar_of_z(acc_t grad_z, acc_t std, acc_t noise) {
  return zero_or_product(acc_t(0.5) * grad_z * noise, std);
}

// The gradient by logvar of the divergence and, where grad_z is not zero, of z. Beyond the largest
// exp(logvar) the two terms could be infinities of different signs: the larger power of std, taken
// out of them, decides.
template <typename acc_t>
GENFAST_INLINE acc_t grad_logvar_of_both(acc_t grad_z, acc_t grad_kl, acc_t std, acc_t noise,
                                         acc_t variance_minus_one) {
  const acc_t of_z = acc_t(0.5) * grad_z * noise, of_kl = acc_t(0.5) * grad_kl;
  const acc_t sum = of_z * std + of_kl * variance_minus_one;
  const acc_t factored = zero_or_product(of_z + zero_or_product(of_kl, std), std);
  return variance_minus_one > std::numeric_limits<acc_t>::max() ? factored : sum;
}

}  // namespace genfast

#if !defined(__CUDACC__)
namespace genfast::cpu {
// Rows [begin, end).
template <SimdLevel level, typename scalar_t>
void reparameterize_forward(const ReparameterizeForward<scalar_t>& params, int64_t begin,
                            int64_t end);
template <SimdLevel level, typename scalar_t>
void reparameterize_backward(const ReparameterizeBackward<scalar_t>& params, int64_t begin,
                             int64_t end);
}  // namespace genfast::cpu
#endif

namespace genfast::cuda {
// `device_seed`, when not null, is read on the device instead of params.seed.
template <typename scalar_t>
void reparameterize_forward(const ReparameterizeForward<scalar_t>& params,
                            const int64_t* device_seed, void* stream);
template <typename scalar_t>
void reparameterize_backward(const ReparameterizeBackward<scalar_t>& params,
                             const int64_t* device_seed, void* stream);
}  // namespace genfast::cuda
