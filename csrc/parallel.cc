#include "parallel.h"

#ifdef _OPENMP
#include <dlfcn.h>
#include <omp.h>
#endif

namespace gossamer {

void run_parts(int64_t parts, int threads, void (*body)(void* context, int64_t part), void* context) {
  // One thread never enters the OpenMP runtime: a forked worker whose parent used it would hang there.
  if (threads <= 1 || parts <= 1) {
    for (int64_t part = 0; part < parts; ++part) body(context, part);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
  for (int64_t part = 0; part < parts; ++part) body(context, part);
}

const char* openmp_library() {
#ifdef _OPENMP
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&omp_get_max_threads), &info) != 0) return info.dli_fname;
  return "unknown";
#else
  return "";
#endif
}

}  // namespace gossamer
