// Losses of generative adversarial networks: the mean, over each tensor of logits, of a term of one
// argument, with the first and second derivatives of that term.
#pragma once

#include <cstdint>

#include "kernels/elementary.h"

namespace genfast {

enum class GanKind : int32_t {
  kMinimax,
  kNonSaturating,
  kLeastSquares,
  kWasserstein,
  kHinge,
  kRelativistic,
  kRelativisticAverage
};
enum class GanRole : int32_t { kDiscriminator, kGenerator };

// What the argument of a term is:
//   kAlone     a logit
//   kPairs     fake[i] - real[i]: one term for both, which is the fake side's
//   kAverages  a logit minus the mean of the other side's
// Each is a linear map of the logits that is its own adjoint when a side is weighted by 1 / count.
// So the gradient takes the slopes of the terms through the same map (kPairs: with both signs), and
// the second derivative takes its direction through it.
enum class GanPairing : int32_t { kAlone, kPairs, kAverages };

GENFAST_INLINE GanPairing gan_pairing(GanKind kind) {
  if (kind == GanKind::kRelativistic) return GanPairing::kPairs;
  return kind == GanKind::kRelativisticAverage ? GanPairing::kAverages : GanPairing::kAlone;
}

// Every loss is one of four functions of its argument x:
//   kSoftplus  scale * log(1 + exp(sign * x)) + shift * x
//   kSquare    (x - shift)^2 / 2
//   kLinear    sign * x
//   kHinge     max(0, 1 + sign * x)
enum class GanForm : int32_t { kSoftplus, kSquare, kLinear, kHinge };

struct GanTerm {
  GanForm form;
  double scale, sign, shift;
};

// The term of the real or of the fake logits. `smoothing` moves the target of the real ones from 1
// to 1 - smoothing: -(1 - s) log D - s log(1 - D) = softplus(-x) + s x. In pairs x is the negative
// of what the target speaks of.
GENFAST_INLINE GanTerm gan_term(GanKind kind, GanRole role, bool real, double smoothing) {
  const bool generator = role == GanRole::kGenerator;
  // Whether the player wants these logits high, which the terms spell as sign -1.
  const double sign = real != generator ? -1 : 1;
  switch (kind) {
    case GanKind::kMinimax:
      if (generator) return {GanForm::kSoftplus, -1, 1, 0};
      return {GanForm::kSoftplus, 1, sign, real ? smoothing : 0};
    case GanKind::kNonSaturating:
    case GanKind::kRelativisticAverage:
      return {GanForm::kSoftplus, 1, sign, real ? smoothing : 0};
    case GanKind::kRelativistic:
      return {GanForm::kSoftplus, 1, sign, real ? smoothing : -smoothing};
    case GanKind::kLeastSquares:
      return {GanForm::kSquare, 1, 1, sign < 0 ? 1 - (real ? smoothing : 0) : 0};
    case GanKind::kWasserstein:
      return {GanForm::kLinear, 1, sign, 0};
    case GanKind::kHinge:
      // The margin is the discriminator's; the generator only pushes its logits up.
      return {generator ? GanForm::kLinear : GanForm::kHinge, 1, sign, 0};
  }
  return {};
}

template <typename acc_t>
struct GanPoint {
  acc_t value, first, second;
};

// The term at x with its derivatives; finite wherever they are representable, NaN at NaN. What the
// caller does not use is not computed.
template <GanForm form, typename acc_t>
GENFAST_INLINE GanPoint<acc_t> gan_point(const GanTerm& term, acc_t x) {
  const acc_t scale = static_cast<acc_t>(term.scale);
  const acc_t sign = static_cast<acc_t>(term.sign);
  const acc_t shift = static_cast<acc_t>(term.shift);
  if constexpr (form == GanForm::kSoftplus) {
    const acc_t y = sign * x;
    const acc_t t = exp_of_minus(y < 0 ? -y : y);
    const acc_t sigmoid_of_magnitude = acc_t(1) / (acc_t(1) + t);
    const acc_t other_sigmoid = t * sigmoid_of_magnitude;  // small, without cancellation
    const acc_t softplus = (y > 0 ? y : acc_t(0)) + log1p_of_unit(t);
    const acc_t sigmoid = y < 0 ? other_sigmoid : sigmoid_of_magnitude;
    const acc_t linear = shift == 0 ? acc_t(0) : shift * x;  // 0 * infinity would be NaN
    return {scale * softplus + linear, scale * sign * sigmoid + shift,
            scale * sigmoid_of_magnitude * other_sigmoid};
  } else if constexpr (form == GanForm::kSquare) {
    const acc_t distance = x - shift;
    return {acc_t(0.5) * distance * distance, distance, acc_t(1)};
  } else if constexpr (form == GanForm::kLinear) {
    return {sign * x, sign, acc_t(0)};
  } else {
    const acc_t margin = acc_t(1) + sign * x;
    const bool slack = margin <= 0;  // false at NaN, which the value must keep
    return {slack ? acc_t(0) : margin, slack ? acc_t(0) : sign, acc_t(0)};
  }
}

// Calls function.template operator()<form>() for the form of a term.
template <typename Function>
static inline void at_gan_form(GanForm form, Function&& function) {
  switch (form) {
    case GanForm::kSoftplus:
      return function.template operator()<GanForm::kSoftplus>();
    case GanForm::kSquare:
      return function.template operator()<GanForm::kSquare>();
    case GanForm::kLinear:
      return function.template operator()<GanForm::kLinear>();
    case GanForm::kHinge:
      return function.template operator()<GanForm::kHinge>();
  }
}

// Losses are float32 for float16 and bfloat16 logits: a squared logit of 1e3 overflows float16.
template <typename scalar_t>
struct GanLossType {
  using type = float;
};
template <>
struct GanLossType<double> {
  using type = double;
};
template <typename scalar_t>
using gan_loss_type = typename GanLossType<scalar_t>::type;

// The logits of one side, both terms of one form. An absent side has count 0.
template <typename scalar_t>
struct GanLogits {
  const scalar_t* data;  // [count], contiguous
  int64_t count;         // elements
  GanTerm term;
  double minus;  // subtracted from each: the mean of the other side where the pairing asks, else 0
};

// Slopes of the terms in one buffer: the fake side's, the real side's unless in pairs, and with
// kAverages the means of both. None where every slope of a side is the same number.
GENFAST_INLINE int64_t gan_slopes(GanForm form, GanPairing pairing, int64_t fake_count,
                                  int64_t real_count) {
  if (form == GanForm::kLinear) return 0;
  if (pairing == GanPairing::kPairs) return fake_count;
  return fake_count + real_count + (pairing == GanPairing::kAverages ? 2 : 0);
}

template <typename scalar_t>
struct GanLossForward {
  GanPairing pairing;
  GanLogits<scalar_t> fake, real;
  scalar_t* slope;                // [gan_slopes], or null: unwanted
  gan_loss_type<scalar_t>* loss;  // [1]: mean over fake + mean over real
};

// grad = slope * grad_loss / count. The slopes are kept undivided, so that float16 holds them.
// The gradients of the side that comes first may lie where its slopes do.
template <typename scalar_t>
struct GanLossBackward {
  GanPairing pairing;
  const scalar_t* slope;                     // [gan_slopes], or null: kLinear
  double fake_slope, real_slope;             // of every term, kLinear only
  const gan_loss_type<scalar_t>* grad_loss;  // [1]
  scalar_t* grad_fake;                       // [fake_count]
  scalar_t* grad_real;                       // [real_count]
  int64_t fake_count, real_count;
};

// The derivative of GanLossBackward along (v_fake, v_real), in grad_loss and in the logits.
template <typename scalar_t>
struct GanLossDoubleBackward {
  GanPairing pairing;
  GanLogits<scalar_t> fake, real;
  const gan_loss_type<scalar_t>* grad_loss;  // [1]
  const scalar_t* v_fake;                    // [fake.count]
  const scalar_t* v_real;                    // [real.count]
  double v_fake_minus, v_real_minus;         // as `minus` of the logits
  scalar_t* grad_fake;                       // [fake.count]
  scalar_t* grad_real;                       // [real.count]
  gan_loss_type<scalar_t>* grad_grad_loss;   // [1]
};

}  // namespace genfast

#if !defined(__CUDACC__)
#include "kernels/cpu/simd.h"
namespace genfast::cpu {
// Work is cut into chunks of one side; the sum of a chunk is the same whoever computes it, and the
// caller adds the sums in order. Fake chunks first, then real ones.
constexpr int64_t kGanLossChunk = 8192;  // elements

inline int64_t gan_loss_chunks(int64_t count) {
  return (count + kGanLossChunk - 1) / kGanLossChunk;
}

struct GanSums {
  double first, second;
};

// Chunks [begin, end) of the logits; writes {their sum, 0} of each. Reads data and count alone.
template <SimdLevel level, typename scalar_t>
void gan_loss_sums(const GanLogits<scalar_t>& fake, const GanLogits<scalar_t>& real, GanSums* sums,
                   int64_t begin, int64_t end);
// Chunks [begin, end); writes {sum of the terms, sum of the slopes} of each, the latter with
// kAverages and a buffer for slopes, else 0. Writes neither params.loss nor the means behind the
// slopes.
template <SimdLevel level, typename scalar_t>
void gan_loss_forward(const GanLossForward<scalar_t>& params, GanSums* sums, int64_t begin,
                      int64_t end);
// Slopes [begin, end); with kLinear elements, fake ones first.
template <SimdLevel level, typename scalar_t>
void gan_loss_backward(const GanLossBackward<scalar_t>& params, int64_t begin, int64_t end);
// Chunks [begin, end); writes {sum of v * slope, sum of the gradients} of each. Does not write
// params.grad_grad_loss, and with kAverages leaves the last map of the gradients to the caller.
template <SimdLevel level, typename scalar_t>
void gan_loss_double_backward(const GanLossDoubleBackward<scalar_t>& params, GanSums* sums,
                              int64_t begin, int64_t end);
}  // namespace genfast::cpu
#endif

namespace genfast::cuda {
// Bytes of device memory that a reduction over `count` elements needs beside its tensors; 0 when
// one thread block does it at once.
int64_t gan_loss_workspace(GanPairing pairing, int64_t count);

template <typename scalar_t>
void gan_loss_forward(const GanLossForward<scalar_t>& params, void* workspace, void* stream);
template <typename scalar_t>
void gan_loss_backward(const GanLossBackward<scalar_t>& params, void* stream);
template <typename scalar_t>
void gan_loss_double_backward(const GanLossDoubleBackward<scalar_t>& params, void* workspace,
                              void* stream);
}  // namespace genfast::cuda
