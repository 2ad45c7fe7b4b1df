// causal_conv1d on the CPU: allocation, and the split over threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/causal_conv1d.h"

namespace genfast::causal {
namespace {

using at::Tensor;
using std::optional;

constexpr int64_t kMostChunks = 16;   // matrices of weight gradients that are added up at the end
constexpr int64_t kSumGrain = 16384;  // numbers to add that make another thread worthwhile

template <typename scalar_t>
const scalar_t* input(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<scalar_t>() : nullptr;
}

template <typename scalar_t>
scalar_t* output(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<scalar_t>() : nullptr;
}

template <typename scalar_t>
CausalConv1dInputs<scalar_t> inputs_of(const Layer& layer, const CausalConv1dShape& shape) {
  const bool moments = layer.condition.defined() && layer.condition.size(2) == shape.T;
  return {shape,
          input<scalar_t>(layer.x),
          input<scalar_t>(layer.weight),
          input<scalar_t>(layer.bias),
          input<scalar_t>(layer.condition),
          moments ? 1 : 0,
          input<scalar_t>(layer.residual_weight),
          input<scalar_t>(layer.residual_bias),
          input<scalar_t>(layer.skip_weight),
          input<scalar_t>(layer.skip_bias)};
}

// Memory of one thread: torch's number of threads is no bound where the compiler brought another
// OpenMP library than torch's.
template <typename scalar_t>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : memory_(c10::GetCPUAllocator()->allocate(static_cast<size_t>(count) * sizeof(scalar_t))) {}
  scalar_t* get() const { return static_cast<scalar_t*>(memory_.get()); }

 private:
  c10::DataPtr memory_;
};

// Calls function(level, scratch, begin, end) for ranges of tasks.
template <typename scalar_t, typename Function>
void in_parallel(int64_t tasks, int64_t scratch_size, Function&& function) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const Scratch<scalar_t> scratch(scratch_size);
    cpu::at_simd_level([&](auto level) { function(level, scratch.get(), begin, end); });
  });
}

// The sums over the first axis of [count, size].
template <typename scalar_t>
void add_up(const scalar_t* sums, int64_t count, int64_t size, scalar_t* to) {
  const int64_t grain = std::max<int64_t>(64, kSumGrain / std::max<int64_t>(1, count));
  at::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) {
    cpu::at_simd_level(
        [&](auto level) { cpu::causal_conv1d_add_up<level()>(sums, count, size, to, begin, end); });
  });
}

Layer dense(const Layer& layer) {
  return layer.map([](const Tensor& each) { return each.defined() ? each.contiguous() : each; });
}

Layer widened(const Layer& layer) {
  return layer.map([](const Tensor& each) { return each.defined() ? each.to(at::kFloat) : each; });
}

std::tuple<Tensor, Tensor> run_forward(const Layer& given, int64_t dilation) {
  const CausalConv1dShape shape = check_layer(given, dilation);
  const at::ScalarType dtype = given.x.scalar_type();
  if (at::isReducedFloatingType(dtype)) {
    auto [out, skip] = run_forward(widened(given), dilation);
    return {out.to(dtype), skip.to(dtype)};
  }
  const Layer layer = dense(given);
  const Tensor skip = at::empty({shape.N, shape.S, shape.T}, layer.x.options());
  const Tensor out = shape.residual ? at::empty({shape.N, shape.R, shape.T}, layer.x.options())
                                    : at::empty({0}, layer.x.options());
  if (skip.numel() == 0) return {out, skip};
  AT_DISPATCH_FLOATING_TYPES(dtype, kOp, [&] {
    const auto inputs = inputs_of<scalar_t>(layer, shape);
    const Tensor memory =
        at::empty({2 * shape.G * shape.K() + shape.heads() * shape.G}, layer.x.options());
    scalar_t* gates = memory.mutable_data_ptr<scalar_t>();
    const CausalConv1dPacked<scalar_t> packed{gates, gates + 2 * shape.G * shape.K(), nullptr,
                                              nullptr};
    const CausalConv1dOutputs<scalar_t> outputs{output<scalar_t>(out), output<scalar_t>(skip)};
    cpu::at_simd_level([&](auto level) { cpu::causal_conv1d_pack<level()>(inputs, packed); });
    in_parallel<scalar_t>(
        cpu::causal_conv1d_tiles(shape), cpu::causal_conv1d_scratch(shape).forward,
        [&](auto level, scalar_t* scratch, int64_t begin, int64_t end) {
          cpu::causal_conv1d<level()>(inputs, packed, outputs, scratch, begin, end);
        });
  });
  return {out, skip};
}

// The matrices that the kernels add up, and what they are summed to.
struct Sums {
  Tensor weight, heads, rows;
  int64_t chunks, tiles;

  Sums(const CausalConv1dShape& shape, const at::TensorOptions& options)
      : tiles(cpu::causal_conv1d_tiles(shape)) {
    chunks = std::min(tiles, kMostChunks);
    const auto columns = cpu::causal_conv1d_columns;
    weight = at::empty({chunks, 2 * shape.G, columns(shape.K())}, options);
    heads = at::empty({chunks, shape.heads(), columns(shape.G)}, options);
    rows = at::empty({tiles, 2 * shape.G + shape.heads()}, options);
  }

  // [rows, columns] of the sum over chunks of [chunks, rows, wider].
  template <typename scalar_t>
  Tensor total(const Tensor& sums, int64_t columns) const {
    const Tensor sum = at::empty({sums.size(1), sums.size(2)}, sums.options());
    add_up(sums.const_data_ptr<scalar_t>(), chunks, sum.numel(), sum.mutable_data_ptr<scalar_t>());
    return sum.narrow(1, 0, columns);
  }

  // [N, 2 G + heads]
  template <typename scalar_t>
  Tensor per_example(int64_t N) const {
    const int64_t width = rows.size(1), each = tiles / N;
    const Tensor sum = at::empty({N, width}, rows.options());
    for (int64_t n = 0; n < N; ++n) {
      add_up(rows.const_data_ptr<scalar_t>() + n * each * width, each, width,
             sum.mutable_data_ptr<scalar_t>() + n * width);
    }
    return sum;
  }
};

Layer run_backward(const Tensor& grad_out, const Tensor& grad_skip, const Layer& given,
                   int64_t dilation) {
  const CausalConv1dShape shape = check_layer(given, dilation);
  const auto check_grad = [&](const char* name, const Tensor& grad, int64_t channels) {
    const std::vector<int64_t> sizes{shape.N, channels, shape.T};
    TORCH_CHECK(
        grad.defined() && grad.sizes() == at::IntArrayRef(sizes) &&
            grad.scalar_type() == given.x.scalar_type() && grad.device() == given.x.device(),
        kOp, ": expected ", name, " of shape ", at::IntArrayRef(sizes),
        " and of the dtype and device of x (", given.x.scalar_type(), ", ", given.x.device(),
        "), got ", name, ".shape=", grad.defined() ? grad.sizes() : at::IntArrayRef{});
  };
  if (shape.residual) check_grad("grad_out", grad_out, shape.R);
  check_grad("grad_skip", grad_skip, shape.S);
  const at::ScalarType dtype = given.x.scalar_type();
  if (at::isReducedFloatingType(dtype)) {
    const auto wide = [](const Tensor& tensor) {
      return tensor.defined() ? tensor.to(at::kFloat) : tensor;
    };
    return run_backward(wide(grad_out), wide(grad_skip), widened(given), dilation)
        .map([&](const Tensor& grad) { return grad.to(dtype); });
  }
  const Layer layer = dense(given);
  const auto options = layer.x.options();
  const bool moments = layer.condition.defined() && layer.condition.size(2) == shape.T;
  if (shape.N * shape.T == 0) {
    return layer.map([&](const Tensor& each) {
      return each.defined() ? at::zeros(each.sizes(), options) : at::empty({0}, options);
    });
  }
  const Tensor of_out = shape.residual ? grad_out.contiguous() : Tensor();
  const Tensor of_skip = grad_skip.contiguous();
  Layer grads;
  grads.x = at::empty(layer.x.sizes(), options);
  const Tensor grad_h = at::empty({shape.N, 2 * shape.G, shape.T}, options);
  AT_DISPATCH_FLOATING_TYPES(dtype, kOp, [&] {
    const auto inputs = inputs_of<scalar_t>(layer, shape);
    const int64_t conv = 2 * shape.G * shape.K();
    const Tensor memory = at::empty({2 * conv + shape.heads() * shape.G}, options);
    scalar_t* gates = memory.mutable_data_ptr<scalar_t>();
    const CausalConv1dPacked<scalar_t> packed{gates, nullptr, gates + 2 * conv, gates + conv};
    const Sums sums(shape, options);
    const CausalConv1dGradients<scalar_t> gradients{
        input<scalar_t>(of_out),       input<scalar_t>(of_skip),
        output<scalar_t>(grads.x),     output<scalar_t>(grad_h),
        output<scalar_t>(sums.weight), output<scalar_t>(sums.heads),
        output<scalar_t>(sums.rows),   sums.chunks};
    const auto scratch_size = cpu::causal_conv1d_scratch(shape);
    cpu::at_simd_level([&](auto level) { cpu::causal_conv1d_pack<level()>(inputs, packed); });
    in_parallel<scalar_t>(sums.chunks, scratch_size.backward,
                          [&](auto level, scalar_t* scratch, int64_t begin, int64_t end) {
                            cpu::causal_conv1d_backward<level()>(inputs, packed, gradients, scratch,
                                                                 begin, end);
                          });
    in_parallel<scalar_t>(sums.tiles, scratch_size.backward_x,
                          [&](auto level, scalar_t* scratch, int64_t begin, int64_t end) {
                            cpu::causal_conv1d_backward_x<level()>(inputs, packed, gradients,
                                                                   scratch, begin, end);
                          });
    grads.weight = sums.total<scalar_t>(sums.weight, shape.K())
                       .unflatten(1, {shape.taps, shape.R})
                       .transpose(1, 2)
                       .contiguous();
    const Tensor heads = sums.total<scalar_t>(sums.heads, shape.G).unsqueeze(2);
    const int64_t residual_rows = shape.heads() - shape.S;
    grads.residual_weight = heads.narrow(0, 0, residual_rows).contiguous();
    grads.skip_weight = heads.narrow(0, residual_rows, shape.S).contiguous();
    const Tensor each = sums.per_example<scalar_t>(shape.N);
    const Tensor rows = at::empty({each.size(1)}, options);
    add_up(each.const_data_ptr<scalar_t>(), shape.N, each.size(1),
           rows.mutable_data_ptr<scalar_t>());
    const auto part = [&](int64_t first, int64_t count) {
      return rows.narrow(0, first, count).clone();
    };
    grads.bias = part(0, 2 * shape.G);
    grads.residual_bias = part(2 * shape.G, residual_rows);
    grads.skip_bias = part(2 * shape.G + residual_rows, shape.S);
    grads.condition = moments ? grad_h : each.narrow(1, 0, 2 * shape.G).unsqueeze(2).contiguous();
  });
  const Tensor nothing = at::empty({0}, options);
  if (!layer.bias.defined()) grads.bias = nothing;
  if (!layer.condition.defined()) grads.condition = nothing;
  if (!shape.residual) grads.residual_weight = nothing;
  if (!layer.residual_bias.defined()) grads.residual_bias = nothing;
  if (!layer.skip_bias.defined()) grads.skip_bias = nothing;
  return grads;
}

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& x, const Tensor& weight,
                                       const optional<Tensor>& bias,
                                       const optional<Tensor>& condition,
                                       const optional<Tensor>& residual_weight,
                                       const optional<Tensor>& residual_bias,
                                       const Tensor& skip_weight, const optional<Tensor>& skip_bias,
                                       int64_t dilation) {
  const auto value = [](const optional<Tensor>& tensor) { return tensor.value_or(Tensor()); };
  return run_forward({x, weight, value(bias), value(condition), value(residual_weight),
                      value(residual_bias), skip_weight, value(skip_bias)},
                     dilation);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_cpu(
    const optional<Tensor>& grad_out, const Tensor& grad_skip, const Tensor& x,
    const Tensor& weight, const optional<Tensor>& bias, const optional<Tensor>& condition,
    const optional<Tensor>& residual_weight, const optional<Tensor>& residual_bias,
    const Tensor& skip_weight, const optional<Tensor>& skip_bias, int64_t dilation) {
  const auto value = [](const optional<Tensor>& tensor) { return tensor.value_or(Tensor()); };
  const Layer grads =
      run_backward(value(grad_out), grad_skip,
                   {x, weight, value(bias), value(condition), value(residual_weight),
                    value(residual_bias), skip_weight, value(skip_bias)},
                   dilation);
  return {grads.x,           grads.weight,          grads.bias,
          grads.condition,   grads.residual_weight, grads.residual_bias,
          grads.skip_weight, grads.skip_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  m.impl("causal_conv1d", forward_cpu);
  m.impl("_causal_conv1d_backward", backward_cpu);
}

}  // namespace genfast::causal
