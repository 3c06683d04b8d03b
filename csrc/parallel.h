// Threads: the only door to OpenMP, so that the ops are compiled without it.
#pragma once
#include <stdint.h>

namespace gossamer {

// Calls body(context, part) for every part in [0, parts), on `threads` threads, and returns when all are done.
// The kernels make results a function of the parts alone, never of which thread ran one.
void run_parts(int64_t parts, int threads, void (*body)(void* context, int64_t part), void* context);

// The file that the OpenMP functions called here come from; empty when built without OpenMP.
const char* openmp_library();

}  // namespace gossamer
