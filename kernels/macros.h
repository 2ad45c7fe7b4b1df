// Words shared by every kernel header, so that one source serves the C++ and the CUDA compiler.
#pragma once

#if defined(__CUDACC__)
#define GENFAST_INLINE static __forceinline__ __host__ __device__
#else
// `static` matters: each SIMD level compiles its own copy. With plain `inline` the linker would
// keep one copy for all levels, and an AVX-512 copy would crash a machine without it.
#define GENFAST_INLINE static inline __attribute__((always_inline))
#endif
