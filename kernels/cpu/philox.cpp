#include "kernels/philox.h"

namespace genfast::cpu {
namespace {

GENFAST_INLINE void block_values(PhiloxKind kind, uint64_t seed, uint64_t block, float* values) {
  if (kind == PhiloxKind::kNormal) {
    const NormalBlock normals = normal_block(seed, block);
    for (int lane = 0; lane < 4; ++lane) values[lane] = normals.lane[lane];
  } else {
    const PhiloxBlock bits = philox_block(seed, block);
    for (int lane = 0; lane < 4; ++lane) values[lane] = uniform_from_bits(bits.lane[lane]);
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void philox_fill(const PhiloxFill<scalar_t>& params, int64_t begin, int64_t end) {
  float values[4];
  for (int64_t i = begin; i < end;) {
    const int64_t element = params.offset + i;
    const int64_t lane = element & 3;
    block_values(params.kind, params.seed, static_cast<uint64_t>(element) >> 2, values);
    for (int64_t l = lane; l < 4 && i < end; ++l, ++i) {
      params.out[i] = static_cast<scalar_t>(values[l]);
    }
  }
}

template void philox_fill<GENFAST_SIMD_LEVEL, float>(const PhiloxFill<float>&, int64_t, int64_t);
template void philox_fill<GENFAST_SIMD_LEVEL, double>(const PhiloxFill<double>&, int64_t, int64_t);

}  // namespace genfast::cpu
