// SRead: the present tiles of a matrix, packed one after another.
#include "kernels.h"
#include "tiles.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// The row of tiles that owns `slot`: the last whose offset is not beyond it (rows without tiles own none).
int64_t row_of(const int64_t* offsets, int64_t tile_rows, int64_t slot) {
  int64_t low = 0, high = tile_rows;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (offsets[middle] <= slot ? low : high) = middle;
  }
  return low;
}

}  // namespace

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
    int64_t slot = part_begin(used, part, threads);
    for (int64_t i = slot < end ? row_of(offsets, tile_rows, slot) : 0; slot < end; ++i) {
      const Strip strip = {source + i * bm * row_bytes, least(bm, rows - i * bm), row_bytes, bm, width};
      const int64_t stop = least(end, offsets[i + 1]);
      if (slot < stop) move_tiles<true>(strip, target, indices, index_size, slot, stop);
      slot = slot < stop ? stop : slot;
    }
    const int64_t slack = (capacity - used) * tile_bytes, from = part_begin(slack, part, threads);
    memset(target + used * tile_bytes + from, 0, size_t(part_begin(slack, part + 1, threads) - from));
  });
}

}  // namespace gossamer::GOSSAMER_ISA
