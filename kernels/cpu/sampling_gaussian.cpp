#include "kernels/cpu/sampling_softmax.h"
#include "kernels/sampling_draw.h"

namespace genfast::cpu {
namespace {

constexpr double kTwoPi = 6.283185307179586;
constexpr double kHalfLogTwoPi = 0.9189385332046727;

template <typename scalar_t>
GENFAST_INLINE double log_std(const DrawRule& rule, const scalar_t* parameters) {
  const double scale = static_cast<double>(parameters[1]);
  if (rule.scale == GaussianScale::kStd) return std::log(scale);
  return rule.scale == GaussianScale::kLogVariance ? scale / 2 : scale;
}

// Box and Muller.
template <typename scalar_t>
bool draw(const DrawRule& rule, const DrawCall<scalar_t>& call, const double* uniforms,
          double temperature, double* symbols) {
  const double mean = static_cast<double>(call.parameters[0]);
  const double radius = std::sqrt(-2 * std::log(inner_uniform(uniforms[0])));
  const double normal = radius * std::cos(kTwoPi * inner_uniform(uniforms[1]));
  const double drawn = mean + temperature * std::exp(log_std(rule, call.parameters)) * normal;
  symbols[0] = drawn;
  const scalar_t number = static_cast<scalar_t>(drawn);
  return number - number == 0 && !has_nan(call.parameters, rule.parameters);
}

template <typename scalar_t>
double log_prob(const DrawRule& rule, const DrawCall<scalar_t>& call, const double* symbols) {
  const double scale = log_std(rule, call.parameters);
  const double standard = (symbols[0] - static_cast<double>(call.parameters[0])) * std::exp(-scale);
  return -0.5 * (standard * standard) - scale - kHalfLogTwoPi;
}

}  // namespace

template <SimdLevel level, typename scalar_t>
DrawKernels<scalar_t> sampling_gaussian() {
  return {draw<scalar_t>, log_prob<scalar_t>};
}

template DrawKernels<float> sampling_gaussian<GENFAST_SIMD_LEVEL, float>();
template DrawKernels<double> sampling_gaussian<GENFAST_SIMD_LEVEL, double>();

}  // namespace genfast::cpu
