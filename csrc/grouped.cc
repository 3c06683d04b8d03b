// Products of groups of rows, each with a matrix of its own: the experts of a mixture, forward and backward.
#include "gemm.h"
#include "kernels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Groups {
  const int64_t* offsets;
  int64_t count;
  int64_t size(int64_t g) const { return offsets[g + 1] - offsets[g]; }
};

template <class T>
void grouped_mm_of(const T* x, int64_t k, Rows source, Rows target, Groups groups, const T* weights, bool flip,
                   int64_t n, T* y, int64_t out_rows, T* scratch, int threads) {
  const int64_t positions = groups.offsets[groups.count] - groups.offsets[0];
  threads = useful_threads(positions * (k + n) * int64_t(sizeof(T)), threads);
  if (positions < out_rows) {  // rows that nobody names are zero
    parallel(threads, threads, [=](int64_t part) {
      const int64_t from = part_begin(out_rows * n, part, threads), to = part_begin(out_rows * n, part + 1, threads);
      memset(y + from, 0, size_t(to - from) * sizeof(T));
    });
  }
  const auto size = [=](int64_t g) { return groups.size(g); };
  const auto work = [=](int64_t g) { return groups.size(g) == 0 ? 0 : groups.size(g) + kPackingRows; };
  parallel(threads, threads, [=](int64_t part) {
    share_products<T>(groups.count, n, part, threads, size, work,
                      [=](int64_t g, int64_t row, int64_t last_row, int64_t col, int64_t last_col) {
      const int64_t base = groups.offsets[g] + row;
      const Operand<T> b = {weights + g * k * n, flip ? 1 : n, flip ? k : 1};
      const auto pack_a = [=](T* out, int64_t i, int64_t count, int64_t first, int64_t depth) {
        for (int64_t r = 0; r < count; ++r)
          memcpy(out + r * kRowStride<T>, x + source[base + i + r] * k + first, size_t(depth) * sizeof(T));
      };
      const auto pack_b = [=](T* out, int64_t first, int64_t depth, int64_t at, int64_t width) {
        pack_panels(out, b, first, depth, at, width);
      };
      multiply<T, Order::kRows>(last_row - row, k, pack_a, pack_b, col, last_col,
                                [=](int64_t i) { return y + target[base + i] * n; }, false,
                                scratch + part * kBlockScratch<T>);
    });
  });
}

template <class T>
void grouped_outer_of(const T* x, int64_t k, const T* dy, int64_t n, Rows source, Rows target, Groups groups, T* dw,
                      T* scratch, int threads) {
  threads = useful_threads(groups.count * k * n * int64_t(sizeof(T)), threads);
  parallel(threads, threads, [=](int64_t part) {
    share_products<T>(groups.count, n, part, threads, [=](int64_t) { return k; },
                      [=](int64_t g) { return groups.size(g) + kPackingRows; },
                      [=](int64_t g, int64_t row, int64_t last_row, int64_t col, int64_t last_col) {
      const int64_t base = groups.offsets[g];
      // x^T: its columns lie as rows in x, already in the order of a panel.
      const auto pack_a = [=](T* out, int64_t i, int64_t count, int64_t first, int64_t depth) {
        for (int64_t j = 0; j < depth; ++j)
          memcpy(out + j * kTileRows, x + source[base + first + j] * k + row + i, size_t(count) * sizeof(T));
      };
      const auto pack_b = [=](T* out, int64_t first, int64_t depth, int64_t at, int64_t width) {
        pack_rows(out, [=](int64_t j) { return dy + target[base + first + j] * n + at; }, depth, width);
      };
      multiply<T, Order::kColumns>(last_row - row, groups.size(g), pack_a, pack_b, col, last_col,
                                   [=](int64_t i) { return dw + (g * k + row + i) * n; }, false,
                                   scratch + part * kBlockScratch<T>);
    });
  });
}

}  // namespace

int64_t grouped_scratch(int element_size, int threads) {
  return threads * (element_size == 4 ? kBlockScratch<float> * 4 : kBlockScratch<double> * 8);
}

void grouped_mm(const void* x, int element_size, int64_t k, const void* source, int source_size, const void* target,
                int target_size, const int64_t* offsets, int64_t groups, const void* weights, bool flip, int64_t n,
                void* y, int64_t out_rows, void* scratch, int threads) {
  const auto run = [&]<class T>(T* out) {
    grouped_mm_of(static_cast<const T*>(x), k, {source, source_size}, {target, target_size}, {offsets, groups},
                  static_cast<const T*>(weights), flip, n, out, out_rows, static_cast<T*>(scratch), threads);
  };
  if (element_size == 4) run(static_cast<float*>(y));
  if (element_size == 8) run(static_cast<double*>(y));
}

void grouped_outer(const void* x, int element_size, int64_t k, const void* dy, int64_t n, const void* source,
                   int source_size, const void* target, int target_size, const int64_t* offsets, int64_t groups,
                   void* dw, void* scratch, int threads) {
  const auto run = [&]<class T>(T* out) {
    grouped_outer_of(static_cast<const T*>(x), k, static_cast<const T*>(dy), n, {source, source_size},
                     {target, target_size}, {offsets, groups}, out, static_cast<T*>(scratch), threads);
  };
  if (element_size == 4) run(static_cast<float*>(dw));
  if (element_size == 8) run(static_cast<double*>(dw));
}

}  // namespace gossamer::GOSSAMER_ISA
