#include "memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace gossamer {

void advise_large_pages(void* p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  constexpr int64_t kLarge = int64_t(32) << 20;  // malloc maps at least what is larger than this afresh
  if (bytes < kLarge) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: whether it is taken changes no result
#else
  (void)p;
  (void)bytes;
#endif
}

}  // namespace gossamer
