// Products of groups of rows, each with a matrix of its own: the experts of a mixture, forward and backward.
#include "few_rows.h"
#include "gemm.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Groups {
  const int64_t* offsets;
  int64_t count;
  int64_t size(int64_t g) const { return offsets[g + 1] - offsets[g]; }
};

template <class T>
void grouped_mm_of(const T* x, int64_t k, Rows source, Rows target, Groups groups, const T* weights, bool transposed,
                   int64_t n, T* y, int64_t out_rows, T* workspace, int threads) {
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
      const T* const matrix = weights + g * k * n;
      const auto row_of_x = [=](int64_t i) { return x + source[base + i] * k; };
      const auto row_of_y = [=](int64_t i) { return y + target[base + i] * n; };
      // The size of the group decides, never that of a thread's share of it: bits do not depend on threads.
      if (transposed && groups.size(g) <= kFewRowsOfColumns)
        return multiply_few_by_columns(last_row - row, k, row_of_x, matrix, col, last_col, row_of_y);
      if (!transposed && groups.size(g) <= kFewRowsOfRows)
        col = multiply_few_by_rows(last_row - row, k, row_of_x, matrix, n, col, last_col, row_of_y);
      const Matrix<T> b = {matrix, transposed ? 1 : n, transposed ? k : 1};
      const auto pack_a = [=](T* out, int64_t i, int64_t count, int64_t first, int64_t depth) {
        for (int64_t r = 0; r < count; ++r)
          memcpy(out + r * kRowStride<T>, row_of_x(i + r) + first, size_t(depth) * sizeof(T));
      };
      const auto pack_b = [=](T* out, int64_t first, int64_t depth, int64_t at, int64_t width) {
        pack_panels(out, b, first, depth, at, width);
      };
      multiply<T, Order::kRows>(last_row - row, k, pack_a, pack_b, col, last_col, row_of_y, false,
                                workspace + part * kBlockWorkspace<T>);
    });
  });
}

template <class T>
void grouped_outer_of(const T* x, int64_t k, const T* dy, int64_t n, Rows source, Rows target, Groups groups, T* dw,
                      T* workspace, int threads) {
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
                                   workspace + part * kBlockWorkspace<T>);
    });
  });
}

// Whether every position of the groups names a row below `bound`.
bool are_rows(const Groups& groups, Rows rows, int64_t bound) {
  const int64_t first = groups.offsets[0], end = groups.offsets[groups.count];
  return rows.list == nullptr ? end <= bound : all_below(rows.list, rows.size, first, end, bound);
}

// Whether no row is named twice; `named` has a byte for each.
bool differ(const Groups& groups, Rows rows, int64_t bound, uint8_t* named) {
  if (rows.list == nullptr) return true;
  const int64_t first = groups.offsets[0], end = groups.offsets[groups.count];
  memset(named, 0, size_t(bound));
  for (int64_t p = first; p < end; ++p) named[rows[p]] = 1;
  int64_t found = 0;
  for (int64_t row = 0; row < bound; ++row) found += named[row];
  return found == end - first;
}

}  // namespace

int64_t grouped_workspace(int element_size, int64_t out_rows, int threads) {
  return threads * (element_size == 4 ? kBlockWorkspace<float> * 4 : kBlockWorkspace<double> * 8) + out_rows;
}

bool grouped_mm(const void* x, int element_size, int64_t x_rows, int64_t k, const void* source, int source_size,
                const void* target, int target_size, int64_t positions, const int64_t* offsets, int64_t groups,
                const void* weights, bool transposed, int64_t n, void* y, int64_t out_rows, void* workspace, int threads) {
  const Groups all = {offsets, groups};
  const Rows from = {source, source_size}, to = {target, target_size};
  if (!are_offsets(offsets, groups, false, positions) || !are_rows(all, from, x_rows) || !are_rows(all, to, out_rows) ||
      !differ(all, to, out_rows, static_cast<uint8_t*>(workspace)))
    return false;
  const auto run = [&]<class T>(T* out) {
    grouped_mm_of(static_cast<const T*>(x), k, from, to, all, static_cast<const T*>(weights), transposed, n, out,
                  out_rows, static_cast<T*>(workspace), threads);
  };
  if (element_size == 4) run(static_cast<float*>(y));
  else run(static_cast<double*>(y));
  return true;
}

bool grouped_outer(const void* x, int element_size, int64_t x_rows, int64_t k, const void* dy, int64_t dy_rows, int64_t n,
                   const void* source, int source_size, const void* target, int target_size, int64_t positions,
                   const int64_t* offsets, int64_t groups, void* dw, void* workspace, int threads) {
  const Groups all = {offsets, groups};
  const Rows from = {source, source_size}, to = {target, target_size};
  if (!are_offsets(offsets, groups, false, positions) || !are_rows(all, from, x_rows) || !are_rows(all, to, dy_rows))
    return false;
  const auto run = [&]<class T>(T* out) {
    grouped_outer_of(static_cast<const T*>(x), k, static_cast<const T*>(dy), n, from, to, all, out,
                     static_cast<T*>(workspace), threads);
  };
  if (element_size == 4) run(static_cast<float*>(dw));
  else run(static_cast<double*>(dw));
  return true;
}

}  // namespace gossamer::GOSSAMER_ISA
