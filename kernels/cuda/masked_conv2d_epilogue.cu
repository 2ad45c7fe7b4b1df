// Activation, addend and residual of a convolution, and their gradient: one thread per unit and
// pixel, in the arithmetic of the CPU.
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/masked_conv2d_epilogue.h"

namespace genfast::cuda {
namespace {

constexpr int kThreads = 256;

template <typename acc_t>
__device__ EluExponentials<acc_t> elu_exponentials(acc_t a) {
  const acc_t magnitude = a < 0 ? -a : a;
  return {exp(-magnitude), expm1(-magnitude)};
}

template <typename acc_t>
__device__ GateExponentials<acc_t> gate_exponentials(acc_t a, acc_t b) {
  const acc_t twice = -2 * (a < 0 ? -a : a);
  return {exp(twice), expm1(twice), exp(b < 0 ? b : -b)};
}

// Calls function(n, unit, pixel) for what this thread has of N * units * pixels.
template <typename Function>
__device__ void for_each_pixel(int64_t N, int64_t units, int64_t pixels, Function&& function) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < N * units * pixels;
       i += step) {
    const int64_t row = i / pixels;
    function(row / units, row % units, i % pixels);
  }
}

template <Activation activation, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(const ConvEpilogue<scalar_t> params, const scalar_t* pre) {
  using acc_t = acc_type<scalar_t>;
  const int64_t units = epilogue_units(activation, params.C);
  const int64_t channels = result_channels(activation, params.C);
  for_each_pixel(params.N, units, params.pixels, [&](int64_t n, int64_t unit, int64_t pixel) {
    const auto read = [&](int64_t channel) {
      const int64_t at = (n * params.C + channel) * params.pixels + pixel;
      acc_t value = load<acc_t>(pre[at]);
      if (params.addend != nullptr) {
        value +=
            load<acc_t>(params.addend[n * params.addend_example + channel * params.addend_channel +
                                      pixel * params.addend_pixel]);
      }
      if (params.kept != nullptr) params.kept[at] = store<scalar_t>(value);
      return value;
    };
    const auto write = [&](int64_t channel, acc_t value) {
      const int64_t at = (n * channels + channel) * params.pixels + pixel;
      if (params.residual != nullptr) value += load<acc_t>(params.residual[at]);
      params.out[at] = store<scalar_t>(value);
    };
    const acc_t a = read(unit);
    if constexpr (activation == Activation::kNone) {
      write(unit, a);
    } else if constexpr (activation == Activation::kRelu) {
      write(unit, relu_value<acc_t>(a));
    } else if constexpr (activation == Activation::kGate) {
      const acc_t b = read(unit + units);
      write(unit, gate_value<acc_t>(a, b, gate_exponentials(a, b)));
    } else {
      const auto of = elu_exponentials(a);
      write(unit, elu_value<acc_t>(a, of));
      if constexpr (activation == Activation::kConcatElu) {
        write(unit + units, elu_value_of_minus<acc_t>(a, of));
      }
    }
  });
}

template <Activation activation, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const ConvEpilogueBackward<scalar_t> params) {
  using acc_t = acc_type<scalar_t>;
  const int64_t units = epilogue_units(activation, params.C);
  const int64_t channels = result_channels(activation, params.C);
  for_each_pixel(params.N, units, params.pixels, [&](int64_t n, int64_t unit, int64_t pixel) {
    const int64_t at = (n * params.C + unit) * params.pixels + pixel;
    const int64_t second = units * params.pixels;  // to the partner, or the channels of elu(-a)
    const scalar_t* grad = params.grad + (n * channels + unit) * params.pixels + pixel;
    const acc_t a = load<acc_t>(params.kept[at]), of_out = load<acc_t>(*grad);
    acc_t of_a = of_out;
    if constexpr (activation == Activation::kRelu) {
      of_a = relu_gradient<acc_t>(of_out, a);
    } else if constexpr (activation == Activation::kElu) {
      of_a = params.of_output ? elu_gradient_of_result<acc_t>(of_out, a)
                              : elu_gradient<acc_t>(of_out, a, elu_exponentials(a));
    } else if constexpr (activation == Activation::kConcatElu) {
      of_a = concat_elu_gradient<acc_t>(of_out, load<acc_t>(grad[second]), a, elu_exponentials(a));
    } else if constexpr (activation == Activation::kGate) {
      const acc_t b = load<acc_t>(params.kept[at + second]);
      const auto point = gate_point<acc_t>(a, b, gate_exponentials(a, b));
      params.grad_pre[at + second] = store<scalar_t>(of_out * point.slope_b);
      of_a = of_out * point.slope_a;
    }
    params.grad_pre[at] = store<scalar_t>(of_a);
  });
}

template <typename Params>
unsigned blocks_for(const Params& params) {
  return grid_size(params.N * epilogue_units(params.activation, params.C) * params.pixels,
                   kThreads);
}

}  // namespace

template <typename scalar_t>
void apply_epilogue(const ConvEpilogue<scalar_t>& params, const scalar_t* pre, void* stream) {
  with_activation(params.activation, [&]<Activation activation>() {
    apply_kernel<activation><<<blocks_for(params), kThreads, 0, as_stream(stream)>>>(params, pre);
  });
  check_launch("masked_conv2d apply_kernel");
}

template <typename scalar_t>
void epilogue_backward(const ConvEpilogueBackward<scalar_t>& params, void* stream) {
  with_activation(params.activation, [&]<Activation activation>() {
    backward_kernel<activation><<<blocks_for(params), kThreads, 0, as_stream(stream)>>>(params);
  });
  check_launch("masked_conv2d backward_kernel");
}

#define GENFAST_INSTANTIATE(scalar_t)                                                  \
  template void apply_epilogue(const ConvEpilogue<scalar_t>&, const scalar_t*, void*); \
  template void epilogue_backward(const ConvEpilogueBackward<scalar_t>&, void*);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
GENFAST_INSTANTIATE(__half)
GENFAST_INSTANTIATE(__nv_bfloat16)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cuda
