// Large memory pages for large results.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace genfast {

// Asks the system to back a fresh CPU tensor with pages of 2 MiB, as NumPy does for its arrays. The
// first write to a page of 4 KiB costs more than a kernel needs to fill it. A hint: memory that
// cannot follow it, and systems that do not know it, stay as they are.
inline void advise_large_pages(const at::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  if (!tensor.is_cpu() || tensor.nbytes() < 4 * kPage) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + tensor.nbytes()) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  static_cast<void>(tensor);
#endif
}

}  // namespace genfast
