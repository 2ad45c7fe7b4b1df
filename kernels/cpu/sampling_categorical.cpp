#include "kernels/cpu/vector_math.h"
#include "kernels/sampling.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
GENFAST_INLINE double tempered(scalar_t logit, scalar_t temperature) {
  return static_cast<double>(temperature == 1 ? logit : logit / temperature);
}

// scratch = exp(logits / temperature - most); returns the sum, in order, or NaN.
template <typename scalar_t>
double exponentials(const CategoricalCall<scalar_t>& call, scalar_t temperature, double* most) {
  constexpr int64_t lanes = kLanes<double>;
  double highest = -HUGE_VAL;
  bool valid = true;
  for (int64_t k = 0; k < call.K; ++k) {
    const double x = tempered(call.logits[k], temperature);
    highest = x > highest ? x : highest;
    valid = valid && x == x;
    call.scratch[k] = x;
  }
  *most = highest;
  // All -inf, or one +inf: no distribution, as softmax would say with NaN.
  if (!valid || highest - highest != 0) return std::nan("");
  const Vector<double> shift = broadcast(highest);
  int64_t k = 0;
  for (; k + lanes <= call.K; k += lanes) {
    store(call.scratch + k, exp_of<double>(load(call.scratch + k) - shift));
  }
  if (k < call.K) {
    const Vector<double> rest = exp_of<double>(load_first(call.scratch + k, call.K - k) - shift);
    store_first(call.scratch + k, rest, call.K - k);
  }
  double sum = 0;
  for (k = 0; k < call.K; ++k) sum += call.scratch[k];
  return sum;
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void sampling_categorical(CategoricalCall<scalar_t>& call) {
  double most;
  double sum = exponentials(call, call.symbol >= 0 ? scalar_t(1) : call.temperature, &most);
  if (sum != sum) {
    call.symbol = -1;
    return;
  }
  if (call.symbol < 0) {
    double total = 0;
    for (int64_t k = 0; k < call.K; ++k) {
      total += call.scratch[k] / sum;
      call.scratch[k] = total;
    }
    // Scaled by the last entry, which rounding can leave below the largest possible uniform.
    const double threshold = call.uniform * total;
    int64_t symbol = 0;
    while (symbol < call.K - 1 && call.scratch[symbol] <= threshold) ++symbol;
    call.symbol = symbol;
    if (call.temperature != 1) sum = exponentials(call, scalar_t(1), &most);
  }
  call.log_prob = static_cast<double>(call.logits[call.symbol]) - most - std::log(sum);
}

template void sampling_categorical<GENFAST_SIMD_LEVEL, float>(CategoricalCall<float>&);
template void sampling_categorical<GENFAST_SIMD_LEVEL, double>(CategoricalCall<double>&);

}  // namespace genfast::cpu
