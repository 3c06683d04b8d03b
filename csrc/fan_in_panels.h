// x of the fan-in ops: what a column holds for a panel of the batch is a few vectors side by side.
#pragma once
#include "dsd.h"
#include "transpose_lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class T>
struct Panels {
  int64_t batch, cols;

  int64_t vectors() const { return ceil_div(batch * int64_t(sizeof(T)), kWidth); }
  int64_t count() const { return ceil_div(vectors(), kMostVectors); }
  int64_t begin(int64_t p) const { return part_begin(vectors(), p, count()); }
  int64_t elements() const { return vectors() * kLanes<T> * cols; }

  // Rows [first, first + width) of x lie under panel p, and zeros up to its stride.
  int64_t first(int64_t p) const { return begin(p) * kLanes<T>; }
  int64_t stride(int64_t p) const { return (begin(p + 1) - begin(p)) * kLanes<T>; }
  int64_t width(int64_t p) const { return least(batch - first(p), stride(p)); }

  template <class Packed>
  Packed* at(Packed* packed, int64_t p) const { return packed + first(p) * cols; }
  Panel<T> of(const T* packed, int64_t p) const {
    return {at(packed, p), stride(p), int(begin(p + 1) - begin(p))};
  }

  // Columns [from, to) of x under one panel.
  void pack(const Operand& x, T* packed, int64_t p, int64_t from, int64_t to) const {
    const int64_t left = first(p), wide = width(p), step = stride(p);
    T* const out = at(packed, p) + from * step;
    const T* const source = static_cast<const T*>(x.address);
    if (!x.transposed) transpose(source + left * x.stride + from, x.stride, out, step, wide, to - from);
    for (int64_t c = from; c < to; ++c) {
      T* const row = out + (c - from) * step;
      if (x.transposed) memcpy(row, source + c * x.stride + left, size_t(wide) * sizeof(T));
      memset(row + wide, 0, size_t(step - wide) * sizeof(T));
    }
  }

  void pack_all(const Operand& x, T* packed, int threads) const {
    const int parts = useful_threads(batch * cols * int64_t(sizeof(T)), threads);
    parallel(parts, parts, [&](int64_t part) {
      for (int64_t p = 0; p < count(); ++p)
        pack(x, packed, p, part_begin(cols, part, parts), part_begin(cols, part + 1, parts));
    });
  }

  // out[batch, cols], contiguous, from what is packed.
  void unpack_all(const T* packed, T* out, int threads) const {
    const int parts = useful_threads(batch * cols * int64_t(sizeof(T)), threads);
    parallel(parts, parts, [&](int64_t part) {
      const int64_t from = part_begin(cols, part, parts), to = part_begin(cols, part + 1, parts);
      for (int64_t p = 0; p < count(); ++p)
        transpose(at(packed, p) + from * stride(p), stride(p), out + first(p) * cols + from, cols, to - from, width(p));
    });
  }
};

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
