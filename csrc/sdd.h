// What the two halves of the sampled product share: blocks of tiles (sdd.cc) and single rows or columns
// (sdd_elements.cc).
#pragma once
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {

// Row i of a and row j of b (that is column j of the right factor) are contiguous along k.
template <class T>
struct Sampled : Slots {
  const T* a;
  int64_t a_stride;
  const T* b;
  int64_t b_stride;
  int64_t k;
  T* values;
  int64_t* next;  // workspace: tile_rows + threads entries
};

// Tiles of one row or one column. False if a slot names a column that does not exist.
bool sdd_elements(const Sampled<float>& s, int threads);
bool sdd_elements(const Sampled<double>& s, int threads);

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
  const int64_t begin = part_begin(s.used(), part, parts), end = part_begin(s.used(), part + 1, parts);
  if (begin == end) return;
  if (width >= s.tile_cols) return s.for_each_row(begin, end, f);
  const int64_t first = s.row_of(begin), last = s.row_of(end - 1);
  int64_t* const next = s.next + part;  // the row at a border between parts is in both: each has its own entry
  for (int64_t i = first; i <= last; ++i) next[i] = i == first ? begin : s.offsets[i];
  for (int64_t limit = width;; limit += width) {
    for (int64_t i = first; i <= last; ++i) {
      const int64_t from = next[i], stop = least(end, s.offsets[i + 1]);
      int64_t to = from;
      if (limit >= s.tile_cols) {
        to = stop;
      } else {
        while (to < stop && s.column(to) < limit) ++to;
      }
      next[i] = to;
      if (from < to) f(i, from, to);
    }
    if (limit >= s.tile_cols) return;
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
