// Sampled product: of a @ b only the tiles that a pattern names.
#include "sdd.h"

#include "dots.h"
#include "transpose_lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kTall = 4, kWide = kRegisters / 8;  // products at a time: their sums and the operands fit in registers
constexpr int64_t kStripCols = 16;                // columns of b that stay in L1 beside kTall rows of a

// A piece of a tile and what it is the product of.
template <class T>
struct Piece {
  const T *a, *b;
  int64_t a_stride, b_stride, k;
  T* out;
  int64_t bn;
  bool add;
};

template <int kRows, int kCols, class T>
void block(const Piece<T>& p, int64_t r, int64_t c) {
  T sums[kRows * kCols];
  dots<kRows, kCols>(p.a + r * p.a_stride, p.a_stride, p.b + c * p.b_stride, p.b_stride, p.k, sums);
  T* const out = p.out + r * p.bn + c;
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kCols; ++j) out[i * p.bn + j] = sums[i * kCols + j] + (p.add ? out[i * p.bn + j] : T(0));
}

template <int kRows, class T>
void block_row(const Piece<T>& p, int64_t r, int64_t c, int64_t end) {
  for (; c + kWide <= end; c += kWide) block<kRows, kWide>(p, r, c);
  for (; c < end; ++c) block<kRows, 1>(p, r, c);
}

template <class T>
void tile(const Piece<T>& p, int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c += kStripCols) {
    const int64_t end = least(cols, c + kStripCols);
    int64_t r = 0;
    for (; r + kTall <= rows; r += kTall) block_row<kTall>(p, r, c, end);
    for (; r + 2 <= rows; r += 2) block_row<2>(p, r, c, end);
    if (r < rows) block_row<1>(p, r, c, end);
  }
}

template <class T>
bool tiles(const Sampled<T>& s, int threads) {
  Verdict verdict;
  parallel(threads, threads, [&, threads](int64_t part) {
    const int64_t begin = part_begin(s.used(), part, threads), end = part_begin(s.used(), part + 1, threads);
    if (!verdict.add(s.columns_exist(begin, end))) return;
    for_each_piece<T>(s.k, [&](int64_t from, int64_t k) {
      const auto visit = [&](int64_t i, int64_t slot, int64_t stop) {
        const int64_t height = least(s.bm, s.rows - i * s.bm);
        for (; slot < stop; ++slot) {
          const int64_t j = s.column(slot) * s.bn, width = least(s.bn, s.cols - j);
          T* const out = s.values + slot * s.bm * s.bn;
          if (from == 0 && (height < s.bm || width < s.bn)) memset(out, 0, size_t(s.bm * s.bn) * sizeof(T));
          const T *const a = s.a + i * s.bm * s.a_stride + from, *const b = s.b + j * s.b_stride + from;
          tile(Piece<T>{a, b, s.a_stride, s.b_stride, k, out, s.bn, from > 0}, height, width);
        }
      };
      s.for_each_row(begin, end, visit);
    });
  });
  return verdict.right();
}

// Rows that are asked for before they are transposed: nothing else foresees such a stride.
constexpr int64_t kRowsAhead = 32;

// out[i, :] = column i of x[k, columns], contiguous along k.
template <class T>
void pack_columns(const T* x, int64_t stride, int64_t k, int64_t columns, T* out, int threads) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));  // columns in a cache line: all of it is used while it is there
  const int64_t strips = ceil_div(columns, kLine);
  parallel(threads, threads, [=](int64_t part) {
    const int64_t end = part_begin(strips, part + 1, threads);
    for (int64_t strip = part_begin(strips, part, threads); strip < end; ++strip) {
      const int64_t c = strip * kLine, wide = least(kLine, columns - c);
      for (int64_t r = 0; r < k; r += kSide<T>) {
        for (int64_t i = r + kRowsAhead; i < least(k, r + kRowsAhead + kSide<T>); ++i)
          __builtin_prefetch(x + i * stride + c);
        transpose(x + r * stride + c, stride, out + c * k + r, k, least(kSide<T>, k - r), wide);
      }
    }
  });
}

template <class T>
bool sampled(Sampled<T> s, bool pack_a, bool pack_b, T* packed, int threads) {
  const int64_t used = s.used(), tile_bytes = s.bm * s.bn * int64_t(sizeof(T));
  threads = useful_threads(used * tile_bytes * (s.k / 8), threads);
  memset(s.values + used * s.bm * s.bn, 0, size_t((s.capacity - used) * tile_bytes));
  if (used == 0) return true;
  if (s.k == 0) {
    memset(s.values, 0, size_t(used * tile_bytes));
    return s.columns_exist(0, used);
  }
  if (pack_a) {
    pack_columns(s.a, s.a_stride, s.k, s.rows, packed, threads);
    s.a = packed;
    s.a_stride = s.k;
    packed += s.rows * s.k;
  }
  if (pack_b) {
    pack_columns(s.b, s.b_stride, s.k, s.cols, packed, threads);
    s.b = packed;
    s.b_stride = s.k;
  }
  return s.bm == 1 || s.bn == 1 ? sdd_elements(s, threads) : tiles(s, threads);
}

}  // namespace

bool sdd(const Operand& a, const Operand& b, int64_t k, int element_size, const Index& index, void* values, void* packed,
         int64_t* next, int threads) {
  const Slots slots(index);
  if (!slots.offsets_are_right()) return false;
  const auto run = [&]<class T>(T* out) {
    const Sampled<T> s = {slots, static_cast<const T*>(a.address), a.stride, static_cast<const T*>(b.address), b.stride,
                          k, out, next};
    return sampled(s, a.transposed, !b.transposed, static_cast<T*>(packed), threads);
  };
  return element_size == 4 ? run(static_cast<float*>(values)) : run(static_cast<double*>(values));
}

}  // namespace gossamer::GOSSAMER_ISA
