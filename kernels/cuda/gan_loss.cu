#include "kernels/cuda/half.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/gan_loss.h"

namespace genfast::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kPerBlock = 16 * kThreads;  // elements, so that small losses need one block only
constexpr int64_t kMostBlocks = 1024;

// The blocks' sums, added by the block that finishes last. It adds them in block order, so that the
// result does not depend on which block that is.
struct Workspace {
  double sums[kMostBlocks];
  unsigned int finished;  // blocks; zero before a launch
};

unsigned reduction_blocks(int64_t count) {
  return grid_size(count, kPerBlock, kMostBlocks);
}

// Returns to thread 0 of the last block the sum over all blocks, elsewhere nothing of use; sets
// `last` for every thread of that block.
__device__ double grid_sum(double value, Workspace* workspace, bool& last) {
  value = block_sum<kThreads>(value);
  last = true;
  if (gridDim.x == 1) return value;
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    workspace->sums[blockIdx.x] = value;
    __threadfence();  // the sum must be visible before the count
    is_last = atomicAdd(&workspace->finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  last = is_last;
  if (!last) return 0;
  __threadfence();
  double sum = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) {
    sum += *static_cast<const volatile double*>(workspace->sums + block);
  }
  return block_sum<kThreads>(sum);
}

// Calls function(i) for the elements of one side that belong to this thread.
template <typename Function>
__device__ void for_elements(int64_t count, Function&& function) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    function(i);
  }
}

template <GanForm form, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gan_loss_forward_kernel(GanLossForward<scalar_t> params, Workspace* workspace) {
  using acc_t = acc_type<scalar_t>;
  const auto mean = [&](const GanLogits<scalar_t>& side, scalar_t* slope) {
    double sum = 0;
    for_elements(side.count, [&](int64_t i) {
      const auto point = gan_point<form>(side.term, load<acc_t>(side.data[i]));
      if (slope != nullptr) slope[i] = store<scalar_t>(point.first);
      sum += static_cast<double>(point.value);
    });
    return side.count == 0 ? 0.0 : sum / static_cast<double>(side.count);
  };
  double sum = mean(params.fake, params.slope);
  sum += mean(params.real, params.slope ? params.slope + params.fake.count : nullptr);
  bool last;
  sum = grid_sum(sum, workspace, last);
  if (last && threadIdx.x == 0) *params.loss = static_cast<gan_loss_type<scalar_t>>(sum);
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gan_loss_backward_kernel(GanLossBackward<scalar_t> params) {
  using acc_t = acc_type<scalar_t>;
  const acc_t grad_loss = *params.grad_loss;
  const auto scale = [&](const scalar_t* slope, int64_t count, scalar_t* grad) {
    const acc_t factor = grad_loss / static_cast<acc_t>(count);
    for_elements(count,
                 [&](int64_t i) { grad[i] = store<scalar_t>(load<acc_t>(slope[i]) * factor); });
  };
  scale(params.slope, params.fake_count, params.grad_fake);
  scale(params.slope + params.fake_count, params.real_count, params.grad_real);
}

template <GanForm form, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gan_loss_double_backward_kernel(GanLossDoubleBackward<scalar_t> params, Workspace* workspace) {
  using acc_t = acc_type<scalar_t>;
  const acc_t grad_loss = *params.grad_loss;
  const auto mean = [&](const GanLogits<scalar_t>& side, const scalar_t* v, scalar_t* grad) {
    const acc_t factor = grad_loss / static_cast<acc_t>(side.count);
    double sum = 0;
    for_elements(side.count, [&](int64_t i) {
      const auto point = gan_point<form>(side.term, load<acc_t>(side.data[i]));
      const acc_t direction = load<acc_t>(v[i]);
      grad[i] = store<scalar_t>(direction * factor * point.second);
      sum += static_cast<double>(direction * point.first);
    });
    return side.count == 0 ? 0.0 : sum / static_cast<double>(side.count);
  };
  double sum = mean(params.fake, params.v_fake, params.grad_fake);
  sum += mean(params.real, params.v_real, params.grad_real);
  bool last;
  sum = grid_sum(sum, workspace, last);
  if (last && threadIdx.x == 0) *params.grad_grad_loss = static_cast<gan_loss_type<scalar_t>>(sum);
}

// The workspace with its counter at zero; null where one block needs none.
Workspace* prepare(void* memory, unsigned blocks, cudaStream_t stream) {
  auto* workspace = static_cast<Workspace*>(memory);
  if (blocks > 1) {
    cudaMemsetAsync(&workspace->finished, 0, sizeof(workspace->finished), stream);
    check_launch("gan_loss workspace");
  }
  return workspace;
}

}  // namespace

int64_t gan_loss_workspace(int64_t count) {
  return reduction_blocks(count) == 1 ? 0 : static_cast<int64_t>(sizeof(Workspace));
}

template <typename scalar_t>
void gan_loss_forward(const GanLossForward<scalar_t>& params, void* memory, void* stream) {
  const unsigned blocks = reduction_blocks(params.fake.count + params.real.count);
  Workspace* workspace = prepare(memory, blocks, as_stream(stream));
  at_gan_form(params.fake.term.form, [&]<GanForm form>() {
    gan_loss_forward_kernel<form><<<blocks, kThreads, 0, as_stream(stream)>>>(params, workspace);
  });
  check_launch("gan_loss_forward_kernel");
}

template <typename scalar_t>
void gan_loss_backward(const GanLossBackward<scalar_t>& params, void* stream) {
  const unsigned blocks = grid_size(params.fake_count + params.real_count, 4 * kThreads);
  gan_loss_backward_kernel<<<blocks, kThreads, 0, as_stream(stream)>>>(params);
  check_launch("gan_loss_backward_kernel");
}

template <typename scalar_t>
void gan_loss_double_backward(const GanLossDoubleBackward<scalar_t>& params, void* memory,
                              void* stream) {
  const unsigned blocks = reduction_blocks(params.fake.count + params.real.count);
  Workspace* workspace = prepare(memory, blocks, as_stream(stream));
  at_gan_form(params.fake.term.form, [&]<GanForm form>() {
    gan_loss_double_backward_kernel<form>
        <<<blocks, kThreads, 0, as_stream(stream)>>>(params, workspace);
  });
  check_launch("gan_loss_double_backward_kernel");
}

#define GENFAST_INSTANTIATE(scalar_t)                                            \
  template void gan_loss_forward(const GanLossForward<scalar_t>&, void*, void*); \
  template void gan_loss_backward(const GanLossBackward<scalar_t>&, void*);      \
  template void gan_loss_double_backward(const GanLossDoubleBackward<scalar_t>&, void*, void*);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
GENFAST_INSTANTIATE(__half)
GENFAST_INSTANTIATE(__nv_bfloat16)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cuda
