// Chooses the SIMD level once. Lives outside kernels/cpu because it must be compiled once, for the
// baseline processor.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/simd.h"

namespace genfast::cpu {
namespace {

SimdLevel best_level() {
#if defined(GENFAST_X86_LEVELS)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return SimdLevel::kAvx512;
  if (avx2) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kBaseline;
}

SimdLevel initial_level() {
  const SimdLevel best = best_level();
  const char* wanted = std::getenv("GENFAST_SIMD");
  if (wanted == nullptr) return best;
  for (const SimdLevel level : {SimdLevel::kBaseline, SimdLevel::kAvx2, SimdLevel::kAvx512}) {
    if (std::strcmp(wanted, simd_level_name(level)) == 0 && level <= best) return level;
  }
  return best;
}

std::atomic<SimdLevel>& level_in_use() {
  static std::atomic<SimdLevel> level{initial_level()};
  return level;
}

}  // namespace

SimdLevel simd_level() {
  return level_in_use().load(std::memory_order_relaxed);
}

bool set_simd_level(SimdLevel level) {
  if (level < SimdLevel::kBaseline || level > best_level()) return false;
  level_in_use().store(level, std::memory_order_relaxed);
  return true;
}

const char* simd_level_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kBaseline:
      break;
  }
  return "baseline";
}

}  // namespace genfast::cpu
