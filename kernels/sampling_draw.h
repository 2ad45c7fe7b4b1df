// How the sampling engine draws symbols from the parameters that a model gives for them.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"

namespace genfast::cpu {

enum class DrawKind : int32_t { kCategorical, kBernoulli, kLogisticMixture, kGaussian };

// What the second parameter of a Gaussian is.
enum class GaussianScale : int32_t { kLogStd, kStd, kLogVariance };

// At most so many symbols are drawn together, from so many uniform numbers.
constexpr int64_t kMostDrawn = 3;
constexpr int64_t kMostUniforms = 4;

// A distribution of genfast.sampling.distributions; the arithmetic and its order are those of its
// `draw` there, in double.
struct DrawRule {
  DrawKind kind;
  int64_t levels;      // symbols are 0 .. levels - 1; 0: numbers of the model's type
  int64_t count;       // symbols drawn together
  int64_t parameters;  // of these together
  int64_t uniforms;    // that these take together
  int64_t mixtures = 0;
  double lowest_log_scale = 0;  // of a mixture's logistics
  GaussianScale scale = GaussianScale::kLogStd;
};

template <typename scalar_t>
struct DrawCall {
  const scalar_t* parameters;
  double* scratch;  // as many numbers as there are parameters
};

// A pair for each distribution; symbols are `count` levels or numbers.
template <typename scalar_t>
struct DrawKernels {
  // False where the parameters are no distribution, such as NaN.
  bool (*draw)(const DrawRule& rule, const DrawCall<scalar_t>& call, const double* uniforms,
               double temperature, double* symbols);
  // The symbols' log-probability or density in nats, at temperature 1, given that they can be
  // drawn.
  double (*log_prob)(const DrawRule& rule, const DrawCall<scalar_t>& call, const double* symbols);
};

template <SimdLevel level, typename scalar_t>
DrawKernels<scalar_t> sampling_categorical();

template <SimdLevel level, typename scalar_t>
DrawKernels<scalar_t> sampling_bernoulli();

template <SimdLevel level, typename scalar_t>
DrawKernels<scalar_t> sampling_logistic_mixture();

template <SimdLevel level, typename scalar_t>
DrawKernels<scalar_t> sampling_gaussian();

}  // namespace genfast::cpu
