#include "kernels/cpu/sampling_softmax.h"
#include "kernels/sampling_draw.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
bool draw(const DrawRule& rule, const DrawCall<scalar_t>& call, const double* uniforms,
          double temperature, double* symbols) {
  const int64_t level = inverted(call.parameters, rule.levels, static_cast<scalar_t>(temperature),
                                 uniforms[0], call.scratch);
  symbols[0] = static_cast<double>(level);
  return level >= 0;
}

template <typename scalar_t>
double log_prob(const DrawRule& rule, const DrawCall<scalar_t>& call, const double* symbols) {
  double most;
  const double sum = exponentials(call.parameters, rule.levels, 1.0, call.scratch, &most);
  return static_cast<double>(call.parameters[static_cast<int64_t>(symbols[0])]) - most -
         std::log(sum);
}

}  // namespace

template <SimdLevel level, typename scalar_t>
DrawKernels<scalar_t> sampling_categorical() {
  return {draw<scalar_t>, log_prob<scalar_t>};
}

template DrawKernels<float> sampling_categorical<GENFAST_SIMD_LEVEL, float>();
template DrawKernels<double> sampling_categorical<GENFAST_SIMD_LEVEL, double>();

}  // namespace genfast::cpu
