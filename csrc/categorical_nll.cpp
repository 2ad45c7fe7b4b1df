#include "kernels/categorical_nll.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <atomic>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>

#include "csrc/checks.h"
#include "csrc/dispatch.h"

#if defined(GENFAST_WITH_CUDA)
#include "csrc/cuda_stream.h"
#endif

namespace genfast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "categorical_nll";

void check_arguments(const Tensor& logits, const Tensor& symbols, int64_t axis) {
  check_floating(kOp, "logits", logits);
  TORCH_CHECK(at::isIntegralType(symbols.scalar_type(), true), kOp,
              ": expected integer symbols, got symbols.dtype=", symbols.scalar_type());
  TORCH_CHECK(symbols.device() == logits.device(), kOp,
              ": expected symbols on the device of logits (", logits.device(),
              "), got symbols.device=", symbols.device());
  TORCH_CHECK(axis >= 1 && axis < logits.dim(), kOp, ": expected axis in 1 .. ", logits.dim() - 1,
              " for logits ", logits.sizes(), ", got axis=", axis);
  std::vector<int64_t> sites = logits.sizes().vec();
  sites.erase(sites.begin() + axis);
  TORCH_CHECK(symbols.sizes() == sites, kOp, ": expected symbols ", at::IntArrayRef(sites),
              " beside logits ", logits.sizes(), ", got symbols.shape=", symbols.sizes());
  TORCH_CHECK(logits.size(axis) >= 1, kOp,
              ": expected at least one class, got logits.shape=", logits.sizes());
}

at::ScalarType computed_type(const Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Joins axes that are dense behind each other, from the last one to the first. What is left of the
// axes has to be [groups, sites] at most; nothing is returned where it is more, or where neither
// the classes nor the sites are adjacent.
std::optional<CategoricalLayout> read_layout(const Tensor& logits, int64_t axis) {
  CategoricalLayout layout{logits.size(0),   1, 1, logits.size(axis),
                           logits.stride(0), 0, 1, logits.stride(axis)};
  if (logits.numel() == 0) {
    layout.sites = 0;
    return layout;
  }
  int found = 0;  // of sites and groups
  for (int64_t d = logits.dim() - 1; d > 0; --d) {
    if (d == axis || logits.size(d) == 1) continue;
    const int64_t size = logits.size(d), stride = logits.stride(d);
    if (found == 0) {
      layout.sites = size;
      layout.site_stride = stride;
      found = 1;
    } else if (found == 1 && stride == layout.site_stride * layout.sites) {
      layout.sites *= size;
    } else if (found == 1) {
      layout.groups = size;
      layout.group_stride = stride;
      found = 2;
    } else if (stride == layout.group_stride * layout.groups) {
      layout.groups *= size;
    } else {
      return std::nullopt;
    }
  }
  if (layout.site_stride != 1 && layout.class_stride != 1) return std::nullopt;
  return layout;
}

// Splits the sites of the layout that has one group into those of the other one. Returns whether
// both then have the same groups.
bool same_groups(CategoricalLayout& a, CategoricalLayout& b) {
  CategoricalLayout& joined = a.groups == 1 ? a : b;
  const CategoricalLayout& split = a.groups == 1 ? b : a;
  if (joined.groups == 1 && split.groups > 1) {
    joined.groups = split.groups;
    joined.sites = split.sites;
    joined.group_stride = joined.site_stride * split.sites;
  }
  return a.groups == b.groups;
}

// Logits in the dtype of the arithmetic and in a layout that the kernels know.
Tensor readable(const Tensor& logits, int64_t axis) {
  const Tensor given = logits.is_cpu() ? logits.to(computed_type(logits)) : logits;
  return read_layout(given, axis) ? given : given.contiguous();
}

// Functions of one signature for both devices; they take tensors that the kernels can read.
struct Cpu {
  static Tensor forward(const Tensor& logits, const Tensor& symbols, int64_t axis,
                        const Tensor& most, const Tensor& sum) {
    const CategoricalLayout layout = *read_layout(logits, axis);
    const Tensor loss = at::empty({layout.batch}, logits.options());
    const int64_t chunks = layout.groups * categorical_chunks(layout);  // of an example
    const Tensor losses = at::empty({layout.batch * chunks}, loss.options().dtype(at::kDouble));
    std::atomic<bool> fits{true};
    AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), kOp, [&] {
      const CategoricalNll<scalar_t, scalar_t> params{
          logits.const_data_ptr<scalar_t>(),
          symbols.const_data_ptr<int64_t>(),
          most.defined() ? most.mutable_data_ptr<scalar_t>() : nullptr,
          sum.defined() ? sum.mutable_data_ptr<scalar_t>() : nullptr,
          losses.mutable_data_ptr<double>(),
          layout};
      at::parallel_for(0, losses.numel(), 1, [&](int64_t begin, int64_t end) {
        cpu::at_simd_level([&](auto level) {
          if (!cpu::categorical_nll<level()>(params, begin, end)) fits = false;
        });
      });
      scalar_t* const to = loss.mutable_data_ptr<scalar_t>();
      for (int64_t example = 0; example < layout.batch; ++example) {
        const double* from = losses.const_data_ptr<double>() + example * chunks;
        to[example] = static_cast<scalar_t>(std::accumulate(from, from + chunks, 0.0));
      }
    });
    TORCH_CHECK_VALUE(fits, kOp, ": expected symbols in 0 .. ", layout.classes - 1,
                      ", got symbols outside");
    return loss;
  }

  static void backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& symbols,
                       const Tensor& most, const Tensor& sum, const CategoricalLayout& layout,
                       const Tensor& grad, const CategoricalLayout& grad_layout) {
    const int64_t work = layout.batch * layout.groups * categorical_chunks(layout);
    AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), kOp, [&] {
      const CategoricalNllBackward<scalar_t, scalar_t> params{logits.const_data_ptr<scalar_t>(),
                                                              symbols.const_data_ptr<int64_t>(),
                                                              most.const_data_ptr<scalar_t>(),
                                                              sum.const_data_ptr<scalar_t>(),
                                                              grad_loss.const_data_ptr<scalar_t>(),
                                                              grad.mutable_data_ptr<scalar_t>(),
                                                              layout,
                                                              grad_layout};
      at::parallel_for(0, work, 1, [&](int64_t begin, int64_t end) {
        cpu::at_simd_level(
            [&](auto level) { cpu::categorical_nll_backward<level()>(params, begin, end); });
      });
    });
  }
};

#if defined(GENFAST_WITH_CUDA)
struct Cuda {
  // Calls function(a value of the storage type, one of the type of the arithmetic).
  template <typename Function>
  static void at_types(const Tensor& logits, Function&& function) {
    at_storage_type(kOp, logits.scalar_type(), [&](auto storage) {
      using acc_t = std::conditional_t<std::is_same_v<decltype(storage), double>, double, float>;
      function(storage, acc_t{});
    });
  }

  static Tensor forward(const Tensor& logits, const Tensor& symbols, int64_t axis,
                        const Tensor& most, const Tensor& sum) {
    const CudaLaunch launch(logits.device());
    const CategoricalLayout layout = *read_layout(logits, axis);
    const Tensor losses = at::empty({layout.batch, layout.groups * categorical_chunks(layout)},
                                    logits.options().dtype(at::kDouble));
    if (losses.numel() > 0) {
      at_types(logits, [&](auto storage, auto accumulator) {
        using storage_t = decltype(storage);
        using acc_t = decltype(accumulator);
        const CategoricalNll<storage_t, acc_t> params{
            static_cast<const storage_t*>(logits.const_data_ptr()),
            symbols.const_data_ptr<int64_t>(),
            most.defined() ? most.mutable_data_ptr<acc_t>() : nullptr,
            sum.defined() ? sum.mutable_data_ptr<acc_t>() : nullptr,
            losses.mutable_data_ptr<double>(),
            layout};
        cuda::categorical_nll(params, launch.stream());
      });
    }
    return losses.sum(1).to(computed_type(logits));
  }

  static void backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& symbols,
                       const Tensor& most, const Tensor& sum, const CategoricalLayout& layout,
                       const Tensor& grad, const CategoricalLayout& grad_layout) {
    if (grad.numel() == 0) return;
    const CudaLaunch launch(logits.device());
    at_types(logits, [&](auto storage, auto accumulator) {
      using storage_t = decltype(storage);
      using acc_t = decltype(accumulator);
      const CategoricalNllBackward<storage_t, acc_t> params{
          static_cast<const storage_t*>(logits.const_data_ptr()),
          symbols.const_data_ptr<int64_t>(),
          most.const_data_ptr<acc_t>(),
          sum.const_data_ptr<acc_t>(),
          grad_loss.const_data_ptr<acc_t>(),
          static_cast<storage_t*>(grad.mutable_data_ptr()),
          layout,
          grad_layout};
      cuda::categorical_nll_backward(params, launch.stream());
    });
  }
};
#endif

Tensor dense_symbols(const Tensor& symbols) {
  return symbols.to(at::kLong).contiguous();
}

template <typename Device>
Tensor forward(const Tensor& logits, const Tensor& symbols, int64_t axis) {
  check_arguments(logits, symbols, axis);
  return Device::forward(readable(logits, axis), dense_symbols(symbols), axis, Tensor(), Tensor());
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> with_sums(const Tensor& logits, const Tensor& symbols,
                                             int64_t axis) {
  check_arguments(logits, symbols, axis);
  const auto options = logits.options().dtype(computed_type(logits));
  const Tensor most = at::empty(symbols.sizes(), options);
  const Tensor sum = at::empty(symbols.sizes(), options);
  const Tensor loss =
      Device::forward(readable(logits, axis), dense_symbols(symbols), axis, most, sum);
  return {loss, most, sum};
}

template <typename Device>
Tensor backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& symbols,
                const Tensor& most, const Tensor& sum, int64_t axis) {
  check_arguments(logits, symbols, axis);
  const at::ScalarType computed = computed_type(logits);
  TORCH_CHECK(grad_loss.sizes() == logits.sizes().slice(0, 1) &&
                  grad_loss.scalar_type() == computed && grad_loss.device() == logits.device(),
              kOp, ": expected grad_loss [", logits.size(0), "], ", computed, " on ",
              logits.device(), ", got grad_loss.shape=", grad_loss.sizes(),
              ", grad_loss.dtype=", grad_loss.scalar_type(),
              ", grad_loss.device=", grad_loss.device());
  for (const Tensor& kept : {most, sum}) {
    TORCH_CHECK(kept.sizes() == symbols.sizes() && kept.scalar_type() == computed &&
                    kept.device() == logits.device() && kept.is_contiguous(),
                kOp, ": expected most and sum as the forward made them, got a shape of ",
                kept.sizes(), ", dtype=", kept.scalar_type(), ", device=", kept.device());
  }
  const Tensor result = at::empty_like(logits);
  Tensor from = readable(logits, axis);
  // Written in place where the kernels can: in the dtype of the arithmetic, and in groups of sites
  // that the logits have too.
  Tensor grad = result;
  auto layout = *read_layout(from, axis);
  auto grad_layout = read_layout(grad, axis);
  if (grad.scalar_type() != from.scalar_type() || !grad_layout ||
      !same_groups(layout, *grad_layout)) {
    if (!from.is_non_overlapping_and_dense()) from = from.contiguous();
    grad = at::empty_like(from);
    layout = *read_layout(from, axis);
    grad_layout = layout;
  }
  Device::backward(grad_loss.contiguous(), from, dense_symbols(symbols), most, sum, layout, grad,
                   *grad_layout);
  return grad.is_same(result) ? result : result.copy_(grad);
}

using ForwardOp = Tensor(const Tensor&, const Tensor&, int64_t);
using WithSumsOp = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, int64_t);
using BackwardOp = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          int64_t);

const c10::TypedOperatorHandle<BackwardOp>& backward_op() {
  static const auto op = find_op<BackwardOp>("genfast::_categorical_nll_backward");
  return op;
}

class CategoricalLoss : public torch::autograd::Function<CategoricalLoss> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const Tensor& symbols,
                        int64_t axis) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<WithSumsOp>("genfast::_categorical_nll_with_sums");
    auto [loss, most, sum] = op.call(logits, symbols, axis);
    ctx->save_for_backward({logits, symbols, most, sum});
    ctx->saved_data["axis"] = axis;
    ctx->set_materialize_grads(false);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor()};
    const auto saved = ctx->get_saved_variables();
    return {backward_op().call(grads[0], saved[0], saved[1], saved[2], saved[3],
                               ctx->saved_data["axis"].toInt()),
            Tensor(), Tensor()};
  }
};

// Without this a second derivative would silently be zero.
class CategoricalGradient : public torch::autograd::Function<CategoricalGradient> {
 public:
  static Tensor forward(AutogradContext*, const Tensor& grad_loss, const Tensor& logits,
                        const Tensor& symbols, const Tensor& most, const Tensor& sum,
                        int64_t axis) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return backward_op().call(grad_loss, logits, symbols, most, sum, axis);
  }

  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK(false, kOp,
                ": expected a first derivative, got a request for a second one; use "
                "genfast.ops.categorical_nll_reference, which has every order");
  }
};

Tensor loss_autograd(const Tensor& logits, const Tensor& symbols, int64_t axis) {
  // A tangent, too, goes to the autograd function: it refuses it, and dropping it would mean zero.
  if ((at::GradMode::is_enabled() && logits.requires_grad()) || logits._fw_grad(0).defined()) {
    return CategoricalLoss::apply(logits, symbols, axis);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  static const auto op = find_op<ForwardOp>("genfast::categorical_nll");
  return op.call(logits, symbols, axis);
}

Tensor backward_autograd(const Tensor& grad_loss, const Tensor& logits, const Tensor& symbols,
                         const Tensor& most, const Tensor& sum, int64_t axis) {
  if (at::GradMode::is_enabled()) {
    return CategoricalGradient::apply(grad_loss, logits, symbols, most, sum, axis);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return backward_op().call(grad_loss, logits, symbols, most, sum, axis);
}

template <typename Device>
void register_kernels(torch::Library& m) {
  m.impl("categorical_nll", forward<Device>);
  m.impl("_categorical_nll_with_sums", with_sums<Device>);
  m.impl("_categorical_nll_backward", backward<Device>);
}

}  // namespace

// `symbols` has the shape of `logits` without `axis`; the losses are [N]. For the backward each
// site's largest logit is kept, and the sum of the exponentials of the distances to it.
TORCH_LIBRARY_FRAGMENT(genfast, m) {
  m.def("categorical_nll(Tensor logits, Tensor symbols, int axis) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "_categorical_nll_with_sums(Tensor logits, Tensor symbols, int axis) -> "
      "(Tensor loss, Tensor most, Tensor sum)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_categorical_nll_backward(Tensor grad_loss, Tensor logits, Tensor symbols, Tensor most, "
      "Tensor sum, int axis) -> Tensor",
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
  m.impl("categorical_nll", loss_autograd);
  m.impl("_categorical_nll_backward", backward_autograd);
}

}  // namespace genfast
