// Words shared by every kernel header, so that one source serves the C++ and the CUDA compiler.
#pragma once

#if defined(__CUDACC__)
#define GENFAST_INLINE static __forceinline__ __host__ __device__
#else
// `static` matters: each SIMD level compiles its own copy. With plain `inline` the linker would
// keep one copy for all levels, and an AVX-512 copy would crash a machine without it.
#define GENFAST_INLINE static inline __attribute__((always_inline))
#endif

// Before a loop over a few elements of an array that is to live in registers. nvcc knows the one
// spelling in code for the device and none in code for the host.
#if defined(__CUDA_ARCH__)
#define GENFAST_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define GENFAST_UNROLL
#else
#define GENFAST_UNROLL _Pragma("GCC unroll 16")
#endif
