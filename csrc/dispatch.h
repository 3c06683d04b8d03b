// Which instruction set's kernels are called.
#pragma once
#include "kernels.h"

namespace gossamer {

#define GOSSAMER_POINTER(name, result, ...) result (*name)(__VA_ARGS__);
struct Kernels {
  GOSSAMER_FOR_EACH_OP(GOSSAMER_POINTER)
};

enum class IsaStatus { kOk, kUnknown, kNotBuilt, kNotSupported };

const Kernels& active();          // the table every binding calls through
const char* active_name();
IsaStatus select_isa(const char* name);
const char* best_isa();           // the one to choose unasked

int isa_count();
const char* isa_name(int i);      // from narrow to wide
bool isa_built(int i);
const char* const* isa_ops(int i);  // names of ops with code of its own, and a null; null if not built
bool isa_supported(int i);        // built, and this CPU and operating system run it

}  // namespace gossamer
