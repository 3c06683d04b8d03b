// Images between the two orders of memory, planes [C, H*W] and pixels [H*W, C]: each matrix of a batch is transposed.
//
// A piece is so many rows that what one strip of columns reads of them is still in L1 when the next strip reads the other
// half of the same lines, and so wide that a row of the result is written in whole lines.
#include "kernels.h"
#include "transpose_lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kRows = 256, kCols = 512;  // of a piece

}  // namespace

void reorder(const float* x, int64_t batch, int64_t rows, int64_t cols, float* y, int threads) {
  const int64_t down = ceil_div(rows, kRows), across = ceil_div(cols, kCols), pieces = batch * down * across;
  threads = useful_threads(batch * rows * cols * 8, threads);
  parallel(threads, threads, [=](int64_t part) {
    for (int64_t p = part_begin(pieces, part, threads); p < part_begin(pieces, part + 1, threads); ++p) {
      const int64_t top = p / across % down * kRows, left = p % across * kCols, matrix = p / across / down * rows * cols;
      transpose(x + matrix + top * cols + left, cols, y + matrix + left * rows + top, rows, least(kRows, rows - top),
                least(kCols, cols - left));
    }
  });
}

}  // namespace gossamer::GOSSAMER_ISA
