// The state of softmaxes that are made a stretch of scores at a time.
#pragma once
#include "exponential.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// A number of floats, filled up to cache lines.
inline int64_t whole_lines(int64_t floats) { return ceil_div(floats, 16) * 16; }

// The largest of the lanes, halves against halves.
inline float max_lanes(Lanes<float> v) {
  float lanes[kLanes<float>];
  store_lanes(lanes, v);
  for (int half = kLanes<float> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] < lanes[i + half] ? lanes[i + half] : lanes[i];
  return lanes[0];
}

// Of each row of a block: the largest score, the sum of exp(score - largest), and that of those times the values.
struct SoftmaxRows {
  float *largest, *sum, *values;
  int64_t rows, width;

  static int64_t floats(int64_t rows, int64_t width) { return whole_lines(rows * (width + 2)); }
  SoftmaxRows(float* room, int64_t rows, int64_t width)
      : largest(room + rows * width), sum(largest + rows), values(room), rows(rows), width(width) {}

  void clear() const {
    for (int64_t r = 0; r < rows; ++r) {
      largest[r] = -__builtin_inff();
      sum[r] = 0;
    }
    memset(values, 0, size_t(rows * width) * sizeof(float));
  }

  void scale(int64_t r, float by) const {
    sum[r] *= by;
    float* const row = values + r * width;
    for (int64_t d = 0; d < width; d += kLanes<float>) store_lanes(row + d, load_lanes(row + d) * broadcast(by));
  }

  // Turns scores[page] of row r into exp(score - largest), and counts them in.
  void take(int64_t r, float* scores, int64_t page) const {
    Lanes<float> most = load_lanes(scores);
    for (int64_t t = kLanes<float>; t < page; t += kLanes<float>) {
      const Lanes<float> some = load_lanes(scores + t);
      most = some < most ? most : some;  // NaN is taken over
    }
    const float here = max_lanes(most), top = here < largest[r] ? largest[r] : here;
    if (top == -__builtin_inff()) {
      memset(scores, 0, size_t(page) * sizeof(float));
      return;
    }
    if (top != largest[r]) {
      if (sum[r] != 0) scale(r, exp_of(largest[r] - top));
      largest[r] = top;
    }
    Lanes<float> total = {};
    for (int64_t t = 0; t < page; t += kLanes<float>) {
      const Lanes<float> p = exp_lanes(load_lanes(scores + t) - broadcast(top));
      store_lanes(scores + t, p);
      total += p;
    }
    sum[r] += sum_lanes<float>(total);
  }

  // Counts the rows of another chunk in; chunks come in order.
  void add(const SoftmaxRows& next) const {
    for (int64_t r = 0; r < rows; ++r) {
      if (next.largest[r] == -__builtin_inff()) continue;
      float* const row = values + r * width;
      const float* const other = next.values + r * width;
      const float top = next.largest[r] < largest[r] ? largest[r] : next.largest[r];
      const float mine = exp_of(largest[r] - top), theirs = exp_of(next.largest[r] - top);
      sum[r] = sum[r] * mine + next.sum[r] * theirs;
      largest[r] = top;
      for (int64_t d = 0; d < width; d += kLanes<float>)
        store_lanes(row + d, fma(load_lanes(row + d), broadcast(mine), load_lanes(other + d) * broadcast(theirs)));
    }
  }
};

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
