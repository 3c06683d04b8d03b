// What the two halves of the sampled product share: blocks of tiles (sdd.cc) and single rows or columns
// (sdd_elements.cc).
#pragma once
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {

// Row i of a and row j of b (that is column j of the right factor) are contiguous along k.
template <class T>
struct Sampled {
  const T* a;
  int64_t a_stride, m;
  const T* b;
  int64_t b_stride, n;
  int64_t k;
  const int64_t* offsets;
  const void* indices;
  int index_size;
  int64_t bm, bn, used;
  T* values;
  int64_t* next;  // scratch: tile_rows + threads entries
};

// Tiles of one row or one column.
void sdd_elements(const Sampled<float>& s, int threads);
void sdd_elements(const Sampled<double>& s, int threads);

namespace {

// The products are summed over pieces of k, so that the rows under way stay in L1.
constexpr int64_t kPieceBytes = 2048;

// Calls f(from, length) for equal pieces of k, whole vectors each but the last.
template <class T, class F>
inline void for_each_piece(int64_t k, const F& f) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  const int64_t pieces = ceil_div(k * int64_t(sizeof(T)), kPieceBytes);
  const int64_t length = pieces > 0 ? ceil_div(ceil_div(k, pieces), kLine) * kLine : 0;
  for (int64_t from = 0; from < k; from += length) f(from, least(length, k - from));
}

// Calls f(row of tiles, first slot, end slot) for the slots of `part`, `width` tile columns at a time: what is read of b
// then stays in cache while all rows of the part pass over it. Where the columns of a row do not ascend, some come later
// than they could, which changes nothing but time.
template <class T, class F>
inline void for_each_visit(const Sampled<T>& s, int64_t part, int64_t parts, int64_t width, const F& f) {
  const int64_t tile_rows = ceil_div(s.m, s.bm), tile_cols = ceil_div(s.n, s.bn);
  const int64_t begin = part_begin(s.used, part, parts), end = part_begin(s.used, part + 1, parts);
  if (begin == end) return;
  if (width >= tile_cols) return for_each_row(s.offsets, tile_rows, begin, end, f);
  const int64_t first = row_of(s.offsets, tile_rows, begin), last = row_of(s.offsets, tile_rows, end - 1);
  int64_t* const next = s.next + part;  // the row at a border between parts is in both: each has its own entry
  for (int64_t i = first; i <= last; ++i) next[i] = i == first ? begin : s.offsets[i];
  for (int64_t limit = width;; limit += width) {
    for (int64_t i = first; i <= last; ++i) {
      const int64_t from = next[i], stop = least(end, s.offsets[i + 1]);
      int64_t to = from;
      if (limit >= tile_cols) {
        to = stop;
      } else {
        while (to < stop && index_at(s.indices, s.index_size, to) < limit) ++to;
      }
      next[i] = to;
      if (from < to) f(i, from, to);
    }
    if (limit >= tile_cols) return;
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
