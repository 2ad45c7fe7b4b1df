#include "csrc/gan_loss.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "csrc/dispatch.h"
#include "csrc/saved_tensors.h"

#if defined(GENFAST_WITH_CUDA)
#include "csrc/cuda_stream.h"
#endif

namespace genfast::gan {
namespace {

using at::Tensor;
using cpu::GanSums;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrainChunks = 4;          // chunks of work that make another thread worthwhile
constexpr int64_t kGrainElements = 65536;    // the same for the backward's one multiplication
constexpr int64_t kInPlaceElements = 16384;  // slopes that become gradients where they lie

// Runs the CPU kernels. `Cuda` below has the same functions.
struct Cpu {
  // Runs function(level, sums, begin, end) on ranges of chunks; returns the means over the fake and
  // over the real logits of what it summed. In pairs there is no real side.
  struct Means {
    GanSums fake, real;
  };
  template <typename Function>
  static Means means(const Problem& problem, Function&& function) {
    const bool pairs = problem.pairing == GanPairing::kPairs;
    const int64_t fake_chunks = cpu::gan_loss_chunks(problem.fake_count());
    const int64_t chunks = fake_chunks + (pairs ? 0 : cpu::gan_loss_chunks(problem.real_count()));
    c10::SmallVector<GanSums, 8> sums(chunks);
    at::parallel_for(0, chunks, kGrainChunks, [&](int64_t begin, int64_t end) {
      cpu::at_simd_level([&](auto level) { function(level, sums.data(), begin, end); });
    });
    const auto mean = [&](int64_t begin, int64_t end, int64_t count) {
      GanSums total = {0, 0};
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        total = {total.first + sums[chunk].first, total.second + sums[chunk].second};
      }
      if (begin == end) return total;
      const double divisor = static_cast<double>(count);
      return GanSums{total.first / divisor, total.second / divisor};
    };
    return {mean(0, fake_chunks, problem.fake_count()),
            mean(fake_chunks, chunks, problem.real_count())};
  }

  // Where the pairing asks for it: the mean of each side as what is subtracted from the other.
  template <typename scalar_t>
  static void subtract_averages(const Problem& problem, const scalar_t* fake, const scalar_t* real,
                                double& fake_minus, double& real_minus) {
    if (problem.pairing != GanPairing::kAverages) return;
    const GanLogits<scalar_t> sides[] = {{fake, problem.fake_count(), {}, 0},
                                         {real, problem.real_count(), {}, 0}};
    const Means averages =
        means(problem, [&](auto level, GanSums* sums, int64_t begin, int64_t end) {
          cpu::gan_loss_sums<level()>(sides[0], sides[1], sums, begin, end);
        });
    fake_minus = averages.real.first;
    real_minus = averages.fake.first;
  }

  static void forward(const Problem& problem, const Tensor& slope, const Tensor& loss) {
    AT_DISPATCH_FLOATING_TYPES(problem.dtype(), kOp, [&] {
      auto params = forward_params<scalar_t>(problem, slope, loss);
      subtract_averages(problem, params.fake.data, params.real.data, params.fake.minus,
                        params.real.minus);
      const Means terms =
          means(problem, [&](auto level, GanSums* sums, int64_t begin, int64_t end) {
            cpu::gan_loss_forward<level()>(params, sums, begin, end);
          });
      *params.loss = static_cast<scalar_t>(terms.fake.first + terms.real.first);
      if (problem.pairing == GanPairing::kAverages && params.slope != nullptr) {
        scalar_t* mean_slopes = params.slope + params.fake.count + params.real.count;
        mean_slopes[0] = static_cast<scalar_t>(terms.fake.second);
        mean_slopes[1] = static_cast<scalar_t>(terms.real.second);
      }
    });
  }

  static void backward(const Problem& problem, const Tensor& grad_loss, const Tensor& slope,
                       const Tensor& grad_fake, const Tensor& grad_real) {
    AT_DISPATCH_FLOATING_TYPES(problem.dtype(), kOp, [&] {
      const auto params =
          backward_params<scalar_t>(problem, grad_loss, slope, grad_fake, grad_real);
      const int64_t count =
          params.slope ? slope.numel() : problem.fake_count() + problem.real_count();
      at::parallel_for(0, count, kGrainElements, [&](int64_t begin, int64_t end) {
        cpu::at_simd_level(
            [&](auto level) { cpu::gan_loss_backward<level()>(params, begin, end); });
      });
    });
  }

  static void double_backward(const Problem& problem, const DoubleBackwardTensors& tensors) {
    AT_DISPATCH_FLOATING_TYPES(problem.dtype(), kOp, [&] {
      auto params = double_backward_params<scalar_t>(problem, tensors);
      subtract_averages(problem, params.fake.data, params.real.data, params.fake.minus,
                        params.real.minus);
      subtract_averages(problem, params.v_fake, params.v_real, params.v_fake_minus,
                        params.v_real_minus);
      const Means sums = means(problem, [&](auto level, GanSums* sums, int64_t begin, int64_t end) {
        cpu::gan_loss_double_backward<level()>(params, sums, begin, end);
      });
      *params.grad_grad_loss = static_cast<scalar_t>(sums.fake.first + sums.real.first);
      if (problem.pairing != GanPairing::kAverages) return;
      const double fakes_per_real = static_cast<double>(params.fake.count) / params.real.count;
      tensors.grad_fake.sub_(sums.real.second / fakes_per_real);
      tensors.grad_real.sub_(sums.fake.second * fakes_per_real);
    });
  }
};

#if defined(GENFAST_WITH_CUDA)
struct Cuda {
  // Calls function(a value of the CUDA storage type, workspace, stream).
  template <typename Function>
  static void launch(const Problem& problem, bool reduces, Function&& function) {
    const CudaLaunch launch(problem.fake.device());
    const int64_t count = problem.fake_count() + problem.real_count();
    const int64_t bytes = reduces ? cuda::gan_loss_workspace(problem.pairing, count) : 0;
    Tensor buffer;
    if (bytes > 0) buffer = at::empty({bytes}, problem.fake.options().dtype(at::kByte));
    void* workspace = output<void>(buffer);
    at_storage_type(kOp, problem.dtype(),
                    [&](auto storage) { function(storage, workspace, launch.stream()); });
  }

  static void forward(const Problem& problem, const Tensor& slope, const Tensor& loss) {
    launch(problem, true, [&](auto storage, void* workspace, void* stream) {
      cuda::gan_loss_forward(forward_params<decltype(storage)>(problem, slope, loss), workspace,
                             stream);
    });
  }

  static void backward(const Problem& problem, const Tensor& grad_loss, const Tensor& slope,
                       const Tensor& grad_fake, const Tensor& grad_real) {
    launch(problem, false, [&](auto storage, void*, void* stream) {
      cuda::gan_loss_backward(
          backward_params<decltype(storage)>(problem, grad_loss, slope, grad_fake, grad_real),
          stream);
    });
  }

  static void double_backward(const Problem& problem, const DoubleBackwardTensors& tensors) {
    launch(problem, true, [&](auto storage, void* workspace, void* stream) {
      cuda::gan_loss_double_backward(double_backward_params<decltype(storage)>(problem, tensors),
                                     workspace, stream);
    });
  }
};
#endif

template <typename Device>
Tensor gan_loss(const Tensor& fake, const optional<Tensor>& real, c10::string_view kind,
                c10::string_view role, double label_smoothing) {
  const Problem problem = read_problem(fake, real, {kind, role, label_smoothing});
  const Tensor loss = problem.empty_loss();
  Device::forward(problem, Tensor(), loss);
  return loss;
}

template <typename Device>
std::tuple<Tensor, Tensor> with_slope(const Tensor& fake, const optional<Tensor>& real,
                                      c10::string_view kind, c10::string_view role,
                                      double label_smoothing) {
  const Problem problem = read_problem(fake, real, {kind, role, label_smoothing});
  const Tensor loss = problem.empty_loss();
  const Tensor slope = problem.empty_slope();
  Device::forward(problem, slope, loss);
  return {loss, as_type(slope, problem.stored)};
}

template <typename Device>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_loss, const Tensor& slope,
                                    const Tensor& fake, const optional<Tensor>& real,
                                    c10::string_view kind, c10::string_view role,
                                    double label_smoothing) {
  const Problem problem = read_problem(fake, real, {kind, role, label_smoothing});
  check_grad_loss(grad_loss, problem);
  TORCH_CHECK(slope.numel() == problem.slopes() && slope.scalar_type() == problem.stored &&
                  slope.device() == fake.device() && slope.is_contiguous(),
              kOp, ": expected slope as the forward made it, got slope.shape=", slope.sizes(),
              ", slope.dtype=", slope.scalar_type(), ", slope.device=", slope.device());
  const Tensor grad_fake = problem.empty_grad_fake();
  const Tensor grad_real = problem.empty_grad_real();
  Device::backward(problem, grad_loss, as_type(slope, problem.dtype()), grad_fake, grad_real);
  return {as_type(grad_fake, problem.stored), as_type(grad_real, problem.stored)};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> double_backward(const Tensor& v_fake, const Tensor& v_real,
                                                   const Tensor& grad_loss, const Tensor& fake,
                                                   const optional<Tensor>& real,
                                                   c10::string_view kind, c10::string_view role,
                                                   double label_smoothing) {
  const Problem problem = read_problem(fake, real, {kind, role, label_smoothing});
  check_grad_loss(grad_loss, problem);
  check_same(kOp, "v_fake", v_fake, "fake", fake);
  if (problem.real.defined()) check_same(kOp, "v_real", v_real, "real", *real);
  const DoubleBackwardTensors tensors = {as_type(v_fake, problem.dtype()).contiguous(),
                                         as_type(v_real, problem.dtype()).contiguous(),
                                         grad_loss,
                                         problem.empty_loss(),
                                         problem.empty_grad_fake(),
                                         problem.empty_grad_real()};
  Device::double_backward(problem, tensors);
  return {tensors.grad_grad_loss, as_type(tensors.grad_fake, problem.stored),
          as_type(tensors.grad_real, problem.stored)};
}

using ForwardOp = Tensor(const Tensor&, const optional<Tensor>&, c10::string_view, c10::string_view,
                         double);
using WithSlopeOp = std::tuple<Tensor, Tensor>(const Tensor&, const optional<Tensor>&,
                                               c10::string_view, c10::string_view, double);
using BackwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                              const optional<Tensor>&, c10::string_view,
                                              c10::string_view, double);
using DoubleBackwardOp = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                            const Tensor&, const Tensor&,
                                                            const optional<Tensor>&,
                                                            c10::string_view, c10::string_view,
                                                            double);

const c10::TypedOperatorHandle<BackwardOp>& backward_op() {
  static const auto op = find_op<BackwardOp>("genfast::_gan_loss_backward");
  return op;
}

const c10::TypedOperatorHandle<DoubleBackwardOp>& double_backward_op() {
  static const auto op = find_op<DoubleBackwardOp>("genfast::_gan_loss_double_backward");
  return op;
}

// A graph node outlives the call that made it, so it keeps the names as its own strings.
void save_choice(AutogradContext* ctx, const Choice& choice) {
  ctx->saved_data["kind"] = std::string(choice.kind);
  ctx->saved_data["role"] = std::string(choice.role);
  ctx->saved_data["label_smoothing"] = choice.label_smoothing;
}

Choice saved_choice(AutogradContext* ctx) {
  return {ctx->saved_data["kind"].toStringView(), ctx->saved_data["role"].toStringView(),
          ctx->saved_data["label_smoothing"].toDouble()};
}

optional<Tensor> if_defined(const Tensor& tensor) {
  return tensor.defined() ? optional<Tensor>(tensor) : std::nullopt;
}

// In C++ because it runs twice per training step on a few logits, where a Python autograd function
// would cost more than the arithmetic.
class GanLoss : public torch::autograd::Function<GanLoss> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& fake, const optional<Tensor>& real,
                        const Choice& choice) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<WithSlopeOp>("genfast::_gan_loss_with_slope");
    auto [loss, slope] = op.call(fake, real, choice.kind, choice.role, choice.label_smoothing);
    ctx->save_for_backward({slope, fake, real.value_or(Tensor())});
    note_hooks(ctx);
    save_choice(ctx, choice);
    ctx->set_materialize_grads(false);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor()};
    const auto saved = ctx->get_saved_variables();
    const Choice choice = saved_choice(ctx);
    if (slopes_are_spare(ctx, grads[0], saved[0], saved[1])) {
      return backward_in_place(grads[0], saved[0], saved[1], if_defined(saved[2]), choice);
    }
    auto [grad_fake, grad_real] =
        backward_op().call(grads[0], saved[0], saved[1], if_defined(saved[2]), choice.kind,
                           choice.role, choice.label_smoothing);
    return {grad_fake, saved[2].defined() ? grad_real : Tensor(), Tensor()};
  }

 private:
  // Whether the slopes may be overwritten, and are so many that their memory counts.
  static bool slopes_are_spare(AutogradContext* ctx, const Tensor& grad_loss, const Tensor& slope,
                               const Tensor& fake) {
    return may_overwrite(ctx, slope, {grad_loss, fake}) && slope.is_cpu() &&
           slope.numel() >= kInPlaceElements && slope.scalar_type() == grad_loss.scalar_type();
  }

  static variable_list backward_in_place(const Tensor& grad_loss, const Tensor& slope,
                                         const Tensor& fake, const optional<Tensor>& real,
                                         const Choice& choice) {
    const Problem problem = read_problem(fake, real, choice);
    check_grad_loss(grad_loss, problem);
    const int64_t fake_count = problem.fake_count();
    const Tensor grad_fake = slope.narrow(0, 0, fake_count).view(fake.sizes());
    Tensor grad_real;
    if (problem.pairing == GanPairing::kPairs) {
      grad_real = problem.empty_grad_real();
    } else if (real.has_value()) {
      grad_real = slope.narrow(0, fake_count, problem.real_count()).view(real->sizes());
    }
    Cpu::backward(problem, grad_loss, slope, grad_fake, grad_real);
    return {grad_fake, grad_real, Tensor()};
  }
};

// The backward as a function of grad_loss and of the logits: slope(logit) * grad_loss / count.
class GanLossGradient : public torch::autograd::Function<GanLossGradient> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_loss, const Tensor& slope,
                               const Tensor& fake, const optional<Tensor>& real,
                               const Choice& choice) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({grad_loss, fake, real.value_or(Tensor())});
    save_choice(ctx, choice);
    auto [grad_fake, grad_real] = backward_op().call(grad_loss, slope, fake, real, choice.kind,
                                                     choice.role, choice.label_smoothing);
    return {grad_fake, grad_real};
  }

  static variable_list backward(AutogradContext* ctx, variable_list v) {
    const auto saved = ctx->get_saved_variables();
    const Choice choice = saved_choice(ctx);
    auto [grad_grad_loss, grad_fake, grad_real] =
        double_backward_op().call(v[0], v[1], saved[0], saved[1], if_defined(saved[2]), choice.kind,
                                  choice.role, choice.label_smoothing);
    return {grad_grad_loss, Tensor(), grad_fake, saved[2].defined() ? grad_real : Tensor(),
            Tensor()};
  }
};

// Without this a third derivative would silently be zero.
class GanLossGradientOnce : public torch::autograd::Function<GanLossGradientOnce> {
 public:
  static variable_list forward(AutogradContext*, const Tensor& v_fake, const Tensor& v_real,
                               const Tensor& grad_loss, const Tensor& fake,
                               const optional<Tensor>& real, const Choice& choice) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [grad_grad_loss, grad_fake, grad_real] = double_backward_op().call(
        v_fake, v_real, grad_loss, fake, real, choice.kind, choice.role, choice.label_smoothing);
    return {grad_grad_loss, grad_fake, grad_real};
  }

  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK(false, kOp,
                ": expected a first or second derivative, got a request for a third one; use "
                "genfast.ops.gan_loss_reference, which has every order");
  }
};

Tensor gan_loss_autograd(const Tensor& fake, const optional<Tensor>& real, c10::string_view kind,
                         c10::string_view role, double label_smoothing) {
  // A tangent, too, goes to the autograd function: it refuses it, and dropping it would mean zero.
  const auto tracked = [](const Tensor& logits) {
    return (at::GradMode::is_enabled() && logits.requires_grad()) || logits._fw_grad(0).defined();
  };
  if (tracked(fake) || (real.has_value() && tracked(*real)))
    return GanLoss::apply(fake, real, Choice{kind, role, label_smoothing});
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  static const auto op = find_op<ForwardOp>("genfast::gan_loss");
  return op.call(fake, real, kind, role, label_smoothing);
}

std::tuple<Tensor, Tensor> backward_autograd(const Tensor& grad_loss, const Tensor& slope,
                                             const Tensor& fake, const optional<Tensor>& real,
                                             c10::string_view kind, c10::string_view role,
                                             double label_smoothing) {
  if (!at::GradMode::is_enabled()) {  // every backward pass without create_graph
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return backward_op().call(grad_loss, slope, fake, real, kind, role, label_smoothing);
  }
  auto outputs =
      GanLossGradient::apply(grad_loss, slope, fake, real, Choice{kind, role, label_smoothing});
  return {outputs[0], outputs[1]};
}

std::tuple<Tensor, Tensor, Tensor> double_backward_autograd(
    const Tensor& v_fake, const Tensor& v_real, const Tensor& grad_loss, const Tensor& fake,
    const optional<Tensor>& real, c10::string_view kind, c10::string_view role,
    double label_smoothing) {
  auto outputs = GanLossGradientOnce::apply(v_fake, v_real, grad_loss, fake, real,
                                            Choice{kind, role, label_smoothing});
  return {outputs[0], outputs[1], outputs[2]};
}

template <typename Device>
void register_kernels(torch::Library& m) {
  m.impl("gan_loss", gan_loss<Device>);
  m.impl("_gan_loss_with_slope", with_slope<Device>);
  m.impl("_gan_loss_backward", backward<Device>);
  m.impl("_gan_loss_double_backward", double_backward<Device>);
}

}  // namespace

// `slope` is the derivative of each term in one flat buffer, as kernels/gan_loss.h says. A missing
// `real` has an empty gradient. Losses and their gradients are float32 for half types.
TORCH_LIBRARY_FRAGMENT(genfast, m) {
  const std::string logits = "Tensor fake, Tensor? real, str kind, str role, float label_smoothing";
  const auto define = [&](const std::string& schema) {
    m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  };
  define("gan_loss(" + logits + ") -> Tensor");
  define("_gan_loss_with_slope(" + logits + ") -> (Tensor loss, Tensor slope)");
  define("_gan_loss_backward(Tensor grad_loss, Tensor slope, " + logits +
         ") -> (Tensor grad_fake, Tensor grad_real)");
  define("_gan_loss_double_backward(Tensor v_fake, Tensor v_real, Tensor grad_loss, " + logits +
         ") -> (Tensor grad_grad_loss, Tensor grad_fake, Tensor grad_real)");
}

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  register_kernels<Cpu>(m);
}

#if defined(GENFAST_WITH_CUDA)
TORCH_LIBRARY_IMPL(genfast, CUDA, m) {
  register_kernels<Cuda>(m);
}
#endif

TORCH_LIBRARY_IMPL(genfast, Autograd, m) {
  m.impl("gan_loss", gan_loss_autograd);
  m.impl("_gan_loss_backward", backward_autograd);
  m.impl("_gan_loss_double_backward", double_backward_autograd);
}

}  // namespace genfast::gan
