// dsd of tiles with one row, single elements above all: what limits it is reading b's panel from L2, so a nonzero must
// cost little else.
#pragma once
#include "dsd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// One row of the result. Every other element goes to a second set of sums, so that an addition seldom waits for another.
template <class T, int kV, class Index>
void multiply_row(const Tiles& s, const Run<T>& run, const Panel<T>& panel, T* out, int64_t) {
  Lanes<T> sum[2][kV] = {};
  const Index* const indices = static_cast<const Index*>(s.indices);
  const auto add = [&](int half, T a, const T* b) {
    const Lanes<T> w = broadcast(a);
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) sum[half][v] = fma(w, load_lanes(b + v * kLanes<T>), sum[half][v]);
  };
  int64_t slot = run.slot;
  if (s.bn == 1) {
    for (; slot + 2 <= run.end; slot += 2) {
      add(0, run.a[slot], panel.b + int64_t(indices[slot]) * panel.stride);
      add(1, run.a[slot + 1], panel.b + int64_t(indices[slot + 1]) * panel.stride);
    }
    if (slot < run.end) add(0, run.a[slot], panel.b + int64_t(indices[slot]) * panel.stride);
  } else {
    for (; slot < run.end; ++slot) {
      const int64_t left = int64_t(indices[slot]) * s.bn, inside = least(s.bn, s.cols - left);
      const T* const a = run.a + slot * s.bn;
      const T* b = panel.b + left * panel.stride;
      int64_t i = 0;
      for (; i + 2 <= inside; i += 2, b += 2 * panel.stride) {
        add(0, a[i], b);
        add(1, a[i + 1], b + panel.stride);
      }
      if (i < inside) add(0, a[i], b);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kV; ++v) store_lanes(out + v * kLanes<T>, sum[0][v] + sum[1][v]);
}

template <class T, int kV = kMostVectors>
Multiply<T> multiply_row_of(int vectors, int index_size) {
  if constexpr (kV > 1) {
    if (vectors < kV) return multiply_row_of<T, kV - 1>(vectors, index_size);
  }
  return index_size == 2 ? multiply_row<T, kV, uint16_t> : multiply_row<T, kV, int32_t>;
}

// As in_order, of elements one by one. Few instructions, so that many reads from far away are under way at once: a vector
// of places is checked together.
template <class T, class Stored>
bool elements_in_order(const Tiles& s, const Stored* values, int64_t slot, int64_t end, T* out) {
  typedef uint32_t Numbers __attribute__((vector_size(kWidth)));
  constexpr int64_t kStep = kWidth / 4;
  const int32_t* const order = static_cast<const int32_t*>(s.order);
  const Numbers bound = Numbers{} + uint32_t(least(s.capacity, int64_t(1) << 31));
  for (; slot + kStep <= end; slot += kStep) {
    if (any_bit((Vec)((Numbers)load(order + slot) >= bound))) return false;
#pragma GCC unroll 16
    for (int64_t i = slot; i < slot + kStep; ++i) out[i] = T(widen(values[order[i]]));
  }
  if (!values_exist(s, slot, end)) return false;
  for (; slot < end; ++slot) out[slot] = T(widen(values[order[slot]]));
  return true;
}

template <class T, class Stored>
bool in_order_of(const Tiles& s, const Stored* values, int64_t slot, int64_t end, T* out) {
  if (s.bn == 1 && s.scale == nullptr && s.order_size == 4 && s.order != nullptr)
    return elements_in_order(s, values, slot, end, out);
  if (!values_exist(s, slot, end)) return false;
  for (; slot < end; ++slot) {
    const int64_t source = source_of(s, slot);
    const T scale = s.scale != nullptr ? T(s.scale[source]) : T(1);
    for (int64_t i = 0; i < s.bn; ++i) out[slot * s.bn + i] = T(widen(values[source * s.bn + i])) * scale;
  }
  return true;
}

// Slots [slot, end) of tiles with one row: as T, times their scale, in the order of slots; false if one of them has no
// value. Done once, for every panel reads them all, and a random access costs as much as the product of its element with
// a panel.
template <class T>
bool in_order(const Tiles& s, int64_t slot, int64_t end, T* out) {
  if constexpr (sizeof(T) == 8) return in_order_of(s, static_cast<const double*>(s.values), slot, end, out);
  if constexpr (sizeof(T) == 4) {
    if (s.storage == Storage::kBFloat16)
      return in_order_of(s, static_cast<const BFloat16*>(s.values), slot, end, out);
    if (s.storage == Storage::kInt8) return in_order_of(s, static_cast<const int8_t*>(s.values), slot, end, out);
    return in_order_of(s, static_cast<const float*>(s.values), slot, end, out);
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
