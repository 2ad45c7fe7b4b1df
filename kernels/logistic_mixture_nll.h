// Negative log-likelihood of levels under discretized mixtures of logistics, with its gradient.
#pragma once

#include <cstdint>

#include "kernels/macros.h"

namespace genfast {

// The last channels of a component: for each colour a mean, a log-scale and, with three colours, a
// coefficient. The coefficients are of green on red, of blue on red and of blue on green.
enum LogisticKind { kMean, kLogScale, kCoefficient };

GENFAST_INLINE int64_t logistic_channels(int64_t mixtures, int colours) {
  return mixtures * (colours == 1 ? 3 : 10);
}

template <int kColours>
GENFAST_INLINE int64_t logistic_channel(int64_t mixtures, int64_t component, int colour, int kind) {
  constexpr int kKinds = kColours == 1 ? 2 : 3;
  return mixtures * (1 + colour * kKinds + kind) + component;
}

// Beyond this log-scale the bin's logarithm is linear in it to every digit; continuing that line
// keeps exp(-log_scale) a normal number in float, down to bins of 2^-24.
constexpr int kLogisticWidest = 60;

// No lower than this may log-scales count, for the same reason.
constexpr int kLogisticNarrowest = -80;

// The arithmetic of one pixel (CUDA: acc_t) or of a vector of pixels (CPU) is the same text. `Math`
// gives the number type `real` and
//   select(condition, a, b)   a where the condition is true, else b
//   at_most(a, bound), at_least(a, bound)   NaN stays
//   minus_absolute(a)   -|a|
//   multiply_add(a, b, c)   a b + c rounded once
//   exp(a)   where the result is a normal number
//   exp_falling(a)   also for very negative a: about the smallest normal number, or 0
//   one_minus_exp(a, exp)   1 - exp(a), and exp(a) as exp_falling gives it
//   log_given(a, a - 1)   log(a) for normal a > 0

// The bin of a level k on [-1, 1]: from (2 k - K) / (K - 1) to (2 k + 2 - K) / (K - 1), the
// outermost bins to a place beyond all scales. An edge is the sum of its two parts, so that its
// distance to a near mean has all digits.
template <typename Math>
struct LevelBin {
  using real = typename Math::real;
  real upper, upper_rest, lower, lower_rest, width;
  real inner;     // 0 for the outermost bins, else 1
  real position;  // of the level itself: (2 k + 1 - K) / (K - 1)
};

template <typename Math>
GENFAST_INLINE LevelBin<Math> level_bin(typename Math::real level, typename Math::scalar levels) {
  using real = typename Math::real;
  using scalar = typename Math::scalar;
  const scalar steps = levels - 1;
  const scalar per_step = scalar(1) / steps;
  const real zero = Math::constant(0), far = Math::constant(scalar(1e30));
  const real minus_steps = Math::constant(-steps);
  const real below = level * scalar(2) - levels, above = below + scalar(2);
  const auto lowest = level == zero;
  const auto highest = level == Math::constant(steps);
  LevelBin<Math> bin;
  bin.upper = above / steps;
  bin.lower = below / steps;
  bin.upper_rest = Math::multiply_add(bin.upper, minus_steps, above) * per_step;
  bin.lower_rest = Math::multiply_add(bin.lower, minus_steps, below) * per_step;
  bin.upper = Math::select(highest, far, bin.upper);
  bin.lower = Math::select(lowest, -far, bin.lower);
  bin.width = Math::select(lowest | highest, far, Math::constant(scalar(2) / steps));
  bin.inner = Math::select(lowest | highest, zero, Math::constant(1));
  bin.position = (below + scalar(1)) / steps;
  return bin;
}

// The logarithm of a bin's probability and its derivatives.
template <typename real>
struct BinPoint {
  real log_prob, by_mean, by_log_scale;
};

// With u and l the upper and lower edge, minus the mean, over the scale, and w = u - l:
//   P = sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(-w))
// Of sigmoid(u) and sigmoid(-l) at most one has a negative argument, whose exponential is taken out
// of the logarithm. What remains is q = (1 - exp(-w)) / ((1 + exp(-|u|)) (1 + exp(-|l|))), and
// 1 - q is a sum without cancellation: the logarithm has all digits at both ends.
template <typename Math>
GENFAST_INLINE BinPoint<typename Math::real> bin_point(const LevelBin<Math>& bin,
                                                       typename Math::real mean,
                                                       typename Math::real log_scale) {
  using real = typename Math::real;
  using scalar = typename Math::scalar;
  const real zero = Math::constant(0), one = Math::constant(1);
  const real far = Math::constant(scalar(1e20));  // its exponential times itself is still nothing
  const real narrow = Math::at_most(log_scale, Math::constant(scalar(kLogisticWidest)));
  const real inverse = Math::exp(-narrow);
  const real u = Math::at_most(((bin.upper - mean) + bin.upper_rest) * inverse, far);
  const real l = Math::at_least(((bin.lower - mean) + bin.lower_rest) * inverse, -far);
  const real w = Math::at_most(inverse * bin.width, far);
  const real exp_u = Math::exp_falling(Math::minus_absolute(u));
  const real exp_l = Math::exp_falling(Math::minus_absolute(l));
  real exp_w;
  const real gap = Math::one_minus_exp(-w, exp_w);

  const real a = one + exp_u, b = one + exp_l;
  const real ab = a * b;
  const real inverse_all = one / (ab * gap);
  const real inverse_ab = inverse_all * gap;
  const real q = gap * inverse_ab;
  const real sum = Math::multiply_add(exp_u, exp_l, exp_u + exp_l) + exp_w;
  const real minus_l = -l;
  const real outside = Math::at_most(Math::at_most(u, minus_l), zero);
  // A log-scale beyond the widest one lowers the logarithm of an inner bin by as much.
  const real known = Math::multiply_add(narrow - log_scale, bin.inner, outside);

  BinPoint<real> point;
  point.log_prob = known + Math::log_given(q, -(sum * inverse_ab));
  const real slope_u = Math::select(u < zero, one, exp_u) * (b * inverse_ab);  // sigmoid(-u)
  const real slope_l = Math::select(l < zero, exp_l, one) * (a * inverse_ab);  // sigmoid(l)
  point.by_mean = inverse * (slope_l - slope_u);
  const real by_edges = Math::multiply_add(l, slope_l, -(u * slope_u));
  point.by_log_scale = Math::multiply_add(-(w * exp_w), ab * inverse_all, by_edges);
  return point;
}

// A component's log-probability of a pixel, without its logit. `read(channel)` gives a parameter;
// `write(channel, derivative)` takes the derivative of the log-probability, unless kGradient is
// off.
template <typename Math, int kColours, bool kGradient, typename Read, typename Write>
GENFAST_INLINE typename Math::real component_log_prob(const LevelBin<Math> (&bins)[kColours],
                                                      int64_t mixtures, int64_t component,
                                                      typename Math::scalar lowest_log_scale,
                                                      Read&& read, Write&& write) {
  using real = typename Math::real;
  const real lowest = Math::constant(lowest_log_scale);
  const real most = Math::constant(typename Math::scalar(80));  // exp of it is finite
  const auto channel = [&](int colour, int kind) {
    return logistic_channel<kColours>(mixtures, component, colour, kind);
  };
  real total = Math::constant(0);
  GENFAST_UNROLL
  for (int colour = 0; colour < kColours; ++colour) {
    real mean = read(channel(colour, kMean));
    real bend[2] = {};  // of the mean in its coefficients
    GENFAST_UNROLL
    for (int before = 0; before < colour; ++before) {
      const real x = bins[before].position;
      const real coefficient = read(channel(colour - 1 + before, kCoefficient));
      // tanh(c) = (1 - e) / (1 + e) and its derivative 4 e / (1 + e)^2, for e = exp(-2 c).
      real e;
      const real difference =
          Math::one_minus_exp(Math::at_most(coefficient * typename Math::scalar(-2), most), e);
      const real inverse = Math::constant(1) / (Math::constant(1) + e);
      mean = Math::multiply_add(difference * inverse, x, mean);
      bend[before] = x * typename Math::scalar(4) * (e * inverse * inverse);
    }
    const real given = read(channel(colour, kLogScale));
    const BinPoint<real> point = bin_point<Math>(bins[colour], mean, Math::at_least(given, lowest));
    total = total + point.log_prob;
    if constexpr (kGradient) {
      write(channel(colour, kMean), point.by_mean);
      write(channel(colour, kLogScale),
            Math::select(given < lowest, Math::constant(0), point.by_log_scale));
      GENFAST_UNROLL
      for (int before = 0; before < colour; ++before) {
        write(channel(colour - 1 + before, kCoefficient), point.by_mean * bend[before]);
      }
    }
  }
  return total;
}

// A channel's elements of one example lie site_stride apart, its channels channel_stride, and the
// examples follow each other without gaps: [N, P, S] contiguous or channels last. The slope has the
// strides of the parameters.
template <typename scalar_t, typename slope_t>
struct LogisticMixtureNll {
  const scalar_t* parameters;  // [batch, P, sites], P = mixtures * (colours == 1 ? 3 : 10)
  const int64_t* levels;       // [batch, colours, sites], contiguous
  slope_t* slope;              // derivative of each example's loss, or null: unwanted
  double* sums;                // [batch, chunks]: losses of the chunks of sites, in nats
  int64_t batch, sites, mixtures;
  int64_t channel_stride, site_stride;  // elements
  int64_t level_count;
  double lowest_log_scale;
};

constexpr int64_t kLogisticChunk = 256;  // sites

GENFAST_INLINE int64_t logistic_mixture_chunks(int64_t sites) {
  return (sites + kLogisticChunk - 1) / kLogisticChunk;
}

}  // namespace genfast

#if !defined(__CUDACC__)
#include "kernels/cpu/simd.h"
namespace genfast::cpu {
// Elements of scratch memory that a call needs, for the widest vectors.
GENFAST_INLINE int64_t logistic_mixture_scratch(int64_t mixtures, int colours) {
  constexpr int64_t kMostPixels = 32;
  return (2 * logistic_channels(mixtures, colours) + 2 * mixtures) * kMostPixels;
}

// Chunks [begin, end) of all batch * chunks; returns whether every level was in range.
template <SimdLevel level, typename scalar_t>
bool logistic_mixture_nll(const LogisticMixtureNll<scalar_t, scalar_t>& params, int colours,
                          scalar_t* scratch, int64_t begin, int64_t end);
}  // namespace genfast::cpu
#endif

namespace genfast::cuda {
template <typename scalar_t, typename slope_t>
void logistic_mixture_nll(const LogisticMixtureNll<scalar_t, slope_t>& params, int colours,
                          void* stream);
}  // namespace genfast::cuda
