// The arguments of the gan_loss ops: checked, and turned into the parameters of the kernels.
#pragma once

#include "kernels/gan_loss.h"

#include <ATen/ATen.h>

#include <optional>

#include "csrc/checks.h"

namespace genfast::gan {

constexpr const char* kOp = "gan_loss";

// Which loss. The names are those of genfast/ops/gan_loss.py.
struct Choice {
  c10::string_view kind, role;
  double label_smoothing;
};

inline GanKind read_kind(c10::string_view kind) {
  if (kind == "minimax") return GanKind::kMinimax;
  if (kind == "non_saturating") return GanKind::kNonSaturating;
  if (kind == "least_squares") return GanKind::kLeastSquares;
  if (kind == "wasserstein") return GanKind::kWasserstein;
  if (kind == "hinge") return GanKind::kHinge;
  if (kind == "relativistic") return GanKind::kRelativistic;
  if (kind == "relativistic_average") return GanKind::kRelativisticAverage;
  TORCH_CHECK(false, kOp,
              ": expected kind minimax, non_saturating, least_squares, wasserstein, hinge, "
              "relativistic or relativistic_average, got kind=",
              kind);
}

inline GanRole read_role(c10::string_view role) {
  if (role == "discriminator") return GanRole::kDiscriminator;
  if (role == "generator") return GanRole::kGenerator;
  TORCH_CHECK(false, kOp, ": expected role discriminator or generator, got role=", role);
}

inline at::Tensor as_type(const at::Tensor& tensor, at::ScalarType type) {
  return tensor.scalar_type() == type ? tensor : tensor.to(type);
}

// The checked arguments of an op: dense logits in the dtype of the arithmetic, and their terms.
struct Problem {
  at::Tensor fake, real;  // `real` is undefined when absent
  GanPairing pairing;
  GanTerm fake_term, real_term;
  at::ScalarType stored;  // dtype of the logits as given: float16 and bfloat16 differ on the CPU

  int64_t fake_count() const { return fake.numel(); }
  int64_t real_count() const { return real.defined() ? real.numel() : 0; }
  at::ScalarType dtype() const { return fake.scalar_type(); }
  at::ScalarType loss_dtype() const { return dtype() == at::kDouble ? at::kDouble : at::kFloat; }
  at::Tensor empty_loss() const { return at::empty({}, fake.options().dtype(loss_dtype())); }
  at::Tensor empty_slope() const { return at::empty({slopes()}, fake.options()); }
  int64_t slopes() const { return gan_slopes(fake_term.form, pairing, fake_count(), real_count()); }
  at::Tensor empty_grad_fake() const { return at::empty(fake.sizes(), fake.options()); }
  at::Tensor empty_grad_real() const {
    return at::empty(real.defined() ? real.sizes() : at::IntArrayRef{0}, fake.options());
  }
};

inline Problem read_problem(const at::Tensor& fake, const std::optional<at::Tensor>& real,
                            const Choice& choice) {
  const GanKind kind = read_kind(choice.kind);
  const GanRole role = read_role(choice.role);
  const GanPairing pairing = gan_pairing(kind);
  const bool discriminator = role == GanRole::kDiscriminator;
  const bool has_real = real.has_value() && real->defined();
  check_floating(kOp, "fake", fake);
  TORCH_CHECK(fake.numel() > 0, kOp,
              ": expected at least one logit, got fake.shape=", fake.sizes());
  TORCH_CHECK(has_real == (discriminator || pairing != GanPairing::kAlone), kOp,
              ": expected real logits for the discriminator, for the generator of the relativistic "
              "kinds, and only for them, got kind=",
              choice.kind, ", role=", choice.role, has_real ? " with real" : " without real");
  if (has_real) {
    check_alike(kOp, "real", *real, "fake", fake);
    TORCH_CHECK(real->numel() > 0, kOp,
                ": expected at least one logit, got real.shape=", real->sizes());
    if (pairing == GanPairing::kPairs) check_same(kOp, "real", *real, "fake", fake);
  }
  const bool smoothable = discriminator && kind != GanKind::kWasserstein && kind != GanKind::kHinge;
  TORCH_CHECK(
      choice.label_smoothing == 0 ||
          (smoothable && choice.label_smoothing > 0 && choice.label_smoothing < 1),
      kOp, ": expected label_smoothing in [0, 1), and 0 for ", choice.role, " and ", choice.kind,
      " unless they have a target for real logits, got label_smoothing=", choice.label_smoothing);
  const at::ScalarType stored = fake.scalar_type();
  const at::ScalarType computed =
      fake.is_cpu() && at::isReducedFloatingType(stored) ? at::kFloat : stored;
  return {as_type(fake, computed).contiguous(),
          has_real ? as_type(*real, computed).contiguous() : at::Tensor(),
          pairing,
          gan_term(kind, role, false, choice.label_smoothing),
          gan_term(kind, role, true, choice.label_smoothing),
          stored};
}

inline void check_grad_loss(const at::Tensor& grad_loss, const Problem& problem) {
  TORCH_CHECK(grad_loss.numel() == 1 && grad_loss.scalar_type() == problem.loss_dtype() &&
                  grad_loss.device() == problem.fake.device(),
              kOp, ": expected grad_loss with one element, ", problem.loss_dtype(), " on ",
              problem.fake.device(), ", got grad_loss.shape=", grad_loss.sizes(),
              ", grad_loss.dtype=", grad_loss.scalar_type(),
              ", grad_loss.device=", grad_loss.device());
}

template <typename storage_t>
const storage_t* input(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const storage_t*>(tensor.const_data_ptr()) : nullptr;
}

template <typename storage_t>
storage_t* output(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<storage_t*>(tensor.mutable_data_ptr()) : nullptr;
}

template <typename storage_t>
GanLogits<storage_t> fake_logits(const Problem& problem) {
  return {input<storage_t>(problem.fake), problem.fake_count(), problem.fake_term, 0};
}

template <typename storage_t>
GanLogits<storage_t> real_logits(const Problem& problem) {
  return {input<storage_t>(problem.real), problem.real_count(), problem.real_term, 0};
}

template <typename storage_t>
GanLossForward<storage_t> forward_params(const Problem& problem, const at::Tensor& slope,
                                         const at::Tensor& loss) {
  return {problem.pairing, fake_logits<storage_t>(problem), real_logits<storage_t>(problem),
          output<storage_t>(slope), output<gan_loss_type<storage_t>>(loss)};
}

template <typename storage_t>
GanLossBackward<storage_t> backward_params(const Problem& problem, const at::Tensor& grad_loss,
                                           const at::Tensor& slope, const at::Tensor& grad_fake,
                                           const at::Tensor& grad_real) {
  return {problem.pairing,
          input<storage_t>(slope),
          problem.fake_term.sign,
          problem.real_term.sign,
          input<gan_loss_type<storage_t>>(grad_loss),
          output<storage_t>(grad_fake),
          output<storage_t>(grad_real),
          problem.fake_count(),
          problem.real_count()};
}

struct DoubleBackwardTensors {
  at::Tensor v_fake, v_real, grad_loss, grad_grad_loss, grad_fake, grad_real;
};

template <typename storage_t>
GanLossDoubleBackward<storage_t> double_backward_params(const Problem& problem,
                                                        const DoubleBackwardTensors& tensors) {
  return {problem.pairing,
          fake_logits<storage_t>(problem),
          real_logits<storage_t>(problem),
          input<gan_loss_type<storage_t>>(tensors.grad_loss),
          input<storage_t>(tensors.v_fake),
          input<storage_t>(tensors.v_real),
          0,
          0,
          output<storage_t>(tensors.grad_fake),
          output<storage_t>(tensors.grad_real),
          output<gan_loss_type<storage_t>>(tensors.grad_grad_loss)};
}

}  // namespace genfast::gan
