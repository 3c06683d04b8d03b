// Dense products, one thread's share at a time: a tile of C in registers, a panel of A in L1, a block of B in L2.
//
//     C[rows, cols]:  for each block of B (kDepth x kBlockCols), packed in panels of kTileCols columns:
//                         for each panel of kTileRows rows of A, packed by the caller's function:
//                             for each panel of B: a tile of C += panel of A x panel of B
//
// Rows of A come from wherever the caller's packing takes them, rows of C go wherever it says: gather and scatter cost
// nothing more. An element of C is one chain of fused multiply-adds in order of k, starting from zero or from what C
// holds; so its bits depend neither on blocks nor on threads.
#pragma once
#include "kernels.h"
#include "transpose_lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// With 32 registers: 28 sums, 2 words of B, 1 of A; with 16: 12 + 2 + 1, or fewer where a product needs one of its own.
constexpr int kTileRows = kRegisters == 32 ? 14 : kWidth == 32 ? 6 : 4;
constexpr int kTileVecs = 2;
template <class T>
constexpr int kTileCols = kTileVecs * kLanes<T>;

constexpr int64_t kDepth = 256;
// A line more than kDepth: rows a power of two apart would share the sets of L1.
template <class T>
constexpr int64_t kRowStride = kDepth + 64 / int64_t(sizeof(T));
constexpr int64_t kBlockBytes = 524288;  // half of an L2 of 1 MB
template <class T>
constexpr int64_t kBlockCols = kBlockBytes / int64_t(sizeof(T)) / kDepth;

// How a packed panel of A lies: row after row, or column after column.
enum class Order { kRows, kColumns };

// Rows of B that are asked for before they are needed, where no rule says which they are.
constexpr int kAhead = 8;

// A panel of B: row j begins at p + j * stride, or at p + at[j] where there is a list (of kAhead more than used).
template <class T>
struct Panel {
  const T* p;
  int64_t stride;
  const int64_t* at;
};

// kRows rows of C at `c` (each a row's address), `cols` columns from `col`: += (or =) A[kRows, depth] @ B[depth, cols].
template <class T, Order kOrder, bool kListed, int kRows, int kVecs>
void tile(const T* a, const Panel<T>& b, int64_t depth, T* const* c, int64_t col, int64_t cols, bool add) {
  constexpr int kStep = kLanes<T>;
  constexpr int64_t kAcross = kOrder == Order::kRows ? kRowStride<T> : 1;  // from row to row of A
  constexpr int64_t kAlong = kOrder == Order::kRows ? 1 : kTileRows;       // from column to column
  const bool whole = cols == kVecs * kStep;
  const int last = int(cols) - (kVecs - 1) * kStep;
  Lanes<T> sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      sum[i][v] = Lanes<T>{};
      if (add) {
        const T* const from = c[i] + col + v * kStep;
        sum[i][v] = whole || v + 1 < kVecs ? load_lanes(from) : load_first(from, last);
      }
    }
  }
  const T* row = b.p;
#pragma GCC unroll 4
  for (int64_t j = 0; j < depth; ++j) {
    if constexpr (kListed) {
      row = b.p + b.at[j];
      __builtin_prefetch(b.p + b.at[j + kAhead]);
      if (kVecs > 1) __builtin_prefetch(b.p + b.at[j + kAhead] + kStep);
    }
    Lanes<T> right[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) right[v] = load_lanes(row + v * kStep);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Lanes<T> left = broadcast(a[i * kAcross]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[i][v] = fma(left, right[v], sum[i][v]);
    }
    a += kAlong;
    if constexpr (!kListed) row += b.stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      T* const to = c[i] + col + v * kStep;
      if (whole || v + 1 < kVecs) store_lanes(to, sum[i][v]);
      else store_first(to, sum[i][v], last);
    }
  }
}

template <class T>
using TileFunction = void (*)(const T*, const Panel<T>&, int64_t, T* const*, int64_t, int64_t, bool);

template <class T, Order kOrder, bool kListed>
struct Tiles {
  TileFunction<T> of[kTileRows][kTileVecs];
  constexpr Tiles() : of{} { fill<1>(); }

 private:
  template <int kRows>
  constexpr void fill() {
    of[kRows - 1][0] = tile<T, kOrder, kListed, kRows, 1>;
    of[kRows - 1][1] = tile<T, kOrder, kListed, kRows, 2>;
    if constexpr (kRows < kTileRows) fill<kRows + 1>();
  }
};
template <class T, Order kOrder, bool kListed>
constexpr Tiles<T, kOrder, kListed> kTiles;

// `rows` rows of C, `cols` <= kTileCols columns.
template <class T, Order kOrder, bool kListed>
inline void multiply_tile(int64_t rows, const T* a, const Panel<T>& b, int64_t depth, T* const* c, int64_t col,
                          int64_t cols, bool add) {
  kTiles<T, kOrder, kListed>.of[rows - 1][cols > kLanes<T>](a, b, depth, c, col, cols, add);
}

// The next of the fewest equal shares of `left` that are at most `most`, in whole grains. Two halves waste less than a
// whole and a crumb. `most` is a multiple of `grain`.
inline int64_t next_share(int64_t left, int64_t most, int64_t grain) {
  if (left <= 0) return 0;
  const int64_t parts = ceil_div(left, most);
  return least(left, ceil_div(ceil_div(left, parts), grain) * grain);
}

// A matrix with a unit stride in one of its dimensions.
template <class T>
struct Matrix {
  const T* p;
  int64_t row, col;  // strides in elements
};
template <class T>
inline Matrix<T> matrix(const Operand& x) {
  return {static_cast<const T*>(x.address), x.transposed ? 1 : x.stride, x.transposed ? x.stride : 1};
}

// Packs `depth` rows of `cols` elements, row j at row_of(j), in panels of kTileCols columns, the last one filled up with
// zeros: out[panel][depth][kTileCols].
template <class T, class RowOf>
inline void pack_rows(T* out, const RowOf& row_of, int64_t depth, int64_t cols) {
  constexpr int64_t kCols = kTileCols<T>, kStep = kLanes<T>;
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  const int64_t whole = cols / kCols, left = cols - whole * kCols;
  for (int64_t j = 0; j < depth; ++j) {
    const T* const row = row_of(j);
    const T* const later = row_of(least(j + 4, depth - 1));  // rows are too short for the hardware to run ahead in
    T* to = out + j * kCols;
    for (int64_t p = 0; p < whole; ++p, to += depth * kCols) {
      for (int64_t i = 0; i < kCols; i += kLine) __builtin_prefetch(later + p * kCols + i);
      memcpy(to, row + p * kCols, kCols * sizeof(T));
    }
    if (left == 0) continue;
    const T* const rest = row + whole * kCols;
    store_lanes(to, load_first(rest, int(least(left, kStep))));
    store_lanes(to + kStep, left > kStep ? load_first(rest + kStep, int(left - kStep)) : Lanes<T>{});
  }
}

// Packs b[first, first + depth) x [from, from + cols) likewise.
template <class T>
void pack_panels(T* out, const Matrix<T>& b, int64_t first, int64_t depth, int64_t from, int64_t cols) {
  constexpr int64_t kCols = kTileCols<T>;
  const T* const in = b.p + first * b.row + from * b.col;
  if (b.col == 1) return pack_rows(out, [=](int64_t j) { return in + j * b.row; }, depth, cols);
  for (int64_t p = 0; p * kCols < cols; ++p) {
    T* const to = out + p * depth * kCols;
    const int64_t width = least(kCols, cols - p * kCols);
    if (width < kCols) memset(to, 0, size_t(depth * kCols) * sizeof(T));
    transpose(in + p * kCols * b.col, b.col, to, kCols, width, depth);
  }
}

template <class T>
constexpr int64_t kBlockWorkspace = kBlockBytes / int64_t(sizeof(T)) + kTileCols<T> * kDepth;  // elements, a thread

// C[rows, from..to) += (or =) A[rows, k] @ B[k, from..to).
//     pack_a(out, i, count, first, depth)      puts A[i, i + count) x [first, first + depth) where kOrder says
//     pack_b(out, first, depth, col, width)    puts B[first, first + depth) x [col, col + width) in panels
//     row_of_c(i)                              the address of row i of C
template <class T, Order kOrder, class PackA, class PackB, class RowOfC>
void multiply(int64_t rows, int64_t k, const PackA& pack_a, const PackB& pack_b, int64_t from, int64_t to,
              const RowOfC& row_of_c, bool add, T* workspace) {
  constexpr int64_t kCols = kTileCols<T>;
  alignas(64) T a[kOrder == Order::kRows ? kTileRows * kRowStride<T> : kTileRows * kDepth];
  if (rows == 0) return;
  for (int64_t col = from, width = 0; col < to; col += width) {
    width = next_share(to - col, kBlockCols<T>, kCols);
    int64_t first = 0;
    do {  // once where k is 0: C becomes zero
      const int64_t depth = next_share(k - first, kDepth, 1);
      pack_b(workspace, first, depth, col, width);
      for (int64_t i = 0, count = 0; i < rows; i += count) {
        count = next_share(rows - i, kTileRows, 1);
        T* c[kTileRows];
        for (int64_t r = 0; r < count; ++r) c[r] = row_of_c(i + r);
        pack_a(a, i, count, first, depth);
        for (int64_t j = 0; j < width; j += kCols)
          multiply_tile<T, kOrder, false>(count, a, {workspace + j * depth, kCols, nullptr}, depth, c, col + j,
                                          least(kCols, width - j), add || first > 0);
      }
      first += depth;
    } while (first < k);
  }
}

// Row numbers of 4 or 8 bytes; none: the position itself.
struct Rows {
  const void* list;
  int size;
  int64_t operator[](int64_t i) const {
    if (list == nullptr) return i;
    return size == 4 ? int64_t(static_cast<const int32_t*>(list)[i]) : static_cast<const int64_t*>(list)[i];
  }
};

// Part `part` of `parts` of a line of products, each of rows_of(g) x `cols`: calls body(g, first row, last row, first
// column, last column). Shares are equal in work, of which a product is work_of(g). It is cut across the longer of its
// sides, for each cut packs the other operand once more.
template <class T, class RowsOf, class WorkOf, class Body>
void share_products(int64_t products, int64_t cols, int64_t part, int64_t parts, const RowsOf& rows_of,
                    const WorkOf& work_of, const Body& body) {
  int64_t total = 0;
  for (int64_t g = 0; g < products; ++g) total += work_of(g);
  const int64_t begin = part_begin(total, part, parts), end = part_begin(total, part + 1, parts);
  int64_t at = 0;
  for (int64_t g = 0; g < products && at < end; ++g) {
    const int64_t whole = work_of(g), low = begin > at ? begin - at : 0, high = least(end - at, whole);
    at += whole;
    if (low >= high) continue;
    const int64_t rows = rows_of(g);
    const bool across = rows > cols;
    const int64_t size = across ? rows : cols, grain = across ? kTileRows : kTileCols<T>, grains = ceil_div(size, grain);
    // Where one part ends the next begins: both round the same place.
    const int64_t from = least(size, grains * low / whole * grain);
    const int64_t to = high == whole ? size : least(size, grains * high / whole * grain);
    if (from >= to) continue;
    if (across) body(g, from, to, int64_t(0), cols);
    else body(g, int64_t(0), rows, from, to);
  }
}

// Rows (of some products) whose product with B takes as long as packing B.
constexpr int64_t kPackingRows = 16;

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
