// Moving one tile between a matrix and a packed buffer; shared by gather and scatter, which are each other's transpose.
#pragma once
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Copies `rows` pieces of `bytes` bytes between two places with their own strides, all in bytes.
template <int64_t kBytes>
inline void copy_fixed(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) __builtin_memcpy(to + r * to_stride, from + r * from_stride, size_t(kBytes));
}

inline void copy_rows(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t rows, int64_t bytes) {
  switch (bytes) {  // a constant size becomes a few register moves; a call of memcpy costs more than a short row
    case 1: return copy_fixed<1>(to, to_stride, from, from_stride, rows);
    case 2: return copy_fixed<2>(to, to_stride, from, from_stride, rows);
    case 4: return copy_fixed<4>(to, to_stride, from, from_stride, rows);
    case 8: return copy_fixed<8>(to, to_stride, from, from_stride, rows);
    case 16: return copy_fixed<16>(to, to_stride, from, from_stride, rows);
    case 32: return copy_fixed<32>(to, to_stride, from, from_stride, rows);
    case 64: return copy_fixed<64>(to, to_stride, from, from_stride, rows);
    case 128: return copy_fixed<128>(to, to_stride, from, from_stride, rows);
    case 256: return copy_fixed<256>(to, to_stride, from, from_stride, rows);
    default:
      for (int64_t r = 0; r < rows; ++r) memcpy(to + r * to_stride, from + r * from_stride, size_t(bytes));
  }
}

inline int64_t index_at(const void* indices, int index_size, int64_t slot) {
  return index_size == 2 ? int64_t(static_cast<const uint16_t*>(indices)[slot])
                         : int64_t(static_cast<const int32_t*>(indices)[slot]);
}

// The row of tiles that owns `slot`: the last whose offset is not beyond it (rows without tiles own none).
inline int64_t row_of(const int64_t* offsets, int64_t tile_rows, int64_t slot) {
  int64_t low = 0, high = tile_rows;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (offsets[middle] <= slot ? low : high) = middle;
  }
  return low;
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
