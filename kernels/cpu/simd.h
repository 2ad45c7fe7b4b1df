// SIMD levels. Every file in kernels/cpu is compiled once per level (CMakeLists.txt), with
// GENFAST_SIMD_LEVEL naming the level; callers choose at run time with `at_simd_level`.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace genfast::cpu {

enum class SimdLevel : int32_t { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The best level that this build and this processor share, or the lower one that the environment
// variable GENFAST_SIMD (baseline, avx2, avx512) asks for. Decided at the first call.
SimdLevel simd_level();

// For tests: force a level at or below what the processor has. Returns false, changing nothing, for
// a level that is not available.
bool set_simd_level(SimdLevel level);

const char* simd_level_name(SimdLevel level);

// Calls function(std::integral_constant<SimdLevel, the level in use>{}).
template <typename Function>
decltype(auto) at_simd_level(Function&& function) {
#if defined(GENFAST_X86_LEVELS)
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return function(std::integral_constant<SimdLevel, SimdLevel::kAvx512>{});
    case SimdLevel::kAvx2:
      return function(std::integral_constant<SimdLevel, SimdLevel::kAvx2>{});
    case SimdLevel::kBaseline:
      break;
  }
#endif
  return function(std::integral_constant<SimdLevel, SimdLevel::kBaseline>{});
}

}  // namespace genfast::cpu
