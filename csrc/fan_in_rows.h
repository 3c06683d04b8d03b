// The inner loops over the elements of one row, under one panel of the batch: the sums, and both gradients.
//
// A row has k elements: weight w[j] at column columns[j]. x and dx are panels of kV vectors a column. The rows of x that
// a row meets are few, so what the sums brought into L1 the gradients find there.
#pragma once
#include "dots.h"
#include "fan_in_panels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// z[v] += the sum over j of w[j] * x[columns[j]][v]. Every other element goes to a second set of sums, so that an
// addition seldom waits for another.
template <class T, int kV, class Number>
inline void dot_row(const T* w, const Number* columns, int64_t k, const T* x, Lanes<T> (&z)[kV]) {
  Lanes<T> other[kV] = {};
  const auto add = [&](Lanes<T>(&sum)[kV], int64_t j) __attribute__((always_inline)) {
    const Lanes<T> weight = broadcast(w[j]);
    const T* const row = x + int64_t(columns[j]) * (kV * kLanes<T>);
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) sum[v] = fma(weight, load_lanes(row + v * kLanes<T>), sum[v]);
  };
  int64_t j = 0;
  for (; j + 2 <= k; j += 2) {
    add(z, j);
    add(other, j + 1);
  }
  if (j < k) add(z, j);
#pragma GCC unroll 8
  for (int v = 0; v < kV; ++v) z[v] += other[v];
}

// dx[columns[j]][v] += w[j] * g[v]: the share of this row in the gradient by x.
template <class T, int kV, class Number>
inline void spread_row(const T* w, const Number* columns, int64_t k, const Lanes<T> (&g)[kV], T* dx) {
  for (int64_t j = 0; j < k; ++j) {
    const Lanes<T> weight = broadcast(w[j]);
    T* const row = dx + int64_t(columns[j]) * (kV * kLanes<T>);
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v)
      store_lanes(row + v * kLanes<T>, fma(weight, g[v], load_lanes(row + v * kLanes<T>)));
  }
}

// dw[j] = (if `more`, +=) the sum over v and lanes of g[v] * x[columns[j]][v]: the gradient by the elements.
template <class T, int kV, class Number>
inline void sample_row(const Number* columns, int64_t k, const Lanes<T> (&g)[kV], const T* x, bool more, T* dw) {
  const auto product = [&](int64_t j) __attribute__((always_inline)) {
    const T* const row = x + int64_t(columns[j]) * (kV * kLanes<T>);
    Lanes<T> sum = g[0] * load_lanes(row);
#pragma GCC unroll 8
    for (int v = 1; v < kV; ++v) sum = fma(g[v], load_lanes(row + v * kLanes<T>), sum);
    return sum;
  };
  Lanes<T> each[kLanes<T>];
  int64_t j = 0;
  for (; j + kLanes<T> <= k; j += kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) each[i] = product(j + i);
    const Lanes<T> sums = sum_each<T, kLanes<T>>(each);
    store_lanes(dw + j, more ? sums + load_lanes(dw + j) : sums);
  }
  if (j == k) return;
  const int left = int(k - j);
  for (int i = 0; i < kLanes<T>; ++i) each[i] = i < left ? product(j + i) : Lanes<T>{};
  const Lanes<T> sums = sum_each<T, kLanes<T>>(each);
  store_first(dw + j, more ? sums + load_first(dw + j, left) : sums, left);
}

// How far ahead memory is asked for; the indices of a block are looked at before its first row is multiplied.
constexpr int64_t kValuesAhead = 4 << 10, kIndicesAhead = 16 << 10;

// Always inline: a function that does nothing else counts as one that does nothing.
__attribute__((always_inline)) inline void fetch(const void* from, int64_t ahead, int64_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + uintptr_t(ahead);
  for (uintptr_t line = at & ~uintptr_t(63); line < at + uintptr_t(bytes); line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(line));
}

// Asks for what rows read later: a processor's own prefetcher stops at every page, which leaves a third of the time to
// waiting. What lies past the end is never read.
template <class Number>
__attribute__((always_inline)) inline void fetch_row(const void* values, int64_t bytes, const Number* columns,
                                                     int64_t k) {
  fetch(values, kValuesAhead, bytes);
  fetch(columns, kIndicesAhead, k * int64_t(sizeof(Number)));
}

// Calls f<kV, Number>() for a panel of so many vectors and an index of so many bytes.
template <int kV = kMostVectors, class F>
inline auto for_panel(int vectors, int64_t index_size, const F& f) {
  if constexpr (kV > 1) {
    if (vectors < kV) return for_panel<kV - 1>(vectors, index_size, f);
  }
  return index_size == 2 ? f.template operator()<kV, uint16_t>() : f.template operator()<kV, int32_t>();
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
