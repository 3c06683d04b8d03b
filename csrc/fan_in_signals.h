// dy of the fan-in gradients: what a row holds for a panel of the batch, as the panels of x have it.
#pragma once
#include "fan_in_panels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kSignalRows = 16;  // taken at a time: a line of a dy that is not transposed

// out[i][stride of the panel] = dy[batch of the panel, row + i], zero past the batch.
template <class T>
inline void take_rows(const Operand& dy, const Panels<T>& panels, int64_t p, int64_t row, int64_t rows, T* out) {
  const int64_t left = panels.first(p), wide = panels.width(p), stride = panels.stride(p);
  const T* const from = static_cast<const T*>(dy.address);
  if (!dy.transposed) transpose(from + left * dy.stride + row, dy.stride, out, stride, wide, rows);
  for (int64_t i = 0; i < rows; ++i) {
    if (dy.transposed) memcpy(out + i * stride, from + (row + i) * dy.stride + left, size_t(wide) * sizeof(T));
    memset(out + i * stride + wide, 0, size_t(stride - wide) * sizeof(T));
  }
}

template <class T, int kV>
inline void load_row(const T* p, Lanes<T> (&g)[kV]) {
#pragma GCC unroll 8
  for (int v = 0; v < kV; ++v) g[v] = load_lanes(p + v * kLanes<T>);
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
