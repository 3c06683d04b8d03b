// One product of sparse tiles with a dense matrix, as the files of this op see it.
#pragma once
#include "lanes.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

enum class Storage { kFloat, kDouble, kBFloat16, kInt8 };

// The tiles of S and where they go. A segment is a run of slots of one tile row; the sum of the segments of a row is the
// row of the product.
struct Tiles : Slots {
  const void* values;
  Storage storage;
  const float* scale;  // null: none
  const void* order;   // null: values are in the order of slots
  int order_size;
  bool transposed;     // tiles are stored as bn x bm
};

// Whether the values of slots [slot, end) exist; and their tile columns.
inline bool values_exist(const Tiles& s, int64_t slot, int64_t end) {
  return s.order == nullptr || all_below(s.order, s.order_size, slot, end, s.capacity);
}
inline bool tiles_exist(const Tiles& s, int64_t slot, int64_t end) {
  return s.columns_exist(slot, end) && values_exist(s, slot, end);
}

inline int64_t source_of(const Tiles& s, int64_t slot) {
  if (s.order == nullptr) return slot;
  return s.order_size == 4 ? int64_t(static_cast<const int32_t*>(s.order)[slot])
                           : static_cast<const int64_t*>(s.order)[slot];
}

// Whether the tiles are stored as what they are multiplied as.
inline bool as_is(const Tiles& s) {
  return s.scale == nullptr && (s.storage == Storage::kFloat || s.storage == Storage::kDouble);
}

// Rows of `b` under a panel of columns: element (i, j) at b[i * stride + j].
template <class T>
struct Panel {
  const T* b;
  int64_t stride;
  int vectors;
};

// What a kernel multiplies: slots [slot, end) of one tile row, whose elements (r, i) lie at a[source * tile + r * row +
// i * col], one of row and col being 1; `source` is order[slot], or slot - first. Columns [from, to) of each tile.
template <class T>
struct Run {
  const T* a;
  int64_t tile, row, col;
  int64_t first;
  bool ordered;
  int64_t slot, end;
  int64_t from, to;
  bool more;  // add to what `out` holds
};

// Rows of the result held in registers, and vectors of each: accumulators, a row of b and a broadcast must fit.
constexpr int kMostRows = kRegisters / 4;
constexpr int kMostVectors = 4;
template <class T>
constexpr int kLine = 64 / int(sizeof(T));  // elements of a cache line
constexpr int most_vectors(int rows) {
  constexpr int kFree = kRegisters - (kWidth == 16 ? 2 : 1);  // without a fused instruction a product needs one too
  return kFree / (rows + 1) < kMostVectors ? kFree / (rows + 1) : kMostVectors;
}

// Multiplies `run` by a panel into rows of whole vectors.
template <class T>
using Multiply = void (*)(const Tiles&, const Run<T>&, const Panel<T>&, T* out, int64_t out_stride);

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
