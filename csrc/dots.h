// Inner products: sums over k of vectors that are contiguous along k, several at a time.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class T>
struct LaneIndex;
template <>
struct LaneIndex<float> {
  typedef int32_t type __attribute__((vector_size(kWidth)));
};
template <>
struct LaneIndex<double> {
  typedef int64_t type __attribute__((vector_size(kWidth)));
};

// Adds lane pairs that are kFar apart: the lanes without bit kFar get those of x, the lanes with it those of y.
template <int kFar, class T>
inline Lanes<T> fold(Lanes<T> x, Lanes<T> y) {
#if defined(__clang__)  // has no __builtin_shuffle
  Lanes<T> near, far;
  for (int i = 0; i < kLanes<T>; ++i) {
    near[i] = i & kFar ? y[i] : x[i];
    far[i] = i & kFar ? y[i ^ kFar] : x[i ^ kFar];
  }
  return near + far;
#else
  typename LaneIndex<T>::type near, far;
  for (int i = 0; i < kLanes<T>; ++i) {
    near[i] = i + (i & kFar ? kLanes<T> : 0);
    far[i] = near[i] ^ kFar;
  }
  return __builtin_shuffle(x, y, near) + __builtin_shuffle(x, y, far);
#endif
}

// Lane i of the result is the sum of the lanes of v[i], for i < kCount <= kLanes; the same tree of sums for each i, so a
// product does not depend on its neighbours.
template <class T, int kCount, int kFar = 0>
inline Lanes<T> sum_each(Lanes<T>* v) {
  constexpr int kHalf = kFar == 0 ? kLanes<T> / 2 : kFar;
#pragma GCC unroll 16
  for (int i = 0; i < kHalf; ++i)
    if (i < kCount) v[i] = fold<kHalf, T>(v[i], i + kHalf < kCount ? v[i + kHalf] : v[i]);
  if constexpr (kHalf > 1) return sum_each<T, (kCount < kHalf ? kCount : kHalf), kHalf / 2>(v);
  else return v[0];
}

// out[i] = the sum of the lanes of v[i].
template <class T, int kCount>
inline void store_sums(Lanes<T>* v, T* out) {
  constexpr int kWhole = kCount / kLanes<T> * kLanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < kWhole; i += kLanes<T>) store_lanes(out + i, sum_each<T, kLanes<T>>(v + i));
  if constexpr (kWhole < kCount) store_first(out + kWhole, sum_each<T, kCount - kWhole>(v + kWhole), kCount - kWhole);
}

// out[r * kCols + c] = the product of row r of a and row c of b, both k long.
template <int kRows, int kCols, class T>
inline void dots(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t k, T* out) {
  Lanes<T> sums[kRows * kCols] = {};
  const auto step = [&](auto load_next) __attribute__((always_inline)) {
    Lanes<T> left[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) left[r] = load_next(a + r * a_stride);
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      const Lanes<T> right = load_next(b + c * b_stride);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[r * kCols + c] = fma(left[r], right, sums[r * kCols + c]);
    }
    a += kLanes<T>;
    b += kLanes<T>;
  };
  for (int64_t n = k / kLanes<T>; n > 0; --n) step([](const T* p) { return load_lanes(p); });
  const int rest = int(k % kLanes<T>);
  if (rest > 0) step([=](const T* p) { return load_first(p, rest); });
  store_sums<T, kRows * kCols>(sums, out);
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
