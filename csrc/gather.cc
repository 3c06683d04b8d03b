// SRead: the present tiles of a matrix, packed one after another.
#include "kernels.h"
#include "tiles.h"

namespace gossamer::GOSSAMER_ISA {
void gather(const void* x, int64_t rows, int64_t cols, int element_size, const int64_t* offsets, const void* indices,
            int index_size, int64_t bm, int64_t bn, int64_t capacity, void* values, int threads) {
  const int64_t tile_rows = ceil_div(rows, bm), used = least(offsets[tile_rows], capacity);
  const int64_t row_bytes = cols * element_size, width = bn * element_size, tile_bytes = bm * width;
  char* const source = static_cast<char*>(const_cast<void*>(x));  // move_tiles<true> only reads it
  char* const target = static_cast<char*>(values);
  threads = useful_threads(capacity * tile_bytes, threads);

  // Parts are equal shares of slots, not of rows: a row with most of the tiles does not hold up the others.
  parallel(threads, threads, [=](int64_t part) {
    const int64_t end = part_begin(used, part + 1, threads);
    const int64_t begin = part_begin(used, part, threads);
    for_each_row(offsets, tile_rows, begin, end, [=](int64_t i, int64_t slot, int64_t stop) {
      const Strip strip = {source + i * bm * row_bytes, least(bm, rows - i * bm), row_bytes, bm, width};
      move_tiles<true>(strip, target, indices, index_size, slot, stop);
    });
    const int64_t slack = (capacity - used) * tile_bytes, from = part_begin(slack, part, threads);
    memset(target + used * tile_bytes + from, 0, size_t(part_begin(slack, part + 1, threads) - from));
  });
}

}  // namespace gossamer::GOSSAMER_ISA
