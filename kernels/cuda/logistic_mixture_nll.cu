#include "kernels/logistic_mixture_nll.h"

#include <type_traits>

#include "kernels/cuda/half.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"

namespace genfast::cuda {
namespace {

constexpr int kThreads = kLogisticChunk;  // one pixel each

// The arithmetic of the contract on one pixel.
template <typename acc_t>
struct ScalarMath {
  using scalar = acc_t;
  using real = acc_t;

  static __device__ real constant(acc_t value) { return value; }
  static __device__ real select(bool condition, real a, real b) { return condition ? a : b; }
  static __device__ real at_most(real a, real bound) { return bound < a ? bound : a; }
  static __device__ real at_least(real a, real bound) { return bound > a ? bound : a; }
  static __device__ real minus_absolute(real a) { return -fabs(a); }
  static __device__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
  static __device__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }
  static __device__ real exp(real a) { return raw_exp(a); }
  static __device__ real exp_falling(real a) { return raw_exp(a); }
  static __device__ real one_minus_exp(real a, real& exp) {
    exp = raw_exp(a);
    return -raw_expm1(a);
  }
  // Near 1 the rest has the digits that `a` has lost.
  static __device__ real log_given(real a, real minus_one) {
    return minus_one > real(-0.5) ? raw_log1p(minus_one) : raw_log(a);
  }

  static __device__ float raw_exp(float a) { return expf(a); }
  static __device__ double raw_exp(double a) { return ::exp(a); }
  static __device__ float raw_expm1(float a) { return expm1f(a); }
  static __device__ double raw_expm1(double a) { return ::expm1(a); }
  static __device__ float raw_log(float a) { return logf(a); }
  static __device__ double raw_log(double a) { return ::log(a); }
  static __device__ float raw_log1p(float a) { return log1pf(a); }
  static __device__ double raw_log1p(double a) { return ::log1p(a); }
};

// One block, one chunk of sites of one example. The components are gone through twice, for there
// may be any number of them: for the logarithm of their sum, then for the derivatives.
template <int kColours, typename scalar_t, typename slope_t>
__global__ void __launch_bounds__(kThreads)
    logistic_mixture_nll_kernel(LogisticMixtureNll<scalar_t, slope_t> params, int64_t chunks) {
  using acc_t = acc_type<scalar_t>;
  using Math = ScalarMath<acc_t>;
  const int64_t mixtures = params.mixtures;
  const int64_t channels = logistic_channels(mixtures, kColours);
  const acc_t lowest = static_cast<acc_t>(params.lowest_log_scale);
  const acc_t infinity = static_cast<acc_t>(INFINITY);
  for (int64_t chunk = blockIdx.x; chunk < params.batch * chunks; chunk += gridDim.x) {
    const int64_t example = chunk / chunks;
    const int64_t site = chunk % chunks * kLogisticChunk + threadIdx.x;
    double loss = 0;
    if (site < params.sites) {
      const int64_t first = example * channels * params.sites + site * params.site_stride;
      const scalar_t* const from = params.parameters + first;
      LevelBin<Math> bins[kColours];
      GENFAST_UNROLL
      for (int colour = 0; colour < kColours; ++colour) {
        const int64_t level = params.levels[(example * kColours + colour) * params.sites + site];
        const bool fits = level >= 0 && level < params.level_count;
        bins[colour] = level_bin<Math>(fits ? static_cast<acc_t>(level) : static_cast<acc_t>(NAN),
                                       static_cast<acc_t>(params.level_count));
      }
      const auto read = [&](int64_t channel) {
        return load<acc_t>(from[channel * params.channel_stride]);
      };
      acc_t most_logit = read(0);
      for (int64_t m = 1; m < mixtures; ++m) {
        const acc_t logit = read(m);
        most_logit = logit > most_logit ? logit : most_logit;
      }
      acc_t prior_sum = 0, posterior_sum = 0, most = -infinity;
      for (int64_t m = 0; m < mixtures; ++m) {
        const acc_t logit = read(m) - most_logit;
        const acc_t log_prob = logit + component_log_prob<Math, kColours, false>(
                                           bins, mixtures, m, lowest, read, [](int64_t, acc_t) {});
        prior_sum += Math::raw_exp(logit);
        if (log_prob > most) {
          posterior_sum = posterior_sum * Math::raw_exp(most - log_prob) + acc_t(1);
          most = log_prob;
        } else if (log_prob != -infinity) {
          posterior_sum += Math::raw_exp(log_prob - most);
        }
      }
      const acc_t value =
          Math::raw_log(prior_sum) -
          (posterior_sum == acc_t(0) ? -infinity : most + Math::raw_log(posterior_sum));
      loss = static_cast<double>(value);
      if (params.slope != nullptr) {
        slope_t* const to = params.slope + first;
        for (int64_t m = 0; m < mixtures; ++m) {
          constexpr int kKinds = kColours == 1 ? 2 : 3;
          const acc_t logit = read(m) - most_logit;
          const acc_t log_prob =
              logit + component_log_prob<Math, kColours, true>(
                          bins, mixtures, m, lowest, read, [&](int64_t channel, acc_t derivative) {
                            to[channel * params.channel_stride] = derivative;
                          });
          const acc_t posterior = Math::raw_exp(log_prob - most) / posterior_sum;
          to[m * params.channel_stride] = Math::raw_exp(logit) / prior_sum - posterior;
          for (int part = 0; part < kColours * kKinds; ++part) {
            slope_t& slope = to[(mixtures * (1 + part) + m) * params.channel_stride];
            slope = -(posterior * slope);
          }
        }
      }
    }
    loss = block_sum<kThreads>(loss);
    if (threadIdx.x == 0) params.sums[chunk] = loss;
  }
}

}  // namespace

template <typename scalar_t, typename slope_t>
void logistic_mixture_nll(const LogisticMixtureNll<scalar_t, slope_t>& params, int colours,
                          void* stream) {
  const int64_t chunks = logistic_mixture_chunks(params.sites);
  const unsigned blocks = grid_size(params.batch * chunks, 1);
  if (colours == 1) {
    logistic_mixture_nll_kernel<1><<<blocks, kThreads, 0, as_stream(stream)>>>(params, chunks);
  } else {
    logistic_mixture_nll_kernel<3><<<blocks, kThreads, 0, as_stream(stream)>>>(params, chunks);
  }
  check_launch("logistic_mixture_nll_kernel");
}

template void logistic_mixture_nll(const LogisticMixtureNll<float, float>&, int, void*);
template void logistic_mixture_nll(const LogisticMixtureNll<double, double>&, int, void*);
template void logistic_mixture_nll(const LogisticMixtureNll<__half, float>&, int, void*);
template void logistic_mixture_nll(const LogisticMixtureNll<__nv_bfloat16, float>&, int, void*);

}  // namespace genfast::cuda
