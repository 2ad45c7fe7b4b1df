// The discretized mixture of logistics of PixelCNN++ (Salimans et al. 2017, sections 2.1 and 2.2).
// Parameters in the published order: M logits, then for each colour M means, M log-scales and, with
// three colours, M coefficients before their tanh: of green on red, blue on red and blue on green.
#include "kernels/cpu/sampling_softmax.h"
#include "kernels/sampling_draw.h"

namespace genfast::cpu {
namespace {

constexpr double kLogTwo = 0.6931471805599453;
constexpr double kSmallestNormal = 0x1p-1022;

enum Part : int64_t { kMean, kLogScale, kCoefficient };

template <typename scalar_t>
struct Component {
  const DrawRule& rule;
  const scalar_t* own;  // its first mean

  Component(const DrawRule& rule, const scalar_t* parameters, int64_t number)
      : rule(rule), own(parameters + rule.mixtures + number) {}

  double at(int64_t colour, Part part) const {
    const int64_t kinds = rule.count == 3 ? 3 : 2;
    return static_cast<double>(own[(colour * kinds + part) * rule.mixtures]);
  }

  // A colour's mean given x of the colours before it.
  double mean(int64_t colour, const double* x) const {
    const double alone = at(colour, kMean);
    if (colour == 0) return alone;
    if (colour == 1) return alone + std::tanh(at(0, kCoefficient)) * x[0];
    return alone + std::tanh(at(1, kCoefficient)) * x[0] + std::tanh(at(2, kCoefficient)) * x[1];
  }

  double log_scale(int64_t colour) const {
    const double given = at(colour, kLogScale);
    return given < rule.lowest_log_scale ? rule.lowest_log_scale : given;
  }
};

// Where a level lies in [-1, 1].
GENFAST_INLINE double position_of(double symbol, int64_t levels) {
  return symbol * (2 / static_cast<double>(levels - 1)) - 1;
}

template <typename scalar_t>
bool draw(const DrawRule& rule, const DrawCall<scalar_t>& call, const double* uniforms,
          double temperature, double* symbols) {
  if (has_nan(call.parameters, rule.parameters)) return false;
  const int64_t number =
      inverted(call.parameters, rule.mixtures, temperature, uniforms[0], call.scratch);
  if (number < 0) return false;
  const Component<scalar_t> component(rule, call.parameters, number);
  const double highest = static_cast<double>(rule.levels - 1);
  double x[kMostDrawn];
  for (int64_t colour = 0; colour < rule.count; ++colour) {
    const double u = inner_uniform(uniforms[1 + colour]);
    const double noise = std::log(u / (1 - u));
    const double scaled = std::exp(component.log_scale(colour)) * noise * temperature;
    const double position = (component.mean(colour, x) + scaled + 1) * (highest / 2);
    if (position != position) return false;
    const double nearest = std::nearbyint(position);
    symbols[colour] = nearest < 0 ? 0 : nearest > highest ? highest : nearest;
    x[colour] = position_of(symbols[colour], rule.levels);
  }
  return true;
}

// log(1 - exp(-width)) for width > 0, accurate at both ends.
GENFAST_INLINE double log_one_minus_exp(double width) {
  const double some = width < kSmallestNormal ? kSmallestNormal : width;
  return some < kLogTwo ? std::log(-std::expm1(-some)) : std::log1p(-std::exp(-some));
}

// Of a level's bin of a logistic distribution; see nn.discretized_logistic_log_prob.
double bin_log_prob(double symbol, double mean, double log_scale, int64_t levels) {
  const double steps = static_cast<double>(levels - 1);
  const double inverse_scale = std::exp(-log_scale);
  const double doubled = symbol * 2 - static_cast<double>(levels);
  const double upper = ((doubled + 2) / steps - mean) * inverse_scale;
  const double lower = (doubled / steps - mean) * inverse_scale;
  if (symbol == 0) return log_sigmoid(upper);
  if (symbol == steps) return log_sigmoid(-lower);
  return log_sigmoid(upper) + log_sigmoid(-lower) +
         log_one_minus_exp(2 * (1 / steps) * inverse_scale);
}

template <typename scalar_t>
double log_prob(const DrawRule& rule, const DrawCall<scalar_t>& call, const double* symbols) {
  const int64_t M = rule.mixtures;
  double most;
  const double log_sum = std::log(exponentials(call.parameters, M, 1.0, call.scratch, &most));
  double x[kMostDrawn];
  for (int64_t colour = 0; colour < rule.count; ++colour) {
    x[colour] = position_of(symbols[colour], rule.levels);
  }
  double highest = -HUGE_VAL;
  for (int64_t m = 0; m < M; ++m) {
    const Component<scalar_t> component(rule, call.parameters, m);
    double sum = static_cast<double>(call.parameters[m]) - most - log_sum;
    for (int64_t colour = 0; colour < rule.count; ++colour) {
      sum += bin_log_prob(symbols[colour], component.mean(colour, x), component.log_scale(colour),
                          rule.levels);
    }
    call.scratch[m] = sum;
    highest = sum > highest ? sum : highest;
  }
  if (highest == -HUGE_VAL) return highest;
  double total = 0;
  for (int64_t m = 0; m < M; ++m) total += std::exp(call.scratch[m] - highest);
  return highest + std::log(total);
}

}  // namespace

template <SimdLevel level, typename scalar_t>
DrawKernels<scalar_t> sampling_logistic_mixture() {
  return {draw<scalar_t>, log_prob<scalar_t>};
}

template DrawKernels<float> sampling_logistic_mixture<GENFAST_SIMD_LEVEL, float>();
template DrawKernels<double> sampling_logistic_mixture<GENFAST_SIMD_LEVEL, double>();

}  // namespace genfast::cpu
