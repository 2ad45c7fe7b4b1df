#include "kernels/philox.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "csrc/checks.h"
#include "csrc/seed.h"

#if defined(GENFAST_WITH_CUDA)
#include "csrc/cuda_stream.h"
#endif

namespace genfast {
namespace {

constexpr const char* kOp = "philox";
constexpr int64_t kGrain = 16384;  // elements of work that make another thread worthwhile

template <typename scalar_t>
PhiloxFill<scalar_t> fill_params(at::Tensor& out, const Seed& seed, int64_t offset, bool normal) {
  return {out.mutable_data_ptr<scalar_t>(), out.numel(), offset, seed.value,
          normal ? PhiloxKind::kNormal : PhiloxKind::kUniform};
}

void check_arguments(const at::Tensor& out, int64_t offset) {
  check_floating(kOp, "out", out);
  check_offset(kOp, offset, out.numel());
  TORCH_CHECK(out.is_contiguous(), kOp,
              ": expected a contiguous tensor, got out.strides=", out.strides());
}

void philox_fill_cpu(at::Tensor out, const at::Tensor& seed, int64_t offset, bool normal) {
  check_arguments(out, offset);
  const Seed seed_value = read_seed(kOp, seed, out.device());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), kOp, [&] {
    const auto params = fill_params<scalar_t>(out, seed_value, offset, normal);
    at::parallel_for(0, params.count, kGrain, [&](int64_t begin, int64_t end) {
      cpu::at_simd_level([&](auto level) { cpu::philox_fill<level()>(params, begin, end); });
    });
  });
}

#if defined(GENFAST_WITH_CUDA)
void philox_fill_cuda(at::Tensor out, const at::Tensor& seed, int64_t offset, bool normal) {
  check_arguments(out, offset);
  const Seed seed_value = read_seed(kOp, seed, out.device());
  const CudaLaunch launch(out.device());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), kOp, [&] {
    cuda::philox_fill(fill_params<scalar_t>(out, seed_value, offset, normal),
                      seed_value.device_value, launch.stream());
  });
}
#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(genfast, m) {
  m.def("philox_fill(Tensor(a!) out, Tensor seed, SymInt offset, bool normal) -> ()",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  m.impl("philox_fill", philox_fill_cpu);
}

#if defined(GENFAST_WITH_CUDA)
TORCH_LIBRARY_IMPL(genfast, CUDA, m) {
  m.impl("philox_fill", philox_fill_cuda);
}
#endif

}  // namespace genfast
