// The slots of a pattern: whose row of tiles a slot is in, and which tile column its index names.
#pragma once
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// The row of tiles that owns `slot`: the last whose offset is not beyond it (rows without tiles own none).
inline int64_t row_of(const int64_t* offsets, int64_t tile_rows, int64_t slot) {
  int64_t low = 0, high = tile_rows;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (offsets[middle] <= slot ? low : high) = middle;
  }
  return low;
}

inline int64_t index_at(const void* indices, int index_size, int64_t slot) {
  return index_size == 2 ? int64_t(static_cast<const uint16_t*>(indices)[slot])
                         : int64_t(static_cast<const int32_t*>(indices)[slot]);
}

// Calls f(row of tiles, first slot, end slot) for every row of tiles that has some of the slots [slot, end).
template <class F>
inline void for_each_row(const int64_t* offsets, int64_t tile_rows, int64_t slot, int64_t end, const F& f) {
  for (int64_t i = slot < end ? row_of(offsets, tile_rows, slot) : 0; slot < end; ++i) {
    const int64_t stop = least(end, offsets[i + 1]);
    if (slot >= stop) continue;
    f(i, slot, stop);
    slot = stop;
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
