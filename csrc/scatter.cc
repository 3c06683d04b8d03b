// SWrite: packed tiles back in their places, zero where no tile is.
#include "kernels.h"
#include "tiles.h"

namespace gossamer::GOSSAMER_ISA {

void scatter(const void* values, int64_t rows, int64_t cols, int element_size, const int64_t* offsets,
             const void* indices, int index_size, int64_t bm, int64_t bn, int64_t capacity, void* dense, int threads) {
  const int64_t tile_rows = ceil_div(rows, bm);
  const int64_t row_bytes = cols * element_size, width = bn * element_size, tile_bytes = bm * width;
  const char* const source = static_cast<const char*>(values);
  char* const target = static_cast<char*>(dense);
  threads = useful_threads(rows * row_bytes, threads);

  // A row of tiles is zeroed and filled while it is in cache, by one thread.
  parallel(tile_rows, threads, [=](int64_t i) {
    const int64_t height = least(bm, rows - i * bm), end = least(offsets[i + 1], capacity);
    char* const strip = target + i * bm * row_bytes;
    memset(strip, 0, size_t(height * row_bytes));
    for (int64_t slot = offsets[i]; slot < end; ++slot) {
      const int64_t left = index_at(indices, index_size, slot) * width;
      copy_rows(strip + left, row_bytes, source + slot * tile_bytes, width, height, least(width, row_bytes - left));
    }
  });
}

}  // namespace gossamer::GOSSAMER_ISA
