#include "kernels/cpu/sampling_softmax.h"
#include "kernels/sampling_draw.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
bool draw(const DrawRule&, const DrawCall<scalar_t>& call, const double* uniforms,
          double temperature, double* symbols) {
  const double logit = static_cast<double>(call.parameters[0]) / temperature;
  const double of_zero = 1 / (1 + std::exp(logit));
  symbols[0] = uniforms[0] >= of_zero ? 1 : 0;
  return logit == logit;
}

template <typename scalar_t>
double log_prob(const DrawRule&, const DrawCall<scalar_t>& call, const double* symbols) {
  return log_sigmoid(static_cast<double>(call.parameters[0]) * (symbols[0] * 2 - 1));
}

}  // namespace

template <SimdLevel level, typename scalar_t>
DrawKernels<scalar_t> sampling_bernoulli() {
  return {draw<scalar_t>, log_prob<scalar_t>};
}

template DrawKernels<float> sampling_bernoulli<GENFAST_SIMD_LEVEL, float>();
template DrawKernels<double> sampling_bernoulli<GENFAST_SIMD_LEVEL, double>();

}  // namespace genfast::cpu
