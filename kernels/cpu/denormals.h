// Numbers too small to be normal, which make an arithmetic instruction many times as slow.
#pragma once

#include "kernels/macros.h"

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace genfast::cpu {
namespace {

// While it lives, this thread takes them for zero, as operands and as results. A few in a gradient,
// where a gate is nearly shut, would else cost a convolution thirty times its time.
class DenormalsAreZero {
 public:
#if defined(__SSE__)
  DenormalsAreZero() : before_(_mm_getcsr()) {
    _mm_setcsr(before_ | kFlushResults | kZeroOperands);
  }
  ~DenormalsAreZero() { _mm_setcsr(before_); }
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
  static constexpr unsigned kFlushResults = 0x8000, kZeroOperands = 0x0040;
  const unsigned before_;
#endif
};

}  // namespace
}  // namespace genfast::cpu
