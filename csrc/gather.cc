// SRead: the present tiles of a matrix, packed one after another.
#include "tiles.h"

namespace gossamer::GOSSAMER_ISA {

bool gather(const void* x, int element_size, const Index& index, void* values, int threads) {
  const Slots s(index);
  if (!s.offsets_are_right()) return false;
  const int64_t used = s.used(), row_bytes = s.cols * element_size, width = s.bn * element_size;
  const int64_t tile_bytes = s.bm * width, slack = (s.capacity - used) * tile_bytes;
  char* const source = static_cast<char*>(const_cast<void*>(x));  // move_tiles<true> only reads it
  char* const target = static_cast<char*>(values);
  threads = useful_threads(s.capacity * tile_bytes, threads);
  Verdict verdict;

  // Parts are equal shares of slots, not of rows: a row with most of the tiles does not hold up the others.
  parallel(threads, threads, [&, threads](int64_t part) {
    const int64_t begin = part_begin(used, part, threads), end = part_begin(used, part + 1, threads);
    if (!verdict.add(s.columns_exist(begin, end))) return;
    s.for_each_row(begin, end, [&](int64_t i, int64_t slot, int64_t stop) {
      const Strip strip = {source + i * s.bm * row_bytes, least(s.bm, s.rows - i * s.bm), row_bytes, s.bm, width};
      move_tiles<true>(strip, target, s, slot, stop);
    });
    const int64_t from = part_begin(slack, part, threads);
    memset(target + used * tile_bytes + from, 0, size_t(part_begin(slack, part + 1, threads) - from));
  });
  return verdict.right();
}

}  // namespace gossamer::GOSSAMER_ISA
