// What is asked about an index or a work partition apart from the ops that use it.
#include "structure.h"

namespace gossamer::GOSSAMER_ISA {

int64_t repeated(const Index& index, uint64_t* bits, int threads) {
  const Slots s(index);
  const int64_t used = s.used();
  threads = useful_threads(used * s.index_size, threads);
  Verdict ascending;
  parallel(threads, threads, [&, threads](int64_t part) {
    ascending.add(ascend(s, part_begin(used, part, threads), part_begin(used, part + 1, threads)));
  });
  return ascending.right() ? -1 : first_repeated(s, bits);
}

int64_t work_in_range(const Index& index, const int64_t* work, int64_t segments, uint64_t* bits) {
  const Slots s(index);
  Set seen = {bits};
  memset(bits, 0, size_t(ceil_div(s.used(), 64)) * 8);
  int64_t named = 0;
  for (int64_t i = 0; i < segments; ++i) {
    const int64_t row = work[3 * i], slot = work[3 * i + 1], end = work[3 * i + 2];
    if (row < 0) continue;
    if (row >= s.tile_rows || slot < s.offsets[row] || end < slot || end > s.offsets[row + 1] || !seen.add(slot, end))
      return -1;
    named += end - slot;
  }
  return named;
}

}  // namespace gossamer::GOSSAMER_ISA
