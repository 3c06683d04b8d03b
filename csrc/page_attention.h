// The parts of attention over pages: which rows look at which pages, and the state of a row's softmax.
#pragma once
#include "exponential.h"
#include "page_products.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kMostRows = 128;   // queries that meet a page together ...
constexpr int64_t kMostPaired = 256;  // ... and where bfloat16 numbers are multiplied as such, which takes less time
constexpr int64_t kFewRows = 16;     // fewer are divided along their pages too
constexpr int64_t kChunkPages = 16;  // pages whose softmax is one sum: the same however rows and pages are divided

#if defined(GOSSAMER_AVX512_BF16)
constexpr bool kMultipliesPairs = true;
#else
constexpr bool kMultipliesPairs = false;
#endif
inline bool in_pairs(const PageTiles& pages) { return kMultipliesPairs && pages.stored() == Stored::kBFloat16; }
inline int64_t most_rows(const PageTiles& pages) { return in_pairs(pages) ? kMostPaired : kMostRows; }

// A number of floats, filled up to cache lines.
inline int64_t whole_lines(int64_t floats) { return ceil_div(floats, 16) * 16; }

// Queries that look at the same pages: those of `tokens` consecutive tokens of a request, and of `heads` heads of each.
struct QueryBlock {
  int64_t request, token, tokens, pool_head, head, heads;
  int64_t first_place;      // in the request, of the first token
  int64_t list, list_end;   // entries of the list of pages; without one: list is -1
  int64_t rows() const { return tokens * heads; }
  int64_t last_place() const { return first_place + tokens - 1; }
};

// The keys that a token sees: at most its own place, and of those the first `sink` and the last `window`.
struct Sight {
  int64_t page, window, sink;

  bool any(const QueryBlock& b, int64_t p) const {
    const int64_t begin = p * page;
    return begin <= b.last_place() && (begin < sink || begin + page - 1 > b.first_place - window);
  }
  bool all(const QueryBlock& b, int64_t p) const {
    const int64_t end = (p + 1) * page - 1;
    return end <= b.first_place && (end < sink || p * page > b.last_place() - window);
  }
  // Makes the scores of the keys that the token at `place` does not see minus infinity.
  void hide(float* scores, int64_t p, int64_t place) const {
    const float hidden = -__builtin_inff();
    const int64_t begin = p * page, old = place - window + 1 - begin;
    int64_t t = sink > begin ? sink - begin : 0;
    for (; t < least(old, page); ++t) scores[t] = hidden;
    for (t = place + 1 - begin > 0 ? place + 1 - begin : 0; t < page; ++t) scores[t] = hidden;
  }
};

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
