#include "parallel.h"

namespace gossamer {

void run_parts(int64_t parts, int threads, void (*body)(void* context, int64_t part), void* context) {
  // One thread never enters the OpenMP runtime: a forked worker whose parent used it would hang there.
  if (threads <= 1 || parts <= 1) {
    for (int64_t part = 0; part < parts; ++part) body(context, part);
    return;
  }
#ifdef _OPENMP
  // At most torch's own number of threads: asking libgomp for another team size than torch's would rebuild the pool
  // at every change of hands.
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
  for (int64_t part = 0; part < parts; ++part) body(context, part);
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace gossamer
