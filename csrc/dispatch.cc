#include "dispatch.h"

#include <string.h>

#include <atomic>

#include "tiers.h"

namespace gossamer {

#define GOSSAMER_ENTRY(name, ...) name,
#define GOSSAMER_TABLE(isa, cpu_runs_it)                           \
  namespace isa {                                                  \
  GOSSAMER_FOR_EACH_OP(GOSSAMER_DECLARE)                           \
  const Kernels table = {GOSSAMER_FOR_EACH_OP(GOSSAMER_ENTRY)};    \
  }
#define GOSSAMER_NO_TABLE(isa)
GOSSAMER_FOR_EACH_TIER(GOSSAMER_TABLE, GOSSAMER_NO_TABLE)

namespace {

struct Isa {
  const char* name;
  const Kernels* kernels;   // null: not built for this architecture
  bool (*cpu_runs_it)();
};

#define GOSSAMER_BUILT(isa, cpu_runs_it) {#isa, &isa::table, [] { return bool(cpu_runs_it); }},
#define GOSSAMER_NOT_BUILT(isa) {#isa, nullptr, nullptr},
const Isa kIsas[] = {GOSSAMER_FOR_EACH_TIER(GOSSAMER_BUILT, GOSSAMER_NOT_BUILT)};
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
