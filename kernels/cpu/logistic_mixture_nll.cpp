#include "kernels/logistic_mixture_nll.h"

#include "kernels/cpu/log_exp.h"
#include "kernels/cpu/pair.h"

namespace genfast::cpu {
namespace {

// Pixels at a time.
template <typename scalar_t>
constexpr int kPixels = 2 * kLanes<scalar_t>;

// The arithmetic of the contract on a pair of vectors of pixels.
template <typename scalar_t>
struct PairMath {
  using scalar = scalar_t;
  using real = Pair<scalar_t>;

  static real constant(scalar_t value) { return pair_of(value); }
  static real select(PairMask<scalar_t> condition, real a, real b) {
    return cpu::select(condition, a, b);
  }
  static real at_most(real a, real bound) {
    return {cpu::at_most(a.first, bound.first), cpu::at_most(a.second, bound.second)};
  }
  static real at_least(real a, real bound) {
    return {cpu::at_least(a.first, bound.first), cpu::at_least(a.second, bound.second)};
  }
  static real minus_absolute(real a) {
    return {cpu::minus_absolute<scalar_t>(a.first), cpu::minus_absolute<scalar_t>(a.second)};
  }
  static real multiply_add(real a, real b, real c) {
    return {cpu::multiply_add<scalar_t>(a.first, b.first, c.first),
            cpu::multiply_add<scalar_t>(a.second, b.second, c.second)};
  }
  static real exp(real a) {
    return {exp_value(bounded_exp<scalar_t>(a.first)), exp_value(bounded_exp<scalar_t>(a.second))};
  }
  static real exp_falling(real a) {
    return {exp_value(falling_exp<scalar_t>(a.first)), exp_value(falling_exp<scalar_t>(a.second))};
  }
  static real one_minus_exp(real a, real& exp) {
    const BoundedExp<scalar_t> first = falling_exp<scalar_t>(a.first);
    const BoundedExp<scalar_t> second = falling_exp<scalar_t>(a.second);
    exp = {exp_value(first), exp_value(second)};
    return {one_minus_exp_value(first), one_minus_exp_value(second)};
  }
  static real log_given(real a, real minus_one) {
    return {cpu::log_given<scalar_t>(a.first, minus_one.first),
            cpu::log_given<scalar_t>(a.second, minus_one.second)};
  }
  // As exp_of and log_of: 0 and infinity where they belong.
  static real full_exp(real a) { return {exp_of<scalar_t>(a.first), exp_of<scalar_t>(a.second)}; }
  static real full_log(real a) { return {log_of<scalar_t>(a.first), log_of<scalar_t>(a.second)}; }
};

// Where a vector of pixels is read and its slopes are written: channel after channel, `stride`
// elements apart.
template <typename scalar_t>
struct Pixels {
  const scalar_t* parameters;
  int64_t stride;
  scalar_t* slope;
  int64_t slope_stride;
};

// Scratch memory, in vectors: derivatives [P], log-probabilities [M], two weights [M] each.
template <typename scalar_t>
struct Scratch {
  scalar_t* derivatives;
  scalar_t* log_probs;
  scalar_t* priors;
};

template <typename scalar_t, int kColours, bool kGradient>
Pair<scalar_t> mixture_nll(const LogisticMixtureNll<scalar_t, scalar_t>& params,
                           const LevelBin<PairMath<scalar_t>> (&bins)[kColours],
                           const Pixels<scalar_t>& pixels, const Scratch<scalar_t>& scratch) {
  using Math = PairMath<scalar_t>;
  using real = Pair<scalar_t>;
  constexpr int n = kPixels<scalar_t>;
  const int64_t mixtures = params.mixtures;
  const auto read = [&](int64_t channel) {
    const scalar_t* from = pixels.parameters + channel * pixels.stride;
    // The channels of an image lie pages apart, too many of them for the processor to foresee.
    __builtin_prefetch(from + n);
    __builtin_prefetch(from + n + n / 2);
    return load_pair(from);
  };
  const auto keep = [&](int64_t channel, real derivative) {
    store_pair(scratch.derivatives + channel * n, derivative);
  };

  real most_logit = read(0);
  for (int64_t m = 1; m < mixtures; ++m) {
    const real logit = read(m);
    most_logit = select(logit > most_logit, logit, most_logit);
  }
  const real infinity = pair_of(static_cast<scalar_t>(__builtin_inf()));
  real most = -infinity;
  for (int64_t m = 0; m < mixtures; ++m) {
    const real log_prob =
        (read(m) - most_logit) +
        component_log_prob<Math, kColours, kGradient>(
            bins, mixtures, m, static_cast<scalar_t>(params.lowest_log_scale), read, keep);
    store_pair(scratch.log_probs + m * n, log_prob);
    most = select(log_prob > most, log_prob, most);
  }
  // No component has any probability: the shift must not make that 0 / 0.
  most = select(most == -infinity, pair_of(scalar_t(0)), most);

  real prior_sum = pair_of(scalar_t(0)), posterior_sum = prior_sum;
  for (int64_t m = 0; m < mixtures; ++m) {
    const real prior = Math::full_exp(read(m) - most_logit);
    const real posterior = Math::full_exp(load_pair(scratch.log_probs + m * n) - most);
    prior_sum = prior_sum + prior;
    posterior_sum = posterior_sum + posterior;
    if constexpr (kGradient) {
      store_pair(scratch.priors + m * n, prior);
      store_pair(scratch.log_probs + m * n, posterior);
    }
  }
  if constexpr (kGradient) {
    const real one = pair_of(scalar_t(1));
    const real of_prior = one / prior_sum, of_posterior = one / posterior_sum;
    for (int64_t m = 0; m < mixtures; ++m) {
      const real posterior = load_pair(scratch.log_probs + m * n) * of_posterior;
      store_pair(pixels.slope + m * pixels.slope_stride,
                 load_pair(scratch.priors + m * n) * of_prior - posterior);
      const real weight = -posterior;
      constexpr int kKinds = kColours == 1 ? 2 : 3;
      GENFAST_UNROLL
      for (int part = 0; part < kColours * kKinds; ++part) {
        const int64_t channel = mixtures * (1 + part) + m;
        store_pair(pixels.slope + channel * pixels.slope_stride,
                   weight * load_pair(scratch.derivatives + channel * n));
      }
    }
  }
  return Math::full_log(prior_sum) - (most + Math::full_log(posterior_sum));
}

// Copies the first `count` pixels to [channels, kPixels] and back; absent pixels read as 0.
template <typename scalar_t>
void gather(const scalar_t* from, int64_t site_stride, int64_t channel_stride, int64_t channels,
            int64_t count, scalar_t* to) {
  constexpr int n = kPixels<scalar_t>, lanes = kLanes<scalar_t>;
  int64_t c = 0;
  if (count == n && channel_stride == 1) {
    for (; c + lanes <= channels; c += lanes) {
      for (int half = 0; half < n; half += lanes) {
        Vector<scalar_t> rows[lanes];
        for (int i = 0; i < lanes; ++i) rows[i] = load(from + (half + i) * site_stride + c);
        transpose<scalar_t>(rows);
        for (int i = 0; i < lanes; ++i) store(to + (c + i) * n + half, rows[i]);
      }
    }
  }
  for (; c < channels; ++c) {
    for (int i = 0; i < n; ++i) {
      to[c * n + i] = i < count ? from[i * site_stride + c * channel_stride] : scalar_t(0);
    }
  }
}

template <typename scalar_t>
void scatter(const scalar_t* from, int64_t site_stride, int64_t channel_stride, int64_t channels,
             int64_t count, scalar_t* to) {
  constexpr int n = kPixels<scalar_t>, lanes = kLanes<scalar_t>;
  int64_t c = 0;
  if (count == n && channel_stride == 1) {
    for (; c + lanes <= channels; c += lanes) {
      for (int half = 0; half < n; half += lanes) {
        Vector<scalar_t> rows[lanes];
        for (int i = 0; i < lanes; ++i) rows[i] = load(from + (c + i) * n + half);
        transpose<scalar_t>(rows);
        for (int i = 0; i < lanes; ++i) store(to + (half + i) * site_stride + c, rows[i]);
      }
    }
  }
  for (; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) {
      to[i * site_stride + c * channel_stride] = from[c * n + i];
    }
  }
}

// Losses of the sites [begin, end) of one example, added in their order; false where a level is out
// of range.
template <typename scalar_t, int kColours, bool kGradient>
bool run_chunk(const LogisticMixtureNll<scalar_t, scalar_t>& params, int64_t example, int64_t begin,
               int64_t end, scalar_t* memory, double& sum) {
  constexpr int n = kPixels<scalar_t>;
  const int64_t channels = logistic_channels(params.mixtures, kColours);
  const int64_t start = example * channels * params.sites;
  const Scratch<scalar_t> scratch{memory, memory + channels * n,
                                  memory + (channels + params.mixtures) * n};
  scalar_t* const tile = memory + (channels + 2 * params.mixtures) * n;
  bool fits = true;
  sum = 0;
  for (int64_t site = begin; site < end; site += n) {
    const int64_t count = end - site < n ? end - site : n;
    LevelBin<PairMath<scalar_t>> bins[kColours];
    for (int colour = 0; colour < kColours; ++colour) {
      const int64_t* from = params.levels + (example * kColours + colour) * params.sites + site;
      scalar_t levels[n] = {};
      int64_t outside = 0;
      for (int64_t i = 0; i < count; ++i) {
        outside |= from[i] | (params.level_count - 1 - from[i]);  // negative if either is
        levels[i] = static_cast<scalar_t>(from[i]);
      }
      fits &= outside >= 0;
      bins[colour] = level_bin<PairMath<scalar_t>>(load_pair(levels),
                                                   static_cast<scalar_t>(params.level_count));
    }
    const int64_t first = start + site * params.site_stride;
    scalar_t* const slope = kGradient ? params.slope + first : nullptr;
    const bool direct = count == n && params.site_stride == 1;
    Pixels<scalar_t> pixels{params.parameters + first, params.channel_stride, slope,
                            params.channel_stride};
    if (!direct) {
      gather(pixels.parameters, params.site_stride, params.channel_stride, channels, count, tile);
      pixels = {tile, n, tile, n};
    }
    scalar_t losses[n];
    store_pair(losses, mixture_nll<scalar_t, kColours, kGradient>(params, bins, pixels, scratch));
    if (kGradient && !direct) {
      scatter(tile, params.site_stride, params.channel_stride, channels, count, slope);
    }
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(losses[i]);
  }
  return fits;
}

template <typename scalar_t, int kColours, bool kGradient>
bool run_chunks(const LogisticMixtureNll<scalar_t, scalar_t>& params, scalar_t* scratch,
                int64_t begin, int64_t end) {
  const int64_t chunks = logistic_mixture_chunks(params.sites);
  bool fits = true;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t site = chunk % chunks * kLogisticChunk;
    const int64_t last =
        site + kLogisticChunk < params.sites ? site + kLogisticChunk : params.sites;
    fits &= run_chunk<scalar_t, kColours, kGradient>(params, chunk / chunks, site, last, scratch,
                                                     params.sums[chunk]);
  }
  return fits;
}

}  // namespace

template <SimdLevel level, typename scalar_t>
bool logistic_mixture_nll(const LogisticMixtureNll<scalar_t, scalar_t>& params, int colours,
                          scalar_t* scratch, int64_t begin, int64_t end) {
  if (params.slope != nullptr) {
    return colours == 1 ? run_chunks<scalar_t, 1, true>(params, scratch, begin, end)
                        : run_chunks<scalar_t, 3, true>(params, scratch, begin, end);
  }
  return colours == 1 ? run_chunks<scalar_t, 1, false>(params, scratch, begin, end)
                      : run_chunks<scalar_t, 3, false>(params, scratch, begin, end);
}

#define GENFAST_INSTANTIATE(scalar_t)                               \
  template bool logistic_mixture_nll<GENFAST_SIMD_LEVEL, scalar_t>( \
      const LogisticMixtureNll<scalar_t, scalar_t>&, int, scalar_t*, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
