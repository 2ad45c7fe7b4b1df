#include "kernels/cuda/half.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/gan_loss.h"

namespace genfast::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kPerBlock = 16 * kThreads;  // elements, so that small losses need one block only
constexpr int64_t kMostBlocks = 1024;

// Means over both sides, kept for the next launch.
struct SideMeans {
  double fake, real;
};

// The blocks' sums, added by the block that finishes last. It adds them in block order, so that the
// result does not depend on which block that is.
struct Workspace {
  double sums[3][kMostBlocks];
  SideMeans logits, directions, grads;  // kAverages only
  unsigned int finished;                // blocks; zero before and after a launch
};

unsigned reduction_blocks(int64_t count) {
  return grid_size(count, kPerBlock, kMostBlocks);
}

// Turns each value into its sum over all blocks, for thread 0 of the block that finishes last;
// elsewhere they are of no use. Returns whether this thread has them.
template <int kCount>
__device__ bool grid_sums(double (&values)[kCount], Workspace* workspace) {
  for (double& value : values) value = block_sum<kThreads>(value);
  if (gridDim.x == 1) return threadIdx.x == 0;
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kCount; ++i) workspace->sums[i][blockIdx.x] = values[i];
    __threadfence();  // the sums must be visible before the count
    is_last = atomicAdd(&workspace->finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return false;
  __threadfence();
  for (int i = 0; i < kCount; ++i) {
    double sum = 0;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) {
      sum += *static_cast<const volatile double*>(workspace->sums[i] + block);
    }
    values[i] = block_sum<kThreads>(sum);
  }
  if (threadIdx.x == 0) workspace->finished = 0;  // for the next launch
  return threadIdx.x == 0;
}

// Calls function(i) for the elements of one side that belong to this thread.
template <typename Function>
__device__ void for_elements(int64_t count, Function&& function) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    function(i);
  }
}

// kAverages: the means that the terms subtract, of the logits or of the directions.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gan_loss_means_kernel(const scalar_t* fake, int64_t fake_count, const scalar_t* real,
                          int64_t real_count, Workspace* workspace, SideMeans* means) {
  double sums[2] = {};
  for_elements(fake_count, [&](int64_t i) { sums[0] += load<double>(fake[i]); });
  for_elements(real_count, [&](int64_t i) { sums[1] += load<double>(real[i]); });
  if (grid_sums(sums, workspace)) {
    *means = {sums[0] / static_cast<double>(fake_count), sums[1] / static_cast<double>(real_count)};
  }
}

template <GanForm form, GanPairing pairing, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gan_loss_forward_kernel(GanLossForward<scalar_t> params, Workspace* workspace) {
  using acc_t = acc_type<scalar_t>;
  double sums[3] = {};  // of the terms / count; of the slopes of each side
  const auto add = [&](const GanLogits<scalar_t>& side, acc_t minus, scalar_t* slope,
                       double& slope_sum) {
    double sum = 0;
    for_elements(side.count, [&](int64_t i) {
      acc_t x = load<acc_t>(side.data[i]) - minus;
      if constexpr (pairing == GanPairing::kPairs) x -= load<acc_t>(params.real.data[i]);
      const auto point = gan_point<form>(side.term, x);
      if (slope != nullptr) slope[i] = store<scalar_t>(point.first);
      sum += static_cast<double>(point.value);
      if constexpr (pairing == GanPairing::kAverages) {
        slope_sum += static_cast<double>(point.first);
      }
    });
    if (side.count > 0) sums[0] += sum / static_cast<double>(side.count);
  };
  SideMeans means = {0, 0};
  if constexpr (pairing == GanPairing::kAverages) means = workspace->logits;
  add(params.fake, static_cast<acc_t>(means.real), params.slope, sums[1]);
  scalar_t* real_slope = params.slope ? params.slope + params.fake.count : nullptr;
  if constexpr (pairing != GanPairing::kPairs) {
    add(params.real, static_cast<acc_t>(means.fake), real_slope, sums[2]);
  }
  if constexpr (pairing == GanPairing::kAverages) {
    if (!grid_sums(sums, workspace)) return;
    if (real_slope != nullptr) {
      scalar_t* mean_slopes = real_slope + params.real.count;
      mean_slopes[0] =
          store<scalar_t>(static_cast<acc_t>(sums[1] / static_cast<double>(params.fake.count)));
      mean_slopes[1] =
          store<scalar_t>(static_cast<acc_t>(sums[2] / static_cast<double>(params.real.count)));
    }
    *params.loss = static_cast<gan_loss_type<scalar_t>>(sums[0]);
  } else {
    double loss[1] = {sums[0]};
    if (grid_sums(loss, workspace)) *params.loss = static_cast<gan_loss_type<scalar_t>>(loss[0]);
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gan_loss_backward_kernel(GanLossBackward<scalar_t> params) {
  using acc_t = acc_type<scalar_t>;
  const acc_t grad_loss = *params.grad_loss;
  const acc_t fake_factor = grad_loss / static_cast<acc_t>(params.fake_count);
  if (params.pairing == GanPairing::kPairs) {
    for_elements(params.fake_count, [&](int64_t i) {
      const acc_t grad = load<acc_t>(params.slope[i]) * fake_factor;
      params.grad_fake[i] = store<scalar_t>(grad);
      params.grad_real[i] = store<scalar_t>(-grad);
    });
    return;
  }
  const auto scale = [&](const scalar_t* slope, acc_t minus, acc_t factor, int64_t count,
                         scalar_t* grad) {
    for_elements(count, [&](int64_t i) {
      grad[i] = store<scalar_t>((load<acc_t>(slope[i]) - minus) * factor);
    });
  };
  const acc_t real_factor = grad_loss / static_cast<acc_t>(params.real_count);
  if (params.slope == nullptr) {
    const scalar_t fake = store<scalar_t>(static_cast<acc_t>(params.fake_slope) * fake_factor);
    const scalar_t real = store<scalar_t>(static_cast<acc_t>(params.real_slope) * real_factor);
    for_elements(params.fake_count, [&](int64_t i) { params.grad_fake[i] = fake; });
    for_elements(params.real_count, [&](int64_t i) { params.grad_real[i] = real; });
    return;
  }
  acc_t means[2] = {0, 0};
  if (params.pairing == GanPairing::kAverages) {
    const scalar_t* mean_slopes = params.slope + params.fake_count + params.real_count;
    for (int i = 0; i < 2; ++i) means[i] = load<acc_t>(mean_slopes[i]);
  }
  scale(params.slope, means[1], fake_factor, params.fake_count, params.grad_fake);
  scale(params.slope + params.fake_count, means[0], real_factor, params.real_count,
        params.grad_real);
}

// With kAverages run twice: `writes` false sums up, true writes the gradients, which need the sums.
template <GanForm form, GanPairing pairing, bool writes, typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    gan_loss_double_backward_kernel(GanLossDoubleBackward<scalar_t> params, Workspace* workspace) {
  using acc_t = acc_type<scalar_t>;
  constexpr bool averages = pairing == GanPairing::kAverages;
  const acc_t grad_loss = *params.grad_loss;
  double sums[3] = {};  // of v * slope / count; of v * (second derivative) of each side
  SideMeans logits = {0, 0}, directions = {0, 0}, grads = {0, 0};
  if constexpr (averages) {
    logits = workspace->logits;
    directions = workspace->directions;
    if constexpr (writes) grads = workspace->grads;
  }
  const auto add = [&](const GanLogits<scalar_t>& side, const scalar_t* v, double minus,
                       double v_minus, double grad_minus, scalar_t* grad, double& grad_sum) {
    const acc_t factor = grad_loss / static_cast<acc_t>(side.count);
    double sum = 0;
    for_elements(side.count, [&](int64_t i) {
      acc_t x = load<acc_t>(side.data[i]) - static_cast<acc_t>(minus);
      acc_t direction = load<acc_t>(v[i]) - static_cast<acc_t>(v_minus);
      if constexpr (pairing == GanPairing::kPairs) {
        x -= load<acc_t>(params.real.data[i]);
        direction -= load<acc_t>(params.v_real[i]);
      }
      const auto point = gan_point<form>(side.term, x);
      const acc_t bend = direction * point.second;
      if constexpr (writes) {
        const acc_t result = (bend - static_cast<acc_t>(grad_minus)) * factor;
        grad[i] = store<scalar_t>(result);
        if constexpr (pairing == GanPairing::kPairs) params.grad_real[i] = store<scalar_t>(-result);
      }
      sum += static_cast<double>(direction * point.first);
      if constexpr (averages) grad_sum += static_cast<double>(bend);
    });
    if (side.count > 0) sums[0] += sum / static_cast<double>(side.count);
  };
  add(params.fake, params.v_fake, logits.real, directions.real, grads.real, params.grad_fake,
      sums[1]);
  if constexpr (pairing != GanPairing::kPairs) {
    add(params.real, params.v_real, logits.fake, directions.fake, grads.fake, params.grad_real,
        sums[2]);
  }
  if constexpr (averages && writes) return;  // the first run has left the sums
  if constexpr (averages) {
    if (!grid_sums(sums, workspace)) return;
    workspace->grads = {sums[1] / static_cast<double>(params.fake.count),
                        sums[2] / static_cast<double>(params.real.count)};
    *params.grad_grad_loss = static_cast<gan_loss_type<scalar_t>>(sums[0]);
  } else {
    double total[1] = {sums[0]};
    if (grid_sums(total, workspace)) {
      *params.grad_grad_loss = static_cast<gan_loss_type<scalar_t>>(total[0]);
    }
  }
}

// The workspace with its counter at zero; null where nothing needs one.
Workspace* prepare(void* memory, cudaStream_t stream) {
  auto* workspace = static_cast<Workspace*>(memory);
  if (workspace != nullptr) {
    cudaMemsetAsync(&workspace->finished, 0, sizeof(workspace->finished), stream);
    check_launch("gan_loss workspace");
  }
  return workspace;
}

// Calls function.template operator()<form, pairing>(). The relativistic kinds have one form.
template <typename Function>
void at_form_and_pairing(GanForm form, GanPairing pairing, Function&& function) {
  if (pairing == GanPairing::kPairs) {
    function.template operator()<GanForm::kSoftplus, GanPairing::kPairs>();
  } else if (pairing == GanPairing::kAverages) {
    function.template operator()<GanForm::kSoftplus, GanPairing::kAverages>();
  } else {
    at_gan_form(
        form, [&]<GanForm known>() { function.template operator()<known, GanPairing::kAlone>(); });
  }
}

}  // namespace

int64_t gan_loss_workspace(GanPairing pairing, int64_t count) {
  const bool none = reduction_blocks(count) == 1 && pairing != GanPairing::kAverages;
  return none ? 0 : static_cast<int64_t>(sizeof(Workspace));
}

template <typename scalar_t>
void gan_loss_forward(const GanLossForward<scalar_t>& params, void* memory, void* stream) {
  const unsigned blocks = reduction_blocks(params.fake.count + params.real.count);
  Workspace* workspace = prepare(memory, as_stream(stream));
  at_form_and_pairing(params.fake.term.form, params.pairing,
                      [&]<GanForm form, GanPairing pairing>() {
                        if constexpr (pairing == GanPairing::kAverages) {
                          gan_loss_means_kernel<<<blocks, kThreads, 0, as_stream(stream)>>>(
                              params.fake.data, params.fake.count, params.real.data,
                              params.real.count, workspace, &workspace->logits);
                        }
                        gan_loss_forward_kernel<form, pairing>
                            <<<blocks, kThreads, 0, as_stream(stream)>>>(params, workspace);
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
  Workspace* workspace = prepare(memory, as_stream(stream));
  at_form_and_pairing(params.fake.term.form, params.pairing,
                      [&]<GanForm form, GanPairing pairing>() {
                        if constexpr (pairing == GanPairing::kAverages) {
                          gan_loss_means_kernel<<<blocks, kThreads, 0, as_stream(stream)>>>(
                              params.fake.data, params.fake.count, params.real.data,
                              params.real.count, workspace, &workspace->logits);
                          gan_loss_means_kernel<<<blocks, kThreads, 0, as_stream(stream)>>>(
                              params.v_fake, params.fake.count, params.v_real, params.real.count,
                              workspace, &workspace->directions);
                          gan_loss_double_backward_kernel<form, pairing, false>
                              <<<blocks, kThreads, 0, as_stream(stream)>>>(params, workspace);
                        }
                        gan_loss_double_backward_kernel<form, pairing, true>
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
