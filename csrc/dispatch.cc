#include "dispatch.h"

#include <string.h>

#include <atomic>

namespace gossamer {
namespace {

#define GOSSAMER_ENTRY_scalar(name, result, ...) scalar::name,
#define GOSSAMER_ENTRY_avx2(name, result, ...) avx2::name,
#define GOSSAMER_ENTRY_avx512(name, result, ...) avx512::name,

const Kernels kScalar = {GOSSAMER_FOR_EACH_VERB(GOSSAMER_ENTRY_scalar)};
#ifdef GOSSAMER_HAS_AVX2
const Kernels kAvx2 = {GOSSAMER_FOR_EACH_VERB(GOSSAMER_ENTRY_avx2)};
#endif
#ifdef GOSSAMER_HAS_AVX512
const Kernels kAvx512 = {GOSSAMER_FOR_EACH_VERB(GOSSAMER_ENTRY_avx512)};
#endif

bool cpu_always() { return true; }

struct Isa {
  const char* name;
  const Kernels* kernels;   // null: not built for this architecture
  bool (*cpu_runs_it)();
};

// The lists of features are those of the compiler flags in CMakeLists.txt.
const Isa kIsas[] = {
    {"scalar", &kScalar, cpu_always},
#ifdef GOSSAMER_HAS_AVX2
    {"avx2", &kAvx2, [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
              __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
     }},
#else
    {"avx2", nullptr, cpu_always},
#endif
#ifdef GOSSAMER_HAS_AVX512
    {"avx512", &kAvx512, [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
              __builtin_cpu_supports("popcnt");
     }},
#else
    {"avx512", nullptr, cpu_always},
#endif
};
constexpr int kCount = sizeof(kIsas) / sizeof(kIsas[0]);

std::atomic<const Isa*> g_active{&kIsas[0]};

}  // namespace

const Kernels& active() { return *g_active.load(std::memory_order_relaxed)->kernels; }
const char* active_name() { return g_active.load(std::memory_order_relaxed)->name; }
int isa_count() { return kCount; }
const char* isa_name(int i) { return kIsas[i].name; }
bool isa_built(int i) { return kIsas[i].kernels != nullptr; }
bool isa_supported(int i) { return isa_built(i) && kIsas[i].cpu_runs_it(); }

IsaStatus select_isa(const char* name) {
  for (int i = 0; i < kCount; ++i) {
    if (strcmp(kIsas[i].name, name) != 0) continue;
    if (!isa_built(i)) return IsaStatus::kNotBuilt;
    if (!isa_supported(i)) return IsaStatus::kNotSupported;
    g_active.store(&kIsas[i], std::memory_order_relaxed);
    return IsaStatus::kOk;
  }
  return IsaStatus::kUnknown;
}

void select_best() {
  for (int i = kCount - 1; i >= 0; --i) {
    if (isa_supported(i)) {
      g_active.store(&kIsas[i], std::memory_order_relaxed);
      return;
    }
  }
}

}  // namespace gossamer
