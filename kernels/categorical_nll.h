// Negative log-likelihood of classes under a softmax, for every site of images or sounds, and its
// gradient.
#pragma once

#include <cstdint>

#include "kernels/macros.h"

namespace genfast {

// The sites are [batch, groups, sites] in the order of the symbols; where the scores of the classes
// of a site lie, in elements.
struct CategoricalLayout {
  int64_t batch, groups, sites, classes;
  int64_t batch_stride, group_stride, site_stride, class_stride;
};

// Of the first site of row `row` of all batch * groups.
GENFAST_INLINE int64_t categorical_offset(const CategoricalLayout& layout, int64_t row) {
  return row / layout.groups * layout.batch_stride + row % layout.groups * layout.group_stride;
}

// A site's probabilities are exp(logit - most) / sum. The two are kept for the backward pass, and
// not their logarithm: most + log(sum) has lost the digits of log(sum) where logits are large.
template <typename scalar_t, typename acc_t>
struct CategoricalNll {
  const scalar_t* logits;
  const int64_t* symbols;  // [batch, groups, sites]
  acc_t* most;             // [batch, groups, sites], or null: unwanted
  acc_t* sum;              // likewise
  double* losses;          // [batch, groups, chunks]: of the chunks of sites, in nats
  CategoricalLayout layout;
};

template <typename scalar_t, typename acc_t>
struct CategoricalNllBackward {
  const scalar_t* logits;
  const int64_t* symbols;  // [batch, groups, sites], as the rest in this order
  const acc_t* most;
  const acc_t* sum;
  const acc_t* grad_loss;  // [batch]
  scalar_t* grad;
  CategoricalLayout layout, grad_layout;
};

constexpr int64_t kCategoricalChunk = 256;  // sites

GENFAST_INLINE int64_t categorical_chunks(const CategoricalLayout& layout) {
  return (layout.sites + kCategoricalChunk - 1) / kCategoricalChunk;
}

}  // namespace genfast

#if !defined(__CUDACC__)
#include "kernels/cpu/simd.h"
namespace genfast::cpu {
// Chunks [begin, end) of all rows * chunks. Either the classes or the sites must be adjacent, in
// each of the layouts. The forward returns whether every symbol was in range.
template <SimdLevel level, typename scalar_t>
bool categorical_nll(const CategoricalNll<scalar_t, scalar_t>& params, int64_t begin, int64_t end);
template <SimdLevel level, typename scalar_t>
void categorical_nll_backward(const CategoricalNllBackward<scalar_t, scalar_t>& params,
                              int64_t begin, int64_t end);
}  // namespace genfast::cpu
#endif

namespace genfast::cuda {
template <typename scalar_t, typename acc_t>
void categorical_nll(const CategoricalNll<scalar_t, acc_t>& params, void* stream);
template <typename scalar_t, typename acc_t>
void categorical_nll_backward(const CategoricalNllBackward<scalar_t, acc_t>& params, void* stream);
}  // namespace genfast::cuda
