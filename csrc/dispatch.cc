#include "dispatch.h"

#include <errno.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>

#include "tiers.h"

namespace gossamer {

// What a tier has no code of its own for is found in its base; one that has all has none.
#define GOSSAMER_ENTRY(name, ...) name,
#define GOSSAMER_TABLE(isa, base, own, cpu_runs_it, is_fast)       \
  namespace base {}                                                \
  namespace isa {                                                  \
  using namespace base;                                            \
  own(GOSSAMER_DECLARE)                                            \
  const Kernels table = {GOSSAMER_FOR_EACH_OP(GOSSAMER_ENTRY)};    \
  }
#define GOSSAMER_NO_TABLE(isa)
GOSSAMER_FOR_EACH_TIER(GOSSAMER_TABLE, GOSSAMER_NO_TABLE)

namespace {

// Whether the CPU has the registers called tiles and multiplies bfloat16 numbers in them.
bool cpu_has_tiles() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  constexpr unsigned kTiles = 1u << 24, kBFloat16 = 1u << 22;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) && (d & kBFloat16);
#else
  return false;
#endif
}

// Linux lets a process use tiles once it has asked; 0, or why not (a sandbox may forbid it, and so does a thread whose
// stack for signals has no room for tiles).
int tiles_error() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0 ? 0 : errno;
#else
  return ENOSYS;
#endif
}

bool runs_tiles() { return cpu_has_tiles() && tiles_error() == 0; }

// Intel's vectors multiply half as many pairs of numbers in a cycle as single floats: only its tiles are faster.
bool multiplies_pairs_fast() {
#if defined(__x86_64__)
  return !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

struct Isa {
  const char* name;
  const Kernels* kernels;   // null: not built for this architecture
  const char* const* own;   // names of the ops that it has code of its own for, and a null
  bool (*cpu_runs_it)();
  bool (*is_fast)();
};

#define GOSSAMER_NAME(name, ...) #name,
#define GOSSAMER_OWN(isa, base, own, cpu_runs_it, is_fast) const char* const kOwn_##isa[] = {own(GOSSAMER_NAME) nullptr};
GOSSAMER_FOR_EACH_TIER(GOSSAMER_OWN, GOSSAMER_NO_TABLE)

#define GOSSAMER_BUILT(isa, base, own, cpu_runs_it, is_fast) \
  {#isa, &isa::table, kOwn_##isa, [] { return bool(cpu_runs_it); }, [] { return bool(is_fast); }},
#define GOSSAMER_NOT_BUILT(isa) {#isa, nullptr, nullptr, nullptr, nullptr},
const Isa kIsas[] = {GOSSAMER_FOR_EACH_TIER(GOSSAMER_BUILT, GOSSAMER_NOT_BUILT)};
constexpr int kCount = sizeof(kIsas) / sizeof(kIsas[0]);

std::atomic<const Isa*> g_active{&kIsas[0]};

}  // namespace

const Kernels& active() { return *g_active.load(std::memory_order_relaxed)->kernels; }
const char* active_name() { return g_active.load(std::memory_order_relaxed)->name; }
int isa_count() { return kCount; }
const char* isa_name(int i) { return kIsas[i].name; }
bool isa_built(int i) { return kIsas[i].kernels != nullptr; }
const char* const* isa_ops(int i) { return kIsas[i].own; }
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

const char* best_isa() {
  int best = kCount - 1;
  while (best > 0 && !(isa_supported(best) && kIsas[best].is_fast())) --best;
  return kIsas[best].name;
}

}  // namespace gossamer
