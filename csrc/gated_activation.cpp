#include "kernels/gated_activation.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "csrc/checks.h"
#include "csrc/dispatch.h"

#if defined(GENFAST_WITH_CUDA)
#include "csrc/cuda_stream.h"
#endif

namespace genfast {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "gated_activation";
constexpr int64_t kGrain = 8192;  // gates that make another thread worthwhile

Tensor value_or_undefined(const optional<Tensor>& tensor) {
  return tensor.has_value() ? *tensor : Tensor();
}

bool is_per_example(const Tensor& condition, const Tensor& x) {
  return condition.sizes() != x.sizes();
}

void check_arguments(const Tensor& x, const Tensor& condition) {
  check_floating(kOp, "x", x);
  TORCH_CHECK(x.dim() >= 2 && x.size(1) >= 2 && x.size(1) % 2 == 0, kOp,
              ": expected x of shape [N, 2C, ...], got x.shape=", x.sizes());
  if (!condition.defined()) return;
  bool fits = condition.dim() == x.dim();
  for (int64_t axis = 0; fits && axis < x.dim(); ++axis) {
    fits = condition.size(axis) == (axis < 2 || !is_per_example(condition, x) ? x.size(axis) : 1);
  }
  TORCH_CHECK(fits, kOp,
              ": expected condition of shape [N, 2C, 1, ...] or of the shape of x, got "
              "condition.shape=",
              condition.sizes(), ", x.shape=", x.sizes());
  TORCH_CHECK(condition.scalar_type() == x.scalar_type() && condition.device() == x.device(), kOp,
              ": expected condition of the dtype and device of x (", x.scalar_type(), ", ",
              x.device(), "), got condition.dtype=", condition.scalar_type(),
              ", condition.device=", condition.device());
}

// Whether what follows the first axis lies in memory as one block, in the order of the axes given.
bool is_block(const Tensor& tensor, bool channels_last) {
  int64_t expected = 1;
  const auto next = [&](int64_t axis) {
    const bool fits = tensor.size(axis) == 1 || tensor.stride(axis) == expected;
    expected *= tensor.size(axis);
    return fits;
  };
  if (channels_last && !next(1)) return false;
  for (int64_t axis = tensor.dim() - 1; axis > (channels_last ? 1 : 0); --axis) {
    if (!next(axis)) return false;
  }
  return true;
}

// The checked arguments: x and the condition in memory that the kernels can walk through.
struct Gates {
  Tensor x, condition;
  bool channels_last, per_example;
  int64_t N, C, positions;

  Gates(const Tensor& given_x, const Tensor& given_condition) {
    N = given_x.size(0);
    C = given_x.size(1) / 2;
    positions = 1;
    for (int64_t axis = 2; axis < given_x.dim(); ++axis) positions *= given_x.size(axis);
    channels_last = given_x.numel() > 0 && !is_block(given_x, false) && is_block(given_x, true);
    x = in_format(given_x);
    per_example = given_condition.defined() && is_per_example(given_condition, given_x);
    if (given_condition.defined()) {
      condition = per_example ? given_condition.contiguous() : in_format(given_condition);
    }
  }

  // One number of the condition serves a whole row of memory.
  bool rows_are_channels() const { return per_example && !channels_last; }

  Tensor in_format(const Tensor& tensor) const {
    if (is_block(tensor, channels_last)) return tensor;
    if (!channels_last) return tensor.contiguous();
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1);
  }

  Tensor empty(int64_t channels) const {
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes[1] = channels;
    if (!channels_last) return at::empty(sizes, x.options());
    sizes.erase(sizes.begin() + 1);
    sizes.push_back(channels);
    return at::empty(sizes, x.options()).movedim(-1, 1);
  }

  GateShape shape() const {
    if (channels_last) return {N, positions, C};
    return rows_are_channels() ? GateShape{N, C, positions} : GateShape{N, 1, C * positions};
  }

  // Of a tensor [N, 2C, ...] in the format of x.
  template <typename pointer>
  auto pairs(pointer data, int64_t outer) const {
    using element = std::remove_pointer_t<pointer>;
    if (channels_last) return GatePairs<element>{data, outer, 2 * C, C};
    return GatePairs<element>{data, outer, rows_are_channels() ? positions : 0, C * positions};
  }

  template <typename storage_t>
  GateCondition<storage_t> condition_pairs() const {
    if (!condition.defined()) return {{nullptr, 0, 0, 0}, 0};
    const auto* data = static_cast<const storage_t*>(condition.const_data_ptr());
    if (!per_example) return {pairs(data, condition.stride(0)), 1};
    return {{data, 2 * C, channels_last ? 0 : 1, C}, channels_last ? 1 : 0};
  }

  template <typename storage_t>
  GatedActivation<storage_t> forward_params(const Tensor& out) const {
    return {shape(), pairs(static_cast<const storage_t*>(x.const_data_ptr()), x.stride(0)),
            condition_pairs<storage_t>(), static_cast<storage_t*>(out.mutable_data_ptr())};
  }

  template <typename storage_t>
  GatedActivationBackward<storage_t> backward_params(const Tensor& grad, const Tensor& grad_x,
                                                     const Tensor& sums) const {
    return {shape(),
            pairs(static_cast<const storage_t*>(x.const_data_ptr()), x.stride(0)),
            condition_pairs<storage_t>(),
            static_cast<const storage_t*>(grad.const_data_ptr()),
            pairs(static_cast<storage_t*>(grad_x.mutable_data_ptr()), grad_x.stride(0)),
            sums.defined() ? static_cast<storage_t*>(sums.mutable_data_ptr()) : nullptr};
  }

  // The gradient of the output as [outer, inner, length] without gaps.
  Tensor dense_grad(const Tensor& grad) const {
    return channels_last ? grad.movedim(1, -1).contiguous() : grad.contiguous();
  }
};

optional<Tensor> widened(const optional<Tensor>& tensor) {
  return tensor.has_value() ? optional<Tensor>(tensor->to(at::kFloat)) : std::nullopt;
}

Tensor forward_cpu(const Tensor& x, const optional<Tensor>& condition) {
  check_arguments(x, value_or_undefined(condition));
  if (at::isReducedFloatingType(x.scalar_type())) {
    return forward_cpu(x.to(at::kFloat), widened(condition)).to(x.scalar_type());
  }
  const Gates gates(x, value_or_undefined(condition));
  const Tensor out = gates.empty(gates.C);
  if (out.numel() == 0) return out;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), kOp, [&] {
    const auto params = gates.forward_params<scalar_t>(out);
    at::parallel_for(0, out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      cpu::at_simd_level([&](auto level) { cpu::gated_activation<level()>(params, begin, end); });
    });
  });
  return out;
}

// Writes grad_x and, where grad_condition is defined, its sums over the positions.
template <typename scalar_t>
void run_backward(const Gates& gates, const Tensor& grad, const Tensor& grad_x,
                  const Tensor& grad_condition) {
  const auto in_parallel = [](int64_t count, int64_t grain, auto&& function) {
    at::parallel_for(0, count, std::max<int64_t>(1, grain), [&](int64_t begin, int64_t end) {
      cpu::at_simd_level([&](auto level) { function(level, begin, end); });
    });
  };
  if (!grad_condition.defined()) {
    const auto params = gates.backward_params<scalar_t>(grad, grad_x, Tensor());
    in_parallel(grad.numel(), kGrain, [&](auto level, int64_t begin, int64_t end) {
      cpu::gated_activation_backward<level()>(params, begin, end);
    });
  } else if (gates.rows_are_channels()) {
    const auto params = gates.backward_params<scalar_t>(grad, grad_x, grad_condition);
    in_parallel(gates.N * gates.C, kGrain / gates.positions,
                [&](auto level, int64_t begin, int64_t end) {
                  cpu::gated_activation_backward_channels<level()>(params, begin, end);
                });
  } else {
    const int64_t blocks = cpu::gate_blocks(gates.positions);
    const Tensor sums = at::empty({gates.N, blocks, 2 * gates.C}, grad.options());
    const auto params = gates.backward_params<scalar_t>(grad, grad_x, sums);
    in_parallel(gates.N * blocks, kGrain / (cpu::kGateBlock * gates.C),
                [&](auto level, int64_t begin, int64_t end) {
                  cpu::gated_activation_backward_blocks<level()>(params, begin, end);
                });
    in_parallel(gates.N, kGrain / (blocks * gates.C), [&](auto level, int64_t begin, int64_t end) {
      cpu::gated_activation_add_blocks<level()>(
          sums.const_data_ptr<scalar_t>(), blocks, 2 * gates.C,
          grad_condition.mutable_data_ptr<scalar_t>(), begin, end);
    });
  }
}

void check_grad(const Tensor& grad, const Tensor& x) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[1] /= 2;
  TORCH_CHECK(grad.sizes() == at::IntArrayRef(sizes) && grad.scalar_type() == x.scalar_type() &&
                  grad.device() == x.device(),
              kOp, ": expected grad of the output's shape ", at::IntArrayRef(sizes),
              " and of the dtype and device of x (", x.scalar_type(), ", ", x.device(),
              "), got grad.shape=", grad.sizes(), ", grad.dtype=", grad.scalar_type(),
              ", grad.device=", grad.device());
}

// The gradient of a condition of the shape of x is that of x: it comes back empty then.
std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad, const Tensor& x,
                                        const optional<Tensor>& condition) {
  check_arguments(x, value_or_undefined(condition));
  check_grad(grad, x);
  if (at::isReducedFloatingType(x.scalar_type())) {
    auto [grad_x, grad_condition] =
        backward_cpu(grad.to(at::kFloat), x.to(at::kFloat), widened(condition));
    return {grad_x.to(x.scalar_type()), grad_condition.to(x.scalar_type())};
  }
  const Gates gates(x, value_or_undefined(condition));
  const Tensor grad_x = gates.empty(2 * gates.C);
  const Tensor grad_condition = gates.per_example ? at::empty(gates.condition.sizes(), x.options(),
                                                              at::MemoryFormat::Contiguous)
                                                  : at::empty({0}, x.options());
  if (grad.numel() == 0) return {grad_x, grad_condition.zero_()};
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), kOp, [&] {
    run_backward<scalar_t>(gates, gates.dense_grad(grad), grad_x,
                           gates.per_example ? grad_condition : Tensor());
  });
  return {grad_x, grad_condition};
}

#if defined(GENFAST_WITH_CUDA)
Tensor forward_cuda(const Tensor& x, const optional<Tensor>& condition) {
  check_arguments(x, value_or_undefined(condition));
  const CudaLaunch launch(x.device());
  const Gates gates(x, value_or_undefined(condition));
  const Tensor out = gates.empty(gates.C);
  if (out.numel() == 0) return out;
  at_storage_type(kOp, x.scalar_type(), [&](auto storage) {
    cuda::gated_activation(gates.forward_params<decltype(storage)>(out), launch.stream());
  });
  return out;
}

std::tuple<Tensor, Tensor> backward_cuda(const Tensor& grad, const Tensor& x,
                                         const optional<Tensor>& condition) {
  check_arguments(x, value_or_undefined(condition));
  check_grad(grad, x);
  const CudaLaunch launch(x.device());
  const Gates gates(x, value_or_undefined(condition));
  const Tensor grad_x = gates.empty(2 * gates.C);
  if (grad.numel() > 0) {
    const Tensor dense = gates.dense_grad(grad);
    at_storage_type(kOp, x.scalar_type(), [&](auto storage) {
      cuda::gated_activation_backward(
          gates.backward_params<decltype(storage)>(dense, grad_x, Tensor()), launch.stream());
    });
  }
  // The sum is one more pass over grad_x, by torch: deterministic, in float32 for half types.
  const Tensor grad_condition = gates.per_example
                                    ? grad_x.flatten(2).sum(2).view(gates.condition.sizes())
                                    : at::empty({0}, x.options());
  return {grad_x, grad_condition};
}
#endif

using ForwardOp = Tensor(const Tensor&, const optional<Tensor>&);
using BackwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&,
                                              const optional<Tensor>&);

const c10::TypedOperatorHandle<ForwardOp>& forward_op() {
  static const auto op = find_op<ForwardOp>("genfast::gated_activation");
  return op;
}

const c10::TypedOperatorHandle<BackwardOp>& backward_op() {
  static const auto op = find_op<BackwardOp>("genfast::_gated_activation_backward");
  return op;
}

// The backward in differentiable operators of torch: what a second derivative is made of.
std::tuple<Tensor, Tensor> backward_formula(const Tensor& grad, const Tensor& x,
                                            const optional<Tensor>& condition) {
  const bool per_example = condition.has_value() && is_per_example(*condition, x);
  const bool reduced = at::isReducedFloatingType(x.scalar_type());
  const auto wide = [&](const Tensor& tensor) { return reduced ? tensor.to(at::kFloat) : tensor; };
  const Tensor given = condition.has_value() ? wide(x) + wide(*condition) : wide(x);
  const auto halves = given.chunk(2, 1);
  const Tensor t = halves[0].tanh(), s = halves[1].sigmoid(), of_out = wide(grad);
  const Tensor grad_x = at::cat({of_out * s * (1 - t * t), of_out * t * s * (1 - s)}, 1);
  const Tensor grad_condition = per_example ? grad_x.flatten(2).sum(2).view(condition->sizes())
                                            : at::empty({0}, grad_x.options());
  return {grad_x.to(x.scalar_type()), grad_condition.to(x.scalar_type())};
}

class Gate : public torch::autograd::Function<Gate> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const optional<Tensor>& condition) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({x, value_or_undefined(condition)});
    ctx->set_materialize_grads(false);
    return forward_op().call(x, condition);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    const auto saved = ctx->get_saved_variables();
    const bool given = saved[1].defined();
    auto [grad_x, grad_condition] =
        backward_op().call(grads[0], saved[0], given ? optional<Tensor>(saved[1]) : std::nullopt);
    if (!given) return {grad_x, Tensor()};
    return {grad_x, is_per_example(saved[1], saved[0]) ? grad_condition : grad_x};
  }
};

Tensor forward_autograd(const Tensor& x, const optional<Tensor>& condition) {
  // A tangent, too, goes to the autograd function: it refuses it, and dropping it would mean zero.
  const auto tracked = [](const Tensor& tensor) {
    return (at::GradMode::is_enabled() && tensor.requires_grad()) || tensor._fw_grad(0).defined();
  };
  if (tracked(x) || (condition.has_value() && tracked(*condition))) {
    return Gate::apply(x, condition);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return forward_op().call(x, condition);
}

std::tuple<Tensor, Tensor> backward_autograd(const Tensor& grad, const Tensor& x,
                                             const optional<Tensor>& condition) {
  const bool tracked = grad.requires_grad() || x.requires_grad() ||
                       (condition.has_value() && condition->requires_grad());
  if (at::GradMode::is_enabled() && tracked) {
    check_arguments(x, value_or_undefined(condition));
    check_grad(grad, x);
    return backward_formula(grad, x, condition);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return backward_op().call(grad, x, condition);
}

// The arithmetic is float32 whatever the dtype, so x is left as it is and the condition, a float32
// embedding perhaps, follows it.
template <c10::DeviceType device>
Tensor forward_autocast(const Tensor& x, const optional<Tensor>& condition) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  if (!condition.has_value()) return forward_op().call(x, condition);
  return forward_op().call(x, condition->to(x.scalar_type()));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genfast, m) {
  m.def("gated_activation(Tensor x, Tensor? condition) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "_gated_activation_backward(Tensor grad, Tensor x, Tensor? condition)"
      " -> (Tensor grad_x, Tensor grad_condition)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  m.impl("gated_activation", forward_cpu);
  m.impl("_gated_activation_backward", backward_cpu);
}

#if defined(GENFAST_WITH_CUDA)
TORCH_LIBRARY_IMPL(genfast, CUDA, m) {
  m.impl("gated_activation", forward_cuda);
  m.impl("_gated_activation_backward", backward_cuda);
}
#endif

TORCH_LIBRARY_IMPL(genfast, Autograd, m) {
  m.impl("gated_activation", forward_autograd);
  m.impl("_gated_activation_backward", backward_autograd);
}

TORCH_LIBRARY_IMPL(genfast, AutocastCPU, m) {
  m.impl("gated_activation", forward_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(genfast, AutocastCUDA, m) {
  m.impl("gated_activation", forward_autocast<c10::DeviceType::CUDA>);
}

}  // namespace genfast
