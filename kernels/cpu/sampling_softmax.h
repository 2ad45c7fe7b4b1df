// A level from softmax(logits / temperature), and what drawing from other distributions shares.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cpu/vector_math.h"
#include "kernels/macros.h"

namespace genfast::cpu {
namespace {

// to[k] = exp(logits[k] / temperature - most); returns the sum, in order, or NaN where there is no
// distribution. The division is in the type of the temperature.
template <typename scalar_t, typename divided_t>
double exponentials(const scalar_t* logits, int64_t K, divided_t temperature, double* to,
                    double* most) {
  constexpr int64_t lanes = kLanes<double>;
  double highest = -HUGE_VAL;
  bool valid = true;
  for (int64_t k = 0; k < K; ++k) {
    const divided_t logit = static_cast<divided_t>(logits[k]);
    const double x = static_cast<double>(temperature == 1 ? logit : logit / temperature);
    highest = x > highest ? x : highest;
    valid = valid && x == x;
    to[k] = x;
  }
  *most = highest;
  // All -inf, or one +inf: no distribution, as softmax would say with NaN.
  if (!valid || highest - highest != 0) return std::nan("");
  const Vector<double> shift = broadcast(highest);
  int64_t k = 0;
  for (; k + lanes <= K; k += lanes) store(to + k, exp_of<double>(load(to + k) - shift));
  if (k < K) {
    const Vector<double> rest = exp_of<double>(load_first(to + k, K - k) - shift);
    store_first(to + k, rest, K - k);
  }
  double sum = 0;
  for (k = 0; k < K; ++k) sum += to[k];
  return sum;
}

// The smallest level whose cumulative probability exceeds the uniform number, or -1.
template <typename scalar_t, typename divided_t>
int64_t inverted(const scalar_t* logits, int64_t K, divided_t temperature, double uniform,
                 double* scratch) {
  double most;
  const double sum = exponentials(logits, K, temperature, scratch, &most);
  if (sum != sum) return -1;
  double total = 0;
  for (int64_t k = 0; k < K; ++k) {
    total += scratch[k] / sum;
    scratch[k] = total;
  }
  // Scaled by the last entry, which rounding can leave below the largest possible uniform.
  const double threshold = uniform * total;
  int64_t level = 0;
  while (level < K - 1 && scratch[level] <= threshold) ++level;
  return level;
}

template <typename scalar_t>
GENFAST_INLINE bool has_nan(const scalar_t* numbers, int64_t count) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) found |= numbers[i] != numbers[i];
  return found;
}

// The middle of the step of 2^-24 that a uniform number stands for: never 0 or 1.
GENFAST_INLINE double inner_uniform(double uniform) {
  return uniform + 0x1p-25;
}

// log(sigmoid(x)).
GENFAST_INLINE double log_sigmoid(double x) {
  return (x < 0 ? x : 0) - std::log1p(std::exp(-std::fabs(x)));
}

}  // namespace
}  // namespace genfast::cpu
