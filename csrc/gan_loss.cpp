#include "kernels/gan_loss.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "csrc/checks.h"

#if defined(GENFAST_WITH_CUDA)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "csrc/cuda_stream.h"
#endif

namespace genfast {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "gan_loss";
constexpr int64_t kGrainChunks = 4;      // chunks that make another thread worthwhile
constexpr int64_t kGrainElements = 65536;  // the same for the backward's one multiplication

GanKind read_kind(c10::string_view kind) {
  if (kind == "minimax") return GanKind::kMinimax;
  if (kind == "non_saturating") return GanKind::kNonSaturating;
  if (kind == "least_squares") return GanKind::kLeastSquares;
  if (kind == "wasserstein") return GanKind::kWasserstein;
  if (kind == "hinge") return GanKind::kHinge;
  TORCH_CHECK(false, kOp,
              ": expected kind minimax, non_saturating, least_squares, wasserstein or hinge, got "
              "kind=",
              kind);
}

GanRole read_role(c10::string_view role) {
  if (role == "discriminator") return GanRole::kDiscriminator;
  if (role == "generator") return GanRole::kGenerator;
  TORCH_CHECK(false, kOp, ": expected role discriminator or generator, got role=", role);
}

// The arguments of every op here, checked, with dense logits. An absent `real` is undefined.
struct Problem {
  Tensor fake, real;
  GanTerm fake_term, real_term;

  int64_t fake_count() const { return fake.numel(); }
  int64_t real_count() const { return real.defined() ? real.numel() : 0; }
  at::ScalarType dtype() const { return fake.scalar_type(); }
  at::ScalarType loss_dtype() const { return dtype() == at::kDouble ? at::kDouble : at::kFloat; }
  Tensor empty_loss() const { return at::empty({}, fake.options().dtype(loss_dtype())); }
  Tensor empty_slope() const {
    return at::empty({fake_count() + real_count()}, fake.options());
  }
  Tensor empty_grad_fake() const { return at::empty(fake.sizes(), fake.options()); }
  Tensor empty_grad_real() const {
    return real.defined() ? at::empty(real.sizes(), real.options())
                          : at::empty({0}, fake.options());
  }
};

Problem read_problem(const Tensor& fake, const optional<Tensor>& real, c10::string_view kind_name,
                     c10::string_view role_name, double label_smoothing) {
  const GanKind kind = read_kind(kind_name);
  const GanRole role = read_role(role_name);
  const bool has_real = real.has_value() && real->defined();
  check_floating(kOp, "fake", fake);
  TORCH_CHECK(fake.numel() > 0, kOp, ": expected at least one logit, got fake.shape=",
              fake.sizes());
  TORCH_CHECK(has_real == (role == GanRole::kDiscriminator), kOp,
              ": expected real for the discriminator and only for it, got role=", role_name,
              has_real ? " with real" : " without real");
  if (has_real) {
    TORCH_CHECK(real->scalar_type() == fake.scalar_type() && real->device() == fake.device(), kOp,
                ": expected real of the dtype and device of fake (", fake.scalar_type(), ", ",
                fake.device(), "), got real.dtype=", real->scalar_type(),
                ", real.device=", real->device());
    TORCH_CHECK(real->numel() > 0, kOp, ": expected at least one logit, got real.shape=",
                real->sizes());
  }
  const bool has_target = kind == GanKind::kMinimax || kind == GanKind::kNonSaturating ||
                          kind == GanKind::kLeastSquares;
  TORCH_CHECK(label_smoothing >= 0 && label_smoothing < 1 &&
                  (label_smoothing == 0 || (has_target && has_real)),
              kOp,
              ": expected label_smoothing in [0, 1), and 0 without real or for wasserstein and "
              "hinge, got label_smoothing=",
              label_smoothing);
  return {fake.contiguous(), has_real ? real->contiguous() : Tensor(),
          gan_term(kind, role, false, label_smoothing), gan_term(kind, role, true, label_smoothing)};
}

void check_grad_loss(const Tensor& grad_loss, const Problem& problem) {
  TORCH_CHECK(grad_loss.numel() == 1 && grad_loss.scalar_type() == problem.loss_dtype() &&
                  grad_loss.device() == problem.fake.device(),
              kOp, ": expected grad_loss with one element, ", problem.loss_dtype(), " on ",
              problem.fake.device(), ", got grad_loss.shape=", grad_loss.sizes(),
              ", grad_loss.dtype=", grad_loss.scalar_type(),
              ", grad_loss.device=", grad_loss.device());
}

void check_slope(const Tensor& slope, const Problem& problem) {
  TORCH_CHECK(slope.dim() == 1 && slope.numel() == problem.fake_count() + problem.real_count() &&
                  slope.scalar_type() == problem.dtype() &&
                  slope.device() == problem.fake.device() && slope.is_contiguous(),
              kOp, ": expected slope as the forward made it, got slope.shape=", slope.sizes(),
              ", slope.dtype=", slope.scalar_type(), ", slope.device=", slope.device());
}

void check_directions(const Tensor& v_fake, const Tensor& v_real, const Problem& problem) {
  check_same(kOp, "v_fake", v_fake, "fake", problem.fake);
  if (problem.real.defined()) check_same(kOp, "v_real", v_real, "real", problem.real);
}

template <typename storage_t>
const storage_t* input(const Tensor& tensor) {
  return tensor.defined() ? static_cast<const storage_t*>(tensor.const_data_ptr()) : nullptr;
}

template <typename storage_t>
storage_t* output(Tensor& tensor) {
  return tensor.defined() ? static_cast<storage_t*>(tensor.mutable_data_ptr()) : nullptr;
}

template <typename storage_t>
GanLossForward<storage_t> forward_params(const Problem& problem, Tensor& slope, Tensor& loss) {
  return {{input<storage_t>(problem.fake), problem.fake_count(), problem.fake_term},
          {input<storage_t>(problem.real), problem.real_count(), problem.real_term},
          output<storage_t>(slope),
          output<gan_loss_type<storage_t>>(loss)};
}

template <typename storage_t>
GanLossBackward<storage_t> backward_params(const Problem& problem, const Tensor& grad_loss,
                                           const Tensor& slope, Tensor& grad_fake,
                                           Tensor& grad_real) {
  return {input<storage_t>(slope),      input<gan_loss_type<storage_t>>(grad_loss),
          output<storage_t>(grad_fake), output<storage_t>(grad_real),
          problem.fake_count(),         problem.real_count()};
}

template <typename storage_t>
GanLossDoubleBackward<storage_t> double_backward_params(const Problem& problem,
                                                        const Tensor& grad_loss,
                                                        const Tensor& v_fake, const Tensor& v_real,
                                                        Tensor& grad_grad_loss, Tensor& grad_fake,
                                                        Tensor& grad_real) {
  return {{input<storage_t>(problem.fake), problem.fake_count(), problem.fake_term},
          {input<storage_t>(problem.real), problem.real_count(), problem.real_term},
          input<gan_loss_type<storage_t>>(grad_loss),
          input<storage_t>(v_fake),
          input<storage_t>(v_real),
          output<storage_t>(grad_fake),
          output<storage_t>(grad_real),
          output<gan_loss_type<storage_t>>(grad_grad_loss)};
}

template <typename Function>
void for_chunks(int64_t chunks, Function&& function) {
  at::parallel_for(0, chunks, kGrainChunks, [&](int64_t begin, int64_t end) {
    cpu::at_simd_level([&](auto level) { function(level, begin, end); });
  });
}

using ChunkSums = c10::SmallVector<double, 16>;

// Mean over the fake logits plus mean over the real ones.
double sum_of_means(const ChunkSums& sums, const Problem& problem) {
  const auto fake_end = sums.begin() + cpu::gan_loss_chunks(problem.fake_count());
  const double fake = std::accumulate(sums.begin(), fake_end, 0.0);
  const double real = std::accumulate(fake_end, sums.end(), 0.0);
  const double fake_mean = fake / static_cast<double>(problem.fake_count());
  return problem.real.defined() ? fake_mean + real / static_cast<double>(problem.real_count())
                                : fake_mean;
}

ChunkSums make_chunk_sums(const Problem& problem) {
  return ChunkSums(cpu::gan_loss_chunks(problem.fake_count()) +
                   cpu::gan_loss_chunks(problem.real_count()));
}

// Half types are computed in float32 on the CPU.
optional<Tensor> widen(const optional<Tensor>& tensor) {
  return tensor.has_value() && tensor->defined() ? optional<Tensor>(tensor->to(at::kFloat))
                                                 : std::nullopt;
}

Tensor forward_cpu(const Problem& problem, Tensor slope) {
  Tensor loss = problem.empty_loss();
  ChunkSums sums = make_chunk_sums(problem);
  AT_DISPATCH_FLOATING_TYPES(problem.dtype(), kOp, [&] {
    const auto params = forward_params<scalar_t>(problem, slope, loss);
    for_chunks(std::ssize(sums), [&](auto level, int64_t begin, int64_t end) {
      cpu::gan_loss_forward<level()>(params, sums.data(), begin, end);
    });
    *params.loss = static_cast<scalar_t>(sum_of_means(sums, problem));
  });
  return loss;
}

Tensor gan_loss_cpu(const Tensor& fake, const optional<Tensor>& real, c10::string_view kind,
                    c10::string_view role, double label_smoothing) {
  if (at::isReducedFloatingType(fake.scalar_type())) {
    return gan_loss_cpu(fake.to(at::kFloat), widen(real), kind, role, label_smoothing);
  }
  return forward_cpu(read_problem(fake, real, kind, role, label_smoothing), Tensor());
}

std::tuple<Tensor, Tensor> gan_loss_with_slope_cpu(const Tensor& fake, const optional<Tensor>& real,
                                                   c10::string_view kind, c10::string_view role,
                                                   double label_smoothing) {
  if (at::isReducedFloatingType(fake.scalar_type())) {
    auto [loss, slope] = gan_loss_with_slope_cpu(fake.to(at::kFloat), widen(real), kind, role,
                                                 label_smoothing);
    return {loss, slope.to(fake.scalar_type())};
  }
  const Problem problem = read_problem(fake, real, kind, role, label_smoothing);
  Tensor slope = problem.empty_slope();
  return {forward_cpu(problem, slope), slope};
}

std::tuple<Tensor, Tensor> gan_loss_backward_cpu(const Tensor& grad_loss, const Tensor& slope,
                                                 const Tensor& fake, const optional<Tensor>& real,
                                                 c10::string_view kind, c10::string_view role,
                                                 double label_smoothing) {
  if (at::isReducedFloatingType(fake.scalar_type())) {
    auto [grad_fake, grad_real] =
        gan_loss_backward_cpu(grad_loss, slope.to(at::kFloat), fake.to(at::kFloat), widen(real),
                              kind, role, label_smoothing);
    return {grad_fake.to(fake.scalar_type()), grad_real.to(fake.scalar_type())};
  }
  const Problem problem = read_problem(fake, real, kind, role, label_smoothing);
  check_grad_loss(grad_loss, problem);
  check_slope(slope, problem);
  Tensor grad_fake = problem.empty_grad_fake();
  Tensor grad_real = problem.empty_grad_real();
  AT_DISPATCH_FLOATING_TYPES(problem.dtype(), kOp, [&] {
    const auto params = backward_params<scalar_t>(problem, grad_loss, slope, grad_fake, grad_real);
    at::parallel_for(0, slope.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
      cpu::at_simd_level([&](auto level) { cpu::gan_loss_backward<level()>(params, begin, end); });
    });
  });
  return {grad_fake, grad_real};
}

std::tuple<Tensor, Tensor, Tensor> gan_loss_double_backward_cpu(
    const Tensor& v_fake, const Tensor& v_real, const Tensor& grad_loss, const Tensor& fake,
    const optional<Tensor>& real, c10::string_view kind, c10::string_view role,
    double label_smoothing) {
  if (at::isReducedFloatingType(fake.scalar_type())) {
    auto [grad_grad_loss, grad_fake, grad_real] = gan_loss_double_backward_cpu(
        v_fake.to(at::kFloat), v_real.to(at::kFloat), grad_loss, fake.to(at::kFloat), widen(real),
        kind, role, label_smoothing);
    return {grad_grad_loss, grad_fake.to(fake.scalar_type()), grad_real.to(fake.scalar_type())};
  }
  const Problem problem = read_problem(fake, real, kind, role, label_smoothing);
  check_grad_loss(grad_loss, problem);
  check_directions(v_fake, v_real, problem);
  const Tensor v_fake_dense = v_fake.contiguous();
  const Tensor v_real_dense = v_real.contiguous();
  Tensor grad_grad_loss = problem.empty_loss();
  Tensor grad_fake = problem.empty_grad_fake();
  Tensor grad_real = problem.empty_grad_real();
  ChunkSums sums = make_chunk_sums(problem);
  AT_DISPATCH_FLOATING_TYPES(problem.dtype(), kOp, [&] {
    const auto params =
        double_backward_params<scalar_t>(problem, grad_loss, v_fake_dense, v_real_dense,
                                         grad_grad_loss, grad_fake, grad_real);
    for_chunks(std::ssize(sums), [&](auto level, int64_t begin, int64_t end) {
      cpu::gan_loss_double_backward<level()>(params, sums.data(), begin, end);
    });
    *params.grad_grad_loss = static_cast<scalar_t>(sum_of_means(sums, problem));
  });
  return {grad_grad_loss, grad_fake, grad_real};
}

#if defined(GENFAST_WITH_CUDA)
// Calls function(a value of the CUDA storage type of `type`).
template <typename Function>
void dispatch_storage(at::ScalarType type, Function&& function) {
  switch (type) {
    case at::kFloat:
      return function(float{});
    case at::kDouble:
      return function(double{});
    case at::kHalf:
      return function(__half{});
    case at::kBFloat16:
      return function(__nv_bfloat16{});
    default:
      TORCH_CHECK(false, kOp, ": expected float16, bfloat16, float32 or float64, got dtype=", type);
  }
}

Tensor workspace_for(const Problem& problem) {
  const int64_t bytes = cuda::gan_loss_workspace(problem.fake_count() + problem.real_count());
  return bytes == 0 ? Tensor() : at::empty({bytes}, problem.fake.options().dtype(at::kByte));
}

Tensor forward_cuda(const Problem& problem, Tensor slope, const CudaLaunch& launch) {
  Tensor loss = problem.empty_loss();
  Tensor workspace = workspace_for(problem);
  dispatch_storage(problem.dtype(), [&](auto storage) {
    cuda::gan_loss_forward(forward_params<decltype(storage)>(problem, slope, loss),
                           output<void>(workspace), launch.stream());
  });
  return loss;
}

Tensor gan_loss_cuda(const Tensor& fake, const optional<Tensor>& real, c10::string_view kind,
                     c10::string_view role, double label_smoothing) {
  const CudaLaunch launch(fake.device());
  return forward_cuda(read_problem(fake, real, kind, role, label_smoothing), Tensor(), launch);
}

std::tuple<Tensor, Tensor> gan_loss_with_slope_cuda(const Tensor& fake,
                                                    const optional<Tensor>& real,
                                                    c10::string_view kind, c10::string_view role,
                                                    double label_smoothing) {
  const CudaLaunch launch(fake.device());
  const Problem problem = read_problem(fake, real, kind, role, label_smoothing);
  Tensor slope = problem.empty_slope();
  return {forward_cuda(problem, slope, launch), slope};
}

std::tuple<Tensor, Tensor> gan_loss_backward_cuda(const Tensor& grad_loss, const Tensor& slope,
                                                  const Tensor& fake, const optional<Tensor>& real,
                                                  c10::string_view kind, c10::string_view role,
                                                  double label_smoothing) {
  const CudaLaunch launch(fake.device());
  const Problem problem = read_problem(fake, real, kind, role, label_smoothing);
  check_grad_loss(grad_loss, problem);
  check_slope(slope, problem);
  Tensor grad_fake = problem.empty_grad_fake();
  Tensor grad_real = problem.empty_grad_real();
  dispatch_storage(problem.dtype(), [&](auto storage) {
    cuda::gan_loss_backward(
        backward_params<decltype(storage)>(problem, grad_loss, slope, grad_fake, grad_real),
        launch.stream());
  });
  return {grad_fake, grad_real};
}

std::tuple<Tensor, Tensor, Tensor> gan_loss_double_backward_cuda(
    const Tensor& v_fake, const Tensor& v_real, const Tensor& grad_loss, const Tensor& fake,
    const optional<Tensor>& real, c10::string_view kind, c10::string_view role,
    double label_smoothing) {
  const CudaLaunch launch(fake.device());
  const Problem problem = read_problem(fake, real, kind, role, label_smoothing);
  check_grad_loss(grad_loss, problem);
  check_directions(v_fake, v_real, problem);
  const Tensor v_fake_dense = v_fake.contiguous();
  const Tensor v_real_dense = v_real.contiguous();
  Tensor grad_grad_loss = problem.empty_loss();
  Tensor grad_fake = problem.empty_grad_fake();
  Tensor grad_real = problem.empty_grad_real();
  Tensor workspace = workspace_for(problem);
  dispatch_storage(problem.dtype(), [&](auto storage) {
    cuda::gan_loss_double_backward(
        double_backward_params<decltype(storage)>(problem, grad_loss, v_fake_dense, v_real_dense,
                                                  grad_grad_loss, grad_fake, grad_real),
        output<void>(workspace), launch.stream());
  });
  return {grad_grad_loss, grad_fake, grad_real};
}
#endif

using ForwardOp = Tensor(const Tensor&, const optional<Tensor>&, c10::string_view,
                         c10::string_view, double);
using WithSlopeOp = std::tuple<Tensor, Tensor>(const Tensor&, const optional<Tensor>&,
                                               c10::string_view, c10::string_view, double);
using BackwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                              const optional<Tensor>&, c10::string_view,
                                              c10::string_view, double);
using DoubleBackwardOp = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&,
    c10::string_view, c10::string_view, double);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

const auto& backward_op() {
  static const auto op = find_op<BackwardOp>("genfast::_gan_loss_backward");
  return op;
}

// What both autograd functions keep beside tensors.
struct Choice {
  std::string kind, role;
  double label_smoothing;

  void save(torch::autograd::AutogradContext* ctx) const {
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["role"] = role;
    ctx->saved_data["label_smoothing"] = label_smoothing;
  }
  static Choice load(torch::autograd::AutogradContext* ctx) {
    return {ctx->saved_data["kind"].toStringRef(), ctx->saved_data["role"].toStringRef(),
            ctx->saved_data["label_smoothing"].toDouble()};
  }
};

optional<Tensor> if_defined(const Tensor& tensor) {
  return tensor.defined() ? optional<Tensor>(tensor) : std::nullopt;
}

Tensor or_undefined(const optional<Tensor>& tensor) {
  return tensor.has_value() ? *tensor : Tensor();
}

// In C++ because it runs twice per training step on a few logits, where a Python autograd function
// would cost more than the arithmetic.
class GanLoss : public torch::autograd::Function<GanLoss> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& fake,
                        const optional<Tensor>& real, const Choice& choice) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<WithSlopeOp>("genfast::_gan_loss_with_slope");
    auto [loss, slope] = op.call(fake, real, choice.kind, choice.role, choice.label_smoothing);
    ctx->save_for_backward({fake, or_undefined(real), slope});
    choice.save(ctx);
    ctx->set_materialize_grads(false);
    return loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor()};
    const auto saved = ctx->get_saved_variables();
    const Tensor& real = saved[1];
    const Choice choice = Choice::load(ctx);
    auto [grad_fake, grad_real] = backward_op().call(grads[0], saved[2], saved[0], if_defined(real),
                                                     choice.kind, choice.role,
                                                     choice.label_smoothing);
    return {grad_fake, real.defined() ? grad_real : Tensor(), Tensor()};
  }
};

// The backward as a function of grad_loss and the logits: grad = slope(logit) * grad_loss / count.
class GanLossBackwardFunction : public torch::autograd::Function<GanLossBackwardFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& grad_loss, const Tensor& slope,
                                                const Tensor& fake, const optional<Tensor>& real,
                                                const Choice& choice) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({grad_loss, fake, or_undefined(real)});
    choice.save(ctx);
    auto [grad_fake, grad_real] = backward_op().call(grad_loss, slope, fake, real, choice.kind,
                                                     choice.role, choice.label_smoothing);
    return {grad_fake, grad_real};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list v) {
    static const auto op = find_op<DoubleBackwardOp>("genfast::_gan_loss_double_backward");
    const auto saved = ctx->get_saved_variables();
    const Tensor& real = saved[2];
    const Choice choice = Choice::load(ctx);
    auto [grad_grad_loss, grad_fake, grad_real] =
        op.call(v[0], v[1], saved[0], saved[1], if_defined(real), choice.kind, choice.role,
                choice.label_smoothing);
    return {grad_grad_loss, Tensor(), grad_fake, real.defined() ? grad_real : Tensor(), Tensor()};
  }
};

// Without this a third derivative would silently be zero.
class GanLossDoubleBackwardOnce : public torch::autograd::Function<GanLossDoubleBackwardOnce> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*,
                                                const Tensor& v_fake, const Tensor& v_real,
                                                const Tensor& grad_loss, const Tensor& fake,
                                                const optional<Tensor>& real,
                                                const Choice& choice) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<DoubleBackwardOp>("genfast::_gan_loss_double_backward");
    auto [grad_grad_loss, grad_fake, grad_real] = op.call(
        v_fake, v_real, grad_loss, fake, real, choice.kind, choice.role, choice.label_smoothing);
    return {grad_grad_loss, grad_fake, grad_real};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list) {
    TORCH_CHECK(false, kOp,
                ": expected a first or second derivative, got a request for a third one; use "
                "genfast.ops.gan_loss_reference, which has every order");
  }
};
