// SWrite: packed tiles back in their places, zero where no tile is.
#include "kernels.h"
#include "tiles.h"

namespace gossamer::GOSSAMER_ISA {

void scatter(const void* values, int64_t rows, int64_t cols, int element_size, const int64_t* offsets,
             const void* indices, int index_size, int64_t bm, int64_t bn, int64_t capacity, void* dense, int threads) {
  const int64_t tile_rows = ceil_div(rows, bm), row_bytes = cols * element_size, width = bn * element_size;
  char* const source = static_cast<char*>(const_cast<void*>(values));  // move_tiles<false> only reads it
  threads = useful_threads(rows * row_bytes, threads);

  // A row of tiles is zeroed and filled by one thread, so it is filled while still in cache.
  parallel(tile_rows, threads, [=](int64_t i) {
    char* const matrix = static_cast<char*>(dense) + i * bm * row_bytes;
    const Strip strip = {matrix, least(bm, rows - i * bm), row_bytes, bm, width};
    memset(matrix, 0, size_t(strip.height * row_bytes));
    move_tiles<false>(strip, source, indices, index_size, offsets[i], least(offsets[i + 1], capacity));
  });
}

}  // namespace gossamer::GOSSAMER_ISA
