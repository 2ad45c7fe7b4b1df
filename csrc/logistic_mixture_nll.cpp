#include "kernels/logistic_mixture_nll.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <atomic>
#include <numeric>
#include <tuple>

#include "csrc/checks.h"
#include "csrc/dispatch.h"
#include "csrc/saved_tensors.h"

#if defined(GENFAST_WITH_CUDA)
#include "csrc/cuda_stream.h"
#endif

namespace genfast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "logistic_mixture_nll";
constexpr int64_t kMostLevels = 65536;

void check_arguments(const Tensor& parameters, const Tensor& symbols, int64_t levels,
                     double lowest_log_scale) {
  check_floating(kOp, "parameters", parameters);
  TORCH_CHECK(at::isIntegralType(symbols.scalar_type(), true), kOp,
              ": expected integer symbols, got symbols.dtype=", symbols.scalar_type());
  TORCH_CHECK(symbols.device() == parameters.device(), kOp,
              ": expected symbols on the device of parameters (", parameters.device(),
              "), got symbols.device=", symbols.device());
  const bool has_colours = symbols.dim() >= 2 && (symbols.size(1) == 1 || symbols.size(1) == 3);
  TORCH_CHECK(has_colours, kOp,
              ": expected symbols [N, 1, ...] or [N, 3, ...], got symbols.shape=", symbols.sizes());
  const int64_t per_component = symbols.size(1) == 1 ? 3 : 10;
  TORCH_CHECK(parameters.dim() == symbols.dim() && parameters.size(0) == symbols.size(0) &&
                  parameters.sizes().slice(2) == symbols.sizes().slice(2) &&
                  parameters.size(1) > 0 && parameters.size(1) % per_component == 0,
              kOp, ": expected parameters [N, ", per_component, " * mixtures, ...] beside symbols ",
              symbols.sizes(), ", got parameters.shape=", parameters.sizes());
  TORCH_CHECK(levels >= 2 && levels <= kMostLevels, kOp, ": expected levels in 2 .. ", kMostLevels,
              ", got levels=", levels);
  TORCH_CHECK(lowest_log_scale >= kLogisticNarrowest && lowest_log_scale <= kLogisticWidest, kOp,
              ": expected lowest_log_scale in ", kLogisticNarrowest, " .. ", kLogisticWidest,
              ", got lowest_log_scale=", lowest_log_scale);
}

at::ScalarType computed_type(const Tensor& parameters) {
  return parameters.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Whether a pixel's channels are adjacent in memory, and all of them dense.
bool channels_last(const Tensor& parameters) {
  return !parameters.is_contiguous() && parameters.movedim(1, -1).is_contiguous();
}

// The checked arguments: parameters in a layout that the kernels know, levels as they read them.
struct Problem {
  Tensor parameters, symbols;
  bool channels_last;
  int64_t levels;
  double lowest_log_scale;

  int colours() const { return static_cast<int>(symbols.size(1)); }
  int64_t mixtures() const { return parameters.size(1) / (colours() == 1 ? 3 : 10); }
  int64_t batch() const { return parameters.size(0); }
  int64_t sites() const { return c10::multiply_integers(parameters.sizes().slice(2)); }
  int64_t chunks() const { return logistic_mixture_chunks(sites()); }

  template <typename storage_t, typename slope_t>
  LogisticMixtureNll<storage_t, slope_t> params(const Tensor& slope, double* sums) const {
    return {static_cast<const storage_t*>(parameters.const_data_ptr()),
            symbols.const_data_ptr<int64_t>(),
            slope.defined() ? static_cast<slope_t*>(slope.mutable_data_ptr()) : nullptr,
            sums,
            batch(),
            sites(),
            mixtures(),
            channels_last ? 1 : sites(),
            channels_last ? parameters.size(1) : 1,
            levels,
            lowest_log_scale};
  }
};

Problem read_problem(const Tensor& parameters, const Tensor& symbols, int64_t levels,
                     double lowest_log_scale) {
  check_arguments(parameters, symbols, levels, lowest_log_scale);
  const bool last = channels_last(parameters);
  Tensor dense = last ? parameters : parameters.contiguous();
  if (dense.is_cpu()) dense = dense.to(computed_type(parameters));
  return {dense, symbols.to(at::kLong).contiguous(), last, levels, lowest_log_scale};
}

// In the dtype of the arithmetic, with the layout of the parameters: a half type would overflow
// before the gradient of the loss has made it small.
Tensor empty_slope(const Tensor& parameters) {
  const auto options = parameters.options().dtype(computed_type(parameters));
  if (!channels_last(parameters)) return at::empty(parameters.sizes(), options);
  return at::empty(parameters.movedim(1, -1).sizes(), options).movedim(-1, 1);
}

// Both compute the losses [N], and their derivatives unless `slope` is undefined.
struct Cpu {
  static Tensor run(const Problem& problem, const Tensor& slope) {
    const Tensor loss = at::empty({problem.batch()}, problem.parameters.options());
    const int64_t chunks = problem.chunks();
    const Tensor sums = at::empty({problem.batch() * chunks}, loss.options().dtype(at::kDouble));
    std::atomic<bool> fits{true};
    AT_DISPATCH_FLOATING_TYPES(problem.parameters.scalar_type(), kOp, [&] {
      const auto params =
          problem.params<scalar_t, scalar_t>(slope, sums.mutable_data_ptr<double>());
      at::parallel_for(0, sums.numel(), 1, [&](int64_t begin, int64_t end) {
        const Tensor scratch = at::empty(
            {cpu::logistic_mixture_scratch(problem.mixtures(), problem.colours())}, loss.options());
        cpu::at_simd_level([&](auto level) {
          if (!cpu::logistic_mixture_nll<level()>(
                  params, problem.colours(), scratch.mutable_data_ptr<scalar_t>(), begin, end)) {
            fits = false;
          }
        });
      });
      scalar_t* const to = loss.mutable_data_ptr<scalar_t>();
      for (int64_t example = 0; example < problem.batch(); ++example) {
        const double* from = sums.const_data_ptr<double>() + example * chunks;
        to[example] = static_cast<scalar_t>(std::accumulate(from, from + chunks, 0.0));
      }
    });
    TORCH_CHECK_VALUE(fits, kOp, ": expected symbols in 0 .. ", problem.levels - 1,
                      ", got symbols outside");
    return loss;
  }
};

#if defined(GENFAST_WITH_CUDA)
struct Cuda {
  static Tensor run(const Problem& problem, const Tensor& slope) {
    const CudaLaunch launch(problem.parameters.device());
    const auto options = problem.parameters.options();
    const Tensor sums = at::empty({problem.batch(), problem.chunks()}, options.dtype(at::kDouble));
    if (sums.numel() > 0) {
      at_storage_type(kOp, problem.parameters.scalar_type(), [&](auto storage) {
        using storage_t = decltype(storage);
        using slope_t = std::conditional_t<std::is_same_v<storage_t, double>, double, float>;
        cuda::logistic_mixture_nll(
            problem.params<storage_t, slope_t>(slope, sums.mutable_data_ptr<double>()),
            problem.colours(), launch.stream());
      });
    }
    return sums.sum(1).to(computed_type(problem.parameters));
  }
};
#endif

template <typename Device>
Tensor logistic_mixture_nll(const Tensor& parameters, const Tensor& symbols, int64_t levels,
                            double lowest_log_scale) {
  return Device::run(read_problem(parameters, symbols, levels, lowest_log_scale), Tensor());
}

template <typename Device>
std::tuple<Tensor, Tensor> with_slope(const Tensor& parameters, const Tensor& symbols,
                                      int64_t levels, double lowest_log_scale) {
  const Problem problem = read_problem(parameters, symbols, levels, lowest_log_scale);
  const Tensor slope = empty_slope(parameters);
  return {Device::run(problem, slope), slope};
}

using ForwardOp = Tensor(const Tensor&, const Tensor&, int64_t, double);
using WithSlopeOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, int64_t, double);

// Without this a second derivative would silently be zero.
class LogisticMixtureGradient : public torch::autograd::Function<LogisticMixtureGradient> {
 public:
  static Tensor forward(AutogradContext*, const Tensor& gradient, const Tensor&) {
    return gradient.view_as(gradient);
  }

  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK(false, kOp,
                ": expected a first derivative, got a request for a second one; use "
                "genfast.ops.logistic_mixture_nll_reference, which has every order");
  }
};

class LogisticMixtureLoss : public torch::autograd::Function<LogisticMixtureLoss> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& parameters, const Tensor& symbols,
                        int64_t levels, double lowest_log_scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<WithSlopeOp>("genfast::_logistic_mixture_nll_with_slope");
    auto [loss, slope] = op.call(parameters, symbols, levels, lowest_log_scale);
    ctx->save_for_backward({slope, parameters});
    note_hooks(ctx);
    ctx->set_materialize_grads(false);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor(), Tensor()};
    const auto saved = ctx->get_saved_variables();
    const Tensor &slope = saved[0], &parameters = saved[1];
    std::vector<int64_t> shape(static_cast<size_t>(slope.dim()), 1);
    shape[0] = -1;
    const Tensor factor = grads[0].reshape(shape);
    Tensor gradient =
        may_overwrite(ctx, slope, {factor, parameters}) ? slope.mul_(factor) : slope * factor;
    gradient = gradient.to(parameters.scalar_type());
    if (at::GradMode::is_enabled()) {
      gradient = LogisticMixtureGradient::apply(gradient, parameters);
    }
    return {gradient, Tensor(), Tensor(), Tensor()};
  }
};

Tensor loss_autograd(const Tensor& parameters, const Tensor& symbols, int64_t levels,
                     double lowest_log_scale) {
  // A tangent, too, goes to the autograd function: it refuses it, and dropping it would mean zero.
  if ((at::GradMode::is_enabled() && parameters.requires_grad()) ||
      parameters._fw_grad(0).defined()) {
    return LogisticMixtureLoss::apply(parameters, symbols, levels, lowest_log_scale);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  static const auto op = find_op<ForwardOp>("genfast::logistic_mixture_nll");
  return op.call(parameters, symbols, levels, lowest_log_scale);
}

template <typename Device>
void register_kernels(torch::Library& m) {
  m.impl("logistic_mixture_nll", logistic_mixture_nll<Device>);
  m.impl("_logistic_mixture_nll_with_slope", with_slope<Device>);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genfast, m) {
  m.def(
      "logistic_mixture_nll(Tensor parameters, Tensor symbols, int levels, float lowest_log_scale) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
  // The forward for autograd: beside the losses [N] their derivatives, of the shape of parameters.
  m.def(
      "_logistic_mixture_nll_with_slope(Tensor parameters, Tensor symbols, int levels, "
      "float lowest_log_scale) -> (Tensor loss, Tensor slope)",
      {at::Tag::pt2_compliant_tag});
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
  m.impl("logistic_mixture_nll", loss_autograd);
}

}  // namespace genfast
