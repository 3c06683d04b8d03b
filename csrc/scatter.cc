// SWrite: packed tiles back in their places, zero where no tile is.
#include "tiles.h"

namespace gossamer::GOSSAMER_ISA {

bool scatter(const void* values, int element_size, const Index& index, void* dense, int threads) {
  const Slots s(index);
  if (!s.offsets_are_right()) return false;
  const int64_t row_bytes = s.cols * element_size, width = s.bn * element_size;
  char* const source = static_cast<char*>(const_cast<void*>(values));  // move_tiles<false> only reads it
  threads = useful_threads(s.rows * row_bytes, threads);
  Verdict verdict;

  // A row of tiles is zeroed and filled by one thread, so it is filled while still in cache.
  parallel(threads, threads, [&, threads](int64_t part) {
    const int64_t first = part_begin(s.tile_rows, part, threads), last = part_begin(s.tile_rows, part + 1, threads);
    if (!verdict.add(s.columns_exist(s.offsets[first], s.offsets[last]))) return;
    for (int64_t i = first; i < last; ++i) {
      char* const matrix = static_cast<char*>(dense) + i * s.bm * row_bytes;
      const Strip strip = {matrix, least(s.bm, s.rows - i * s.bm), row_bytes, s.bm, width};
      memset(matrix, 0, size_t(strip.height * row_bytes));
      move_tiles<false>(strip, source, s, s.offsets[i], s.offsets[i + 1]);
    }
  });
  return verdict.right();
}

}  // namespace gossamer::GOSSAMER_ISA
