#include "kernels/cuda/half.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/gated_activation.h"

namespace genfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostVectorBytes = 16;  // that one instruction loads or stores
constexpr int64_t kPerThread = 4;         // vectors of a row

template <typename scalar_t, int count>
struct alignas(sizeof(scalar_t) * count) Pack {
  scalar_t lane[count];
};

template <typename acc_t>
__device__ GateExponentials<acc_t> exponentials(acc_t a, acc_t b) {
  const acc_t twice = -2 * (a < 0 ? -a : a);
  return {exp(twice), expm1(twice), exp(b < 0 ? b : -b)};
}

// A vector of a tensor and, added to it, of the condition.
template <int width, typename scalar_t>
__device__ void read(const scalar_t* x, const scalar_t* condition, int64_t k, int64_t step,
                     acc_type<scalar_t> (&to)[width]) {
  using acc_t = acc_type<scalar_t>;
  const auto values = *reinterpret_cast<const Pack<scalar_t, width>*>(x + k);
#pragma unroll
  for (int l = 0; l < width; ++l) to[l] = load<acc_t>(values.lane[l]);
  if (condition == nullptr) return;
  if (step == 0) {
    const acc_t added = load<acc_t>(*condition);
#pragma unroll
    for (int l = 0; l < width; ++l) to[l] += added;
  } else {
    const auto added = *reinterpret_cast<const Pack<scalar_t, width>*>(condition + k);
#pragma unroll
    for (int l = 0; l < width; ++l) to[l] += load<acc_t>(added.lane[l]);
  }
}

// Calls function(i, j, row, k) for every vector of every row that this thread has. A block is a
// square of threads: along a row, and over rows where rows are short.
template <int width, typename Function>
__device__ void for_vectors(const GateShape& shape, Function&& function) {
  const int64_t vectors = shape.length / width;
  const int64_t pieces = (vectors + blockDim.x * kPerThread - 1) / (blockDim.x * kPerThread);
  const int64_t groups = (shape.outer * shape.inner + blockDim.y - 1) / blockDim.y;
  for (int64_t task = blockIdx.x; task < groups * pieces; task += gridDim.x) {
    const int64_t row = task / pieces * blockDim.y + threadIdx.y;
    if (row >= shape.outer * shape.inner) continue;
    const int64_t i = row / shape.inner, j = row % shape.inner;
    const int64_t first = task % pieces * blockDim.x * kPerThread + threadIdx.x;
#pragma unroll
    for (int64_t n = 0; n < kPerThread; ++n) {
      const int64_t vector = first + n * blockDim.x;
      if (vector < vectors) function(i, j, row, vector * width);
    }
  }
}

template <typename scalar_t>
__device__ const scalar_t* at(const GatePairs<const scalar_t>& pairs, int64_t i, int64_t j) {
  return pairs.data == nullptr ? nullptr : pairs.data + i * pairs.outer + j * pairs.inner;
}

// The arguments of the gates of one vector.
template <int width, typename scalar_t, typename Params>
__device__ void read_pairs(const Params& params, int64_t i, int64_t j, int64_t k,
                           acc_type<scalar_t> (&a)[width], acc_type<scalar_t> (&b)[width]) {
  const scalar_t* x = at(params.x, i, j);
  const scalar_t* condition = at(params.condition.pairs, i, j);
  read<width>(x, condition, k, params.condition.step, a);
  read<width>(x + params.x.half,
              condition == nullptr ? nullptr : condition + params.condition.pairs.half, k,
              params.condition.step, b);
}

template <int width, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gated_activation_kernel(GatedActivation<scalar_t> params) {
  using acc_t = acc_type<scalar_t>;
  for_vectors<width>(params.shape, [&](int64_t i, int64_t j, int64_t row, int64_t k) {
    acc_t a[width], b[width];
    read_pairs<width, scalar_t>(params, i, j, k, a, b);
    Pack<scalar_t, width> out;
#pragma unroll
    for (int l = 0; l < width; ++l) {
      out.lane[l] = store<scalar_t>(gate_value<acc_t>(a[l], b[l], exponentials(a[l], b[l])));
    }
    *reinterpret_cast<Pack<scalar_t, width>*>(params.out + row * params.shape.length + k) = out;
  });
}

template <int width, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gated_activation_backward_kernel(GatedActivationBackward<scalar_t> params) {
  using acc_t = acc_type<scalar_t>;
  for_vectors<width>(params.shape, [&](int64_t i, int64_t j, int64_t row, int64_t k) {
    acc_t a[width], b[width], of_out[width];
    read_pairs<width, scalar_t>(params, i, j, k, a, b);
    read<width, scalar_t>(params.grad + row * params.shape.length, nullptr, k, 0, of_out);
    Pack<scalar_t, width> of_a, of_b;
#pragma unroll
    for (int l = 0; l < width; ++l) {
      const auto point = gate_point<acc_t>(a[l], b[l], exponentials(a[l], b[l]));
      of_a.lane[l] = store<scalar_t>(of_out[l] * point.slope_a);
      of_b.lane[l] = store<scalar_t>(of_out[l] * point.slope_b);
    }
    scalar_t* to = params.grad_x.data + i * params.grad_x.outer + j * params.grad_x.inner + k;
    *reinterpret_cast<Pack<scalar_t, width>*>(to) = of_a;
    *reinterpret_cast<Pack<scalar_t, width>*>(to + params.grad_x.half) = of_b;
  });
}

// Whether vectors of `width` elements tile the rows, each at a multiple of its size.
template <typename scalar_t>
class Alignment {
 public:
  explicit Alignment(int width) : width_(width) {}

  bool of(const void* data, int64_t outer = 0, int64_t inner = 0, int64_t half = 0) const {
    const auto bytes = static_cast<uintptr_t>(width_ * sizeof(scalar_t));
    return reinterpret_cast<uintptr_t>(data) % bytes == 0 && outer % width_ == 0 &&
           inner % width_ == 0 && half % width_ == 0;
  }
  template <typename Pairs>
  bool of_pairs(const Pairs& pairs) const {
    return of(pairs.data, pairs.outer, pairs.inner, pairs.half);
  }
  bool of_condition(const GateCondition<scalar_t>& condition) const {
    return condition.step == 0 || of_pairs(condition.pairs);
  }

 private:
  int64_t width_;
};

struct Launch {
  dim3 threads;
  unsigned blocks;
};

Launch launch_for(const GateShape& shape, int width) {
  const int64_t vectors = shape.length / width;
  unsigned along = 1;
  while (along < kThreads && along < vectors) along *= 2;
  const unsigned rows = kThreads / along;
  const int64_t pieces = (vectors + along * kPerThread - 1) / (along * kPerThread);
  const int64_t groups = (shape.outer * shape.inner + rows - 1) / rows;
  return {dim3(along, rows), grid_size(groups * pieces, 1)};
}

}  // namespace

template <typename scalar_t>
void gated_activation(const GatedActivation<scalar_t>& params, void* stream) {
  constexpr int width = kMostVectorBytes / sizeof(scalar_t);
  const Alignment<scalar_t> aligned(width);
  const bool wide = params.shape.length % width == 0 && aligned.of_pairs(params.x) &&
                    aligned.of_condition(params.condition) && aligned.of(params.out);
  const Launch launch = launch_for(params.shape, wide ? width : 1);
  if (wide) {
    gated_activation_kernel<width><<<launch.blocks, launch.threads, 0, as_stream(stream)>>>(params);
  } else {
    gated_activation_kernel<1><<<launch.blocks, launch.threads, 0, as_stream(stream)>>>(params);
  }
  check_launch("gated_activation_kernel");
}

template <typename scalar_t>
void gated_activation_backward(const GatedActivationBackward<scalar_t>& params, void* stream) {
  constexpr int width = kMostVectorBytes / sizeof(scalar_t);
  const Alignment<scalar_t> aligned(width);
  const bool wide = params.shape.length % width == 0 && aligned.of_pairs(params.x) &&
                    aligned.of_condition(params.condition) && aligned.of(params.grad) &&
                    aligned.of_pairs(params.grad_x);
  const Launch launch = launch_for(params.shape, wide ? width : 1);
  if (wide) {
    gated_activation_backward_kernel<width>
        <<<launch.blocks, launch.threads, 0, as_stream(stream)>>>(params);
  } else {
    gated_activation_backward_kernel<1>
        <<<launch.blocks, launch.threads, 0, as_stream(stream)>>>(params);
  }
  check_launch("gated_activation_backward_kernel");
}

#define GENFAST_INSTANTIATE(scalar_t)                                      \
  template void gated_activation(const GatedActivation<scalar_t>&, void*); \
  template void gated_activation_backward(const GatedActivationBackward<scalar_t>&, void*);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
GENFAST_INSTANTIATE(__half)
GENFAST_INSTANTIATE(__nv_bfloat16)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cuda
