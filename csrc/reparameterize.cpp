#include "kernels/reparameterize.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "csrc/checks.h"
#include "csrc/dispatch.h"
#include "csrc/large_pages.h"
#include "csrc/seed.h"

#if defined(GENFAST_WITH_CUDA)
#include "csrc/cuda_stream.h"
#endif

namespace genfast {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "reparameterize";
constexpr int64_t kGrain = 4096;  // elements of work that make another thread worthwhile

// How the divergence is counted.
struct Weights {
  double beta, free_bits;
};

void check_weight(const char* name, double value) {
  TORCH_CHECK(value >= 0 && std::isfinite(value), kOp, ": expected a finite ", name, " >= 0, got ",
              name, "=", value);
}

void check_arguments(const Tensor& mu, const Tensor& logvar, int64_t offset,
                     const Weights& weights) {
  check_floating(kOp, "mu", mu);
  check_same(kOp, "logvar", logvar, "mu", mu);
  check_offset(kOp, offset, mu.numel());
  TORCH_CHECK(mu.dim() >= 1, kOp, ": expected mu of shape [N, ...], got a scalar");
  check_weight("beta", weights.beta);
  check_weight("free_bits", weights.free_bits);
}

void check_gradients(const optional<Tensor>& grad_z, const optional<Tensor>& grad_kl,
                     const Tensor& mu) {
  if (grad_z.has_value()) check_same(kOp, "grad_z", *grad_z, "mu", mu);
  if (!grad_kl.has_value()) return;
  TORCH_CHECK(grad_kl->sizes() == mu.sizes().slice(0, 1) &&
                  grad_kl->scalar_type() == mu.scalar_type() && grad_kl->device() == mu.device(),
              kOp, ": expected grad_kl of shape [N] and of the dtype and device of mu (",
              mu.size(0), ", ", mu.scalar_type(), ", ", mu.device(),
              "), got grad_kl.shape=", grad_kl->sizes(), ", grad_kl.dtype=", grad_kl->scalar_type(),
              ", grad_kl.device=", grad_kl->device());
}

int64_t row_length(const Tensor& tensor) {
  int64_t length = 1;
  for (int64_t axis = 1; axis < tensor.dim(); ++axis) length *= tensor.size(axis);
  return length;
}

// Rows may lie apart; within a row the elements must be contiguous, else the tensor is copied.
Tensor with_contiguous_rows(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t axis = tensor.dim() - 1; axis > 0; --axis) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != expected) return tensor.contiguous();
    expected *= tensor.size(axis);
  }
  return tensor;
}

// A gradient that is one number everywhere, as that of a sum or a mean is, is not copied.
bool is_one_number(const Tensor& tensor) {
  return std::all_of(tensor.strides().begin(), tensor.strides().end(),
                     [](int64_t stride) { return stride == 0; });
}

Tensor dense_or_one_number(const optional<Tensor>& grad) {
  if (!grad.has_value()) return Tensor();
  return is_one_number(*grad) ? *grad : grad->contiguous();
}

template <typename storage_t>
RowMatrix<const storage_t> rows(const Tensor& tensor) {
  return {static_cast<const storage_t*>(tensor.const_data_ptr()), tensor.stride(0)};
}

template <typename storage_t>
storage_t* output(Tensor& tensor) {
  return static_cast<storage_t*>(tensor.mutable_data_ptr());
}

template <typename storage_t>
const storage_t* optional_input(const Tensor& tensor) {
  return tensor.defined() ? static_cast<const storage_t*>(tensor.const_data_ptr()) : nullptr;
}

template <typename storage_t>
ReparameterizeForward<storage_t> forward_params(const Tensor& mu, const Tensor& logvar, Tensor& z,
                                                Tensor& kl, const Seed& seed, int64_t offset,
                                                const Weights& weights) {
  return {rows<storage_t>(mu), rows<storage_t>(logvar), output<storage_t>(z), output<storage_t>(kl),
          mu.size(0),          row_length(mu),          seed.value,           offset,
          weights.beta,        weights.free_bits};
}

template <typename storage_t>
ReparameterizeBackward<storage_t> backward_params(const Tensor& grad_z, const Tensor& grad_kl,
                                                  const Tensor& mu, const Tensor& logvar,
                                                  Tensor& grad_mu, Tensor& grad_logvar,
                                                  const Seed& seed, int64_t offset,
                                                  const Weights& weights) {
  return {rows<storage_t>(mu),
          rows<storage_t>(logvar),
          optional_input<storage_t>(grad_z),
          grad_z.defined() && is_one_number(grad_z) ? 0 : 1,
          optional_input<storage_t>(grad_kl),
          grad_kl.defined() ? grad_kl.stride(0) : 0,
          output<storage_t>(grad_mu),
          output<storage_t>(grad_logvar),
          mu.size(0),
          row_length(mu),
          seed.value,
          offset,
          weights.beta,
          weights.free_bits};
}

Tensor empty_like_dense(const Tensor& tensor) {
  Tensor result = at::empty(tensor.sizes(), tensor.options(), at::MemoryFormat::Contiguous);
  advise_large_pages(result);
  return result;
}

int64_t rows_per_task(const Tensor& mu) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row_length(mu)));
}

std::tuple<Tensor, Tensor> reparameterize_cpu(const Tensor& mu, const Tensor& logvar,
                                              const Tensor& seed, int64_t offset, double beta,
                                              double free_bits) {
  check_arguments(mu, logvar, offset, {beta, free_bits});
  if (at::isReducedFloatingType(mu.scalar_type())) {
    auto [z, kl] =
        reparameterize_cpu(mu.to(at::kFloat), logvar.to(at::kFloat), seed, offset, beta, free_bits);
    return {z.to(mu.scalar_type()), kl.to(mu.scalar_type())};
  }
  const Seed seed_value = read_seed(kOp, seed, mu.device());
  const Tensor mu_rows = with_contiguous_rows(mu);
  const Tensor logvar_rows = with_contiguous_rows(logvar);
  Tensor z = empty_like_dense(mu);
  Tensor kl = at::empty({mu.size(0)}, mu.options());
  AT_DISPATCH_FLOATING_TYPES(mu.scalar_type(), kOp, [&] {
    const auto params = forward_params<scalar_t>(mu_rows, logvar_rows, z, kl, seed_value, offset,
                                                 {beta, free_bits});
    at::parallel_for(0, params.N, rows_per_task(mu), [&](int64_t begin, int64_t end) {
      cpu::at_simd_level(
          [&](auto level) { cpu::reparameterize_forward<level()>(params, begin, end); });
    });
  });
  return {z, kl};
}

// A missing gradient adds no term.
std::tuple<Tensor, Tensor> reparameterize_backward_cpu(const optional<Tensor>& grad_z,
                                                       const optional<Tensor>& grad_kl,
                                                       const Tensor& mu, const Tensor& logvar,
                                                       const Tensor& seed, int64_t offset,
                                                       double beta, double free_bits) {
  check_arguments(mu, logvar, offset, {beta, free_bits});
  check_gradients(grad_z, grad_kl, mu);
  if (at::isReducedFloatingType(mu.scalar_type())) {
    const auto widen = [](const optional<Tensor>& grad) -> optional<Tensor> {
      return grad.has_value() ? optional<Tensor>(grad->to(at::kFloat)) : std::nullopt;
    };
    auto [grad_mu, grad_logvar] =
        reparameterize_backward_cpu(widen(grad_z), widen(grad_kl), mu.to(at::kFloat),
                                    logvar.to(at::kFloat), seed, offset, beta, free_bits);
    return {grad_mu.to(mu.scalar_type()), grad_logvar.to(mu.scalar_type())};
  }
  const Seed seed_value = read_seed(kOp, seed, mu.device());
  const Tensor mu_rows = with_contiguous_rows(mu);
  const Tensor logvar_rows = with_contiguous_rows(logvar);
  const Tensor grad_z_dense = dense_or_one_number(grad_z);
  const Tensor grad_kl_rows = grad_kl.value_or(Tensor());
  Tensor grad_mu = empty_like_dense(mu);
  Tensor grad_logvar = empty_like_dense(mu);
  if (!grad_z.has_value() && !grad_kl.has_value()) return {grad_mu.zero_(), grad_logvar.zero_()};
  AT_DISPATCH_FLOATING_TYPES(mu.scalar_type(), kOp, [&] {
    const auto params =
        backward_params<scalar_t>(grad_z_dense, grad_kl_rows, mu_rows, logvar_rows, grad_mu,
                                  grad_logvar, seed_value, offset, {beta, free_bits});
    at::parallel_for(0, params.N, rows_per_task(mu), [&](int64_t begin, int64_t end) {
      cpu::at_simd_level(
          [&](auto level) { cpu::reparameterize_backward<level()>(params, begin, end); });
    });
  });
  return {grad_mu, grad_logvar};
}

#if defined(GENFAST_WITH_CUDA)
std::tuple<Tensor, Tensor> reparameterize_cuda(const Tensor& mu, const Tensor& logvar,
                                               const Tensor& seed, int64_t offset, double beta,
                                               double free_bits) {
  check_arguments(mu, logvar, offset, {beta, free_bits});
  const Seed seed_value = read_seed(kOp, seed, mu.device());
  const CudaLaunch launch(mu.device());
  const Tensor mu_rows = with_contiguous_rows(mu);
  const Tensor logvar_rows = with_contiguous_rows(logvar);
  Tensor z = empty_like_dense(mu);
  Tensor kl = at::empty({mu.size(0)}, mu.options());
  at_storage_type(kOp, mu.scalar_type(), [&](auto storage) {
    cuda::reparameterize_forward(
        forward_params<decltype(storage)>(mu_rows, logvar_rows, z, kl, seed_value, offset,
                                          {beta, free_bits}),
        seed_value.device_value, launch.stream());
  });
  return {z, kl};
}

std::tuple<Tensor, Tensor> reparameterize_backward_cuda(const optional<Tensor>& grad_z,
                                                        const optional<Tensor>& grad_kl,
                                                        const Tensor& mu, const Tensor& logvar,
                                                        const Tensor& seed, int64_t offset,
                                                        double beta, double free_bits) {
  check_arguments(mu, logvar, offset, {beta, free_bits});
  check_gradients(grad_z, grad_kl, mu);
  const Seed seed_value = read_seed(kOp, seed, mu.device());
  const CudaLaunch launch(mu.device());
  const Tensor mu_rows = with_contiguous_rows(mu);
  const Tensor logvar_rows = with_contiguous_rows(logvar);
  const Tensor grad_z_dense = dense_or_one_number(grad_z);
  const Tensor grad_kl_rows = grad_kl.value_or(Tensor());
  Tensor grad_mu = empty_like_dense(mu);
  Tensor grad_logvar = empty_like_dense(mu);
  at_storage_type(kOp, mu.scalar_type(), [&](auto storage) {
    cuda::reparameterize_backward(backward_params<decltype(storage)>(
                                      grad_z_dense, grad_kl_rows, mu_rows, logvar_rows, grad_mu,
                                      grad_logvar, seed_value, offset, {beta, free_bits}),
                                  seed_value.device_value, launch.stream());
  });
  return {grad_mu, grad_logvar};
}
#endif

using ForwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                             c10::SymInt, double, double);
using BackwardOp = std::tuple<Tensor, Tensor>(const optional<Tensor>&, const optional<Tensor>&,
                                              const Tensor&, const Tensor&, const Tensor&,
                                              c10::SymInt, double, double);

// In C++ because it runs once per training step on small tensors, where a Python autograd function
// would cost more than the arithmetic.
class Reparameterize : public torch::autograd::Function<Reparameterize> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& mu, const Tensor& logvar,
                                                const Tensor& seed, c10::SymInt offset, double beta,
                                                double free_bits) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<ForwardOp>("genfast::reparameterize");
    ctx->save_for_backward({mu, logvar, seed});
    ctx->saved_data["offset"] = offset;
    ctx->saved_data["beta"] = beta;
    ctx->saved_data["free_bits"] = free_bits;
    ctx->set_materialize_grads(false);
    auto [z, kl] = op.call(mu, logvar, seed, offset, beta, free_bits);
    return {z, kl};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    static const auto op = find_op<BackwardOp>("genfast::_reparameterize_backward");
    const auto saved = ctx->get_saved_variables();
    const auto given = [](const Tensor& grad) {
      return grad.defined() ? optional<Tensor>(grad) : std::nullopt;
    };
    auto [grad_mu, grad_logvar] =
        op.call(given(grads[0]), given(grads[1]), saved[0], saved[1], saved[2],
                ctx->saved_data["offset"].toSymInt(), ctx->saved_data["beta"].toDouble(),
                ctx->saved_data["free_bits"].toDouble());
    return {grad_mu, grad_logvar, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> reparameterize_autograd(const Tensor& mu, const Tensor& logvar,
                                                   const Tensor& seed, c10::SymInt offset,
                                                   double beta, double free_bits) {
  auto outputs = Reparameterize::apply(mu, logvar, seed, std::move(offset), beta, free_bits);
  return {outputs[0], outputs[1]};
}

// Without this a second derivative would silently be zero.
class ReparameterizeBackwardOnce : public torch::autograd::Function<ReparameterizeBackwardOnce> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*,
                                                const optional<Tensor>& grad_z,
                                                const optional<Tensor>& grad_kl, const Tensor& mu,
                                                const Tensor& logvar, const Tensor& seed,
                                                c10::SymInt offset, double beta, double free_bits) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<BackwardOp>("genfast::_reparameterize_backward");
    auto [grad_mu, grad_logvar] =
        op.call(grad_z, grad_kl, mu, logvar, seed, std::move(offset), beta, free_bits);
    return {grad_mu, grad_logvar};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list) {
    TORCH_CHECK(false, kOp,
                ": expected a first derivative, got a request for a second one; use "
                "genfast.ops.reparameterize_reference, which has every order");
  }
};

std::tuple<Tensor, Tensor> reparameterize_backward_autograd(const optional<Tensor>& grad_z,
                                                            const optional<Tensor>& grad_kl,
                                                            const Tensor& mu, const Tensor& logvar,
                                                            const Tensor& seed, c10::SymInt offset,
                                                            double beta, double free_bits) {
  auto outputs = ReparameterizeBackwardOnce::apply(grad_z, grad_kl, mu, logvar, seed,
                                                   std::move(offset), beta, free_bits);
  return {outputs[0], outputs[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genfast, m) {
  m.def(
      "reparameterize(Tensor mu, Tensor logvar, Tensor seed, SymInt offset, float beta=1.0,"
      " float free_bits=0.0) -> (Tensor z, Tensor kl)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_reparameterize_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar,"
      " Tensor seed, SymInt offset, float beta=1.0, float free_bits=0.0)"
      " -> (Tensor grad_mu, Tensor grad_logvar)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  m.impl("reparameterize", reparameterize_cpu);
  m.impl("_reparameterize_backward", reparameterize_backward_cpu);
}

#if defined(GENFAST_WITH_CUDA)
TORCH_LIBRARY_IMPL(genfast, CUDA, m) {
  m.impl("reparameterize", reparameterize_cuda);
  m.impl("_reparameterize_backward", reparameterize_backward_cuda);
}
#endif

TORCH_LIBRARY_IMPL(genfast, Autograd, m) {
  m.impl("reparameterize", reparameterize_autograd);
  m.impl("_reparameterize_backward", reparameterize_backward_autograd);
}

}  // namespace genfast
