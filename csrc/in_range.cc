// Is every tile that a pattern names there? Read before any of it is used as an address.
#include "kernels.h"
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Without a branch, so that it becomes vector code; a negative index is a large unsigned one.
template <class Index>
int64_t highest(const Index* indices, int64_t n) {
  Index most = 0;
  for (int64_t slot = 0; slot < n; ++slot) most = indices[slot] > most ? indices[slot] : most;
  return int64_t(most);
}

}  // namespace

bool in_range(const int64_t* offsets, int64_t tile_rows, const void* indices, int index_size, int64_t tile_cols,
              int64_t capacity) {
  bool falls = offsets[0] != 0;
  for (int64_t i = 0; i < tile_rows; ++i) falls |= offsets[i + 1] < offsets[i];
  const int64_t used = least(offsets[tile_rows], capacity);
  if (falls) return false;
  if (used == 0) return true;
  return (index_size == 2 ? highest(static_cast<const uint16_t*>(indices), used)
                          : highest(static_cast<const uint32_t*>(indices), used)) < tile_cols;
}

}  // namespace gossamer::GOSSAMER_ISA
