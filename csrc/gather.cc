// SRead: the present tiles of a matrix, packed one after another.
#include "kernels.h"
#include "tiles.h"

namespace gossamer::GOSSAMER_ISA {

void gather(const void* x, int64_t rows, int64_t cols, int element_size, const int64_t* offsets, const void* indices,
            int index_size, int64_t bm, int64_t bn, int64_t capacity, void* values, int threads) {
  const int64_t tile_rows = ceil_div(rows, bm), used = least(offsets[tile_rows], capacity);
  const int64_t row_bytes = cols * element_size, width = bn * element_size, tile_bytes = bm * width;
  const char* const source = static_cast<const char*>(x);
  char* const target = static_cast<char*>(values);
  threads = useful_threads(capacity * tile_bytes, threads);

  // Parts are equal shares of slots, not of rows: a row with most of the tiles does not hold up the others.
  parallel(threads, threads, [=](int64_t part) {
    const int64_t end = part_begin(used, part + 1, threads);
    int64_t slot = part_begin(used, part, threads);
    for (int64_t i = slot < end ? row_of(offsets, tile_rows, slot) : 0; slot < end; ++i) {
      const char* const strip = source + i * bm * row_bytes;
      const int64_t height = least(bm, rows - i * bm);
      for (; slot < least(end, offsets[i + 1]); ++slot) {
        const int64_t left = index_at(indices, index_size, slot) * width, right = least(width, row_bytes - left);
        char* const to = target + slot * tile_bytes;
        if (height < bm || right < width) memset(to, 0, size_t(tile_bytes));
        copy_rows(to, width, strip + left, row_bytes, height, right);
      }
    }
    const int64_t slack = (capacity - used) * tile_bytes, from = part_begin(slack, part, threads);
    memset(target + used * tile_bytes + from, 0, size_t(part_begin(slack, part + 1, threads) - from));
  });
}

}  // namespace gossamer::GOSSAMER_ISA
