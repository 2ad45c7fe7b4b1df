#include "kernels/philox.h"

#include "kernels/cpu/philox_tile.h"

namespace genfast::cpu {

template <SimdLevel level, typename scalar_t>
void philox_fill(const PhiloxFill<scalar_t>& params, int64_t begin, int64_t end) {
  for_each_tile(params.kind, params.seed, params.offset + begin, params.offset + end,
                [&](const float* values, int64_t first, int64_t count) {
                  scalar_t* out = params.out + (first - params.offset);
                  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<scalar_t>(values[i]);
                });
}

template void philox_fill<GENFAST_SIMD_LEVEL, float>(const PhiloxFill<float>&, int64_t, int64_t);
template void philox_fill<GENFAST_SIMD_LEVEL, double>(const PhiloxFill<double>&, int64_t, int64_t);

}  // namespace genfast::cpu
