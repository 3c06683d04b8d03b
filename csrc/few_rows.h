// Products of a few rows with a matrix that is used once. Nothing is packed, which would take as long as multiplying, and
// memory is asked for ahead of the sums, which the hardware does within a page only.
//
//     C[i, col..last_col) = A[i, k] @ B[k, n], A and C row after row wherever they are
//
// B may be of half as many bits as A and C: W is the type of its elements, T = Wide<W> that of theirs.
#pragma once
#include "dots.h"
#include "gemm.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Rows up to which this takes less time than packing, where B lies by columns and where it lies by rows: more rows of A
// would have those read in pieces too short.
constexpr int64_t kFewRowsOfColumns = 28;
constexpr int64_t kFewRowsOfRows = 6;

template <class W>
using Wide = decltype(widen(W{}));

constexpr int64_t kFewDepth = 256;   // rows of B, in a page each, that are gone through before the next columns
constexpr int64_t kRowsAhead = 8;    // that are asked for before they are needed
constexpr int64_t kBytesAhead = 12288;

// out[i * kCols + j] = the product of row i of A and column j of B, both k long; column j begins at b + j * k.
template <int kRows, int kCols, bool kAsk, class T, class W>
void few_dots(const T* const* a, const W* b, int64_t k, T* out) {
  Lanes<T> sums[kRows * kCols] = {};
  constexpr int64_t kLeast = kBytesAhead / int64_t(sizeof(W));
  const int64_t ahead = kCols * k > kLeast ? kCols * k : kLeast;
  int64_t at = 0;
  const auto step = [&](auto load) __attribute__((always_inline)) {
    Lanes<T> left[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) left[i] = load(a[i] + at);
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) {
      const W* const column = b + j * k + at;
      if constexpr (kAsk) __builtin_prefetch(column + ahead, 0, 2);
      const Lanes<T> right = load(column);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sums[i * kCols + j] = fma(left[i], right, sums[i * kCols + j]);
    }
  };
  for (; at + kLanes<T> <= k; at += kLanes<T>) step([](const auto* p) { return load_weights(p); });
  const int rest = int(k - at);
  if (rest > 0) step([=](const auto* p) { return load_weights(p, rest); });
  store_sums<T, kRows * kCols>(sums, out);
}

// Columns [col, col + kCols) for `rows` rows, at most kMost at a time; only the first of them have to wait for memory.
template <int kMost, int kCols, class W, class RowOfA, class RowOfC>
void few_columns(int64_t rows, int64_t k, const RowOfA& row_of_a, const W* b, int64_t col, const RowOfC& row_of_c) {
  using T = Wide<W>;
  T out[kMost * kCols];
  const T* a[kMost];
  for (int64_t i = 0, count = 0; i < rows; i += count) {
    count = next_share(rows - i, kMost, 1);
    for (int64_t r = 0; r < count; ++r) a[r] = row_of_a(i + r);
    const auto run = [&]<int kRows>(auto&& self) {
      if (count == kRows)
        return i == 0 ? few_dots<kRows, kCols, true>(a, b, k, out) : few_dots<kRows, kCols, false>(a, b, k, out);
      if constexpr (kRows < kMost) self.template operator()<kRows + 1>(self);
    };
    run.template operator()<1>(run);
    for (int64_t r = 0; r < count; ++r) memcpy(row_of_c(i + r) + col, out + r * kCols, kCols * sizeof(T));
  }
}

// B lies by columns, each k long. An element of C is the same tree of sums whatever its neighbours.
template <class W, class RowOfA, class RowOfC>
void multiply_few_by_columns(int64_t rows, int64_t k, const RowOfA& row_of_a, const W* b, int64_t col, int64_t last_col,
                             const RowOfC& row_of_c) {
  constexpr int kWide = kRegisters == 32 ? 8 : 4, kNarrow = kRegisters == 32 ? 4 : 2, kFew = 3, kMore = 6;
  const auto all = [&]<int kMost, int kCols>() {
    for (; col + kCols <= last_col; col += kCols)
      few_columns<kMost, kCols>(rows, k, row_of_a, b + col * k, col, row_of_c);
  };
  if (rows <= kFew) all.template operator()<kFew, kWide>();
  all.template operator()<kMore, kNarrow>();
  all.template operator()<kMore, 1>();
}

// C[kRows, kVecs words from col] = A[kRows, first..first + depth) @ those rows of B, added to it where first is not 0.
template <class T, int kRows, int kVecs>
void few_tile(const T* const* a, const T* b, int64_t n, int64_t first, int64_t depth, T* const* c, int64_t col) {
  constexpr int kStep = kLanes<T>;
  Lanes<T> sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sums[i][v] = first > 0 ? load_lanes(c[i] + col + v * kStep) : Lanes<T>{};
  const T* row = b + first * n + col;
  for (int64_t j = first; j < first + depth; ++j, row += n) {
    Lanes<T> right[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      __builtin_prefetch(row + kRowsAhead * n + v * kStep);
      right[v] = load_lanes(row + v * kStep);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Lanes<T> left = broadcast(a[i][j]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[i][v] = fma(left, right[v], sums[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store_lanes(c[i] + col + v * kStep, sums[i][v]);
}

// B lies by rows, each n long; rows <= kFewRowsOfRows. Takes whole pieces of columns, returns the first that it left.
// An element of C is the chain of sums that `multiply` makes.
template <class T, class RowOfA, class RowOfC>
int64_t multiply_few_by_rows(int64_t rows, int64_t k, const RowOfA& row_of_a, const T* b, int64_t n, int64_t col,
                             int64_t last_col, const RowOfC& row_of_c) {
  const T* a[kFewRowsOfRows];
  T* c[kFewRowsOfRows];
  for (int64_t i = 0; i < rows; ++i) a[i] = row_of_a(i), c[i] = row_of_c(i);
  const auto run = [&]<int kRows>(auto&& self) -> int64_t {
    constexpr int kVecs = kRegisters == 32 ? (kRows <= 3 ? 8 : 4) : kRows <= 2 ? 4 : kRows <= 4 ? 2 : 1;
    if (rows == kRows) {
      const int64_t wide = kVecs * kLanes<T>, end = col + (last_col - col) / wide * wide;
      for (int64_t first = 0, depth = 0; first < k; first += depth) {
        depth = next_share(k - first, kFewDepth, 1);
        for (int64_t at = col; at < end; at += wide) few_tile<T, kRows, kVecs>(a, b, n, first, depth, c, at);
      }
      return end;
    }
    if constexpr (kRows < kFewRowsOfRows) return self.template operator()<kRows + 1>(self);
    return col;
  };
  return k > 0 ? run.template operator()<1>(run) : col;
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
