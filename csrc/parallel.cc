#include "parallel.h"

#ifdef _OPENMP
#include <omp.h>
#if defined(__linux__)
#include <link.h>
#else
#include <dlfcn.h>
#endif
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

#if defined(_OPENMP) && defined(__linux__)
namespace {

// Looked for among what is loaded: glibc gave `dladdr` a new version in 2.34, and a build that calls it needs that one.
int holds_openmp(dl_phdr_info* object, size_t, void* file) {
  const ElfW(Addr) address = reinterpret_cast<ElfW(Addr)>(&omp_get_max_threads) - object->dlpi_addr;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || address - segment.p_vaddr >= segment.p_memsz) continue;
    *static_cast<const char**>(file) = object->dlpi_name;
    return 1;
  }
  return 0;
}

}  // namespace
#endif

const char* openmp_library() {
#if !defined(_OPENMP)
  return "";
#elif defined(__linux__)
  const char* file = "unknown";
  dl_iterate_phdr(holds_openmp, &file);
  return file;
#else
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(&omp_get_max_threads), &info) != 0 ? info.dli_fname : "unknown";
#endif
}

}  // namespace gossamer
