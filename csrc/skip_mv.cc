// y = x @ w for few rows of x that hold many zeros: the rows of w that no row of x needs are never read.
//
// Time is that of reading the others, which lie at distances no prefetcher guesses. So eight are read side by side: while
// one is begun, the streams of the others run. (Prefetch instructions, for the next strips or for their first lines, cost
// up to a fifth of the bandwidth and never gave any.) Threads own columns: an element of y is one chain of multiply-adds
// in order of the rows of w, whatever the strips, the threads and the other rows of x. Where most rows of x need the same
// rows of w, those are widened once and met by all: where one of x does not, by a zero, which changes no sum.
#include "kernels.h"
#include "mv.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kRows = 8;               // rows of w side by side
constexpr int64_t kStripBytes = 8192;  // of each, added at a time: then the others of the batch take them from L2
constexpr int64_t kColumns = 64;       // threads own multiples of so many columns

// y[j] += the sum over r < kCount of x[r] * row[r][j], for j < count.
template <int kCount, class W>
void add_rows(const W* const* row, const float* x, int64_t count, float* y) {
  Lanes<float> factor[kCount];
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r) factor[r] = broadcast(x[r]);
  int64_t j = 0;
  for (; j + kLanes<float> <= count; j += kLanes<float>) {
    Lanes<float> sum = load_lanes(y + j);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) sum = fma(load_weights(row[r] + j), factor[r], sum);
    store_lanes(y + j, sum);
  }
  if (j < count) {
    const int rest = int(count - j);
    Lanes<float> sum = load_first(y + j, rest);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) sum = fma(load_weights(row[r] + j, rest), factor[r], sum);
    store_first(y + j, sum, rest);
  }
}

template <class W>
void add_some(int n, const W* const* row, const float* x, int64_t count, float* y) {
  if (n == kRows) return add_rows<kRows>(row, x, count, y);
  int r = 0;
  for (; r + 4 <= n; r += 4) add_rows<4>(row + r, x + r, count, y);
  if (n & 2) add_rows<2>(row + r, x + r, count, y), r += 2;
  if (n & 1) add_rows<1>(row + r, x + r, count, y);
}

// y[b, j] += the sum over r < n of x[r][b] * row[r][j], for j < count and b < kRowsOfX; y's rows are `stride` apart.
template <int kRowsOfX, class W>
void add_shared(int n, const W* const* row, const float (*x)[kBatch], int64_t count, float* y, int64_t stride) {
  constexpr int kWords = kRowsOfX <= 2 ? 4 : kRowsOfX <= 4 ? 2 : 1;  // as many sums as hide an addition's latency
  constexpr int64_t kStep = kWords * kLanes<float>;
  int64_t j = 0;
  for (; j + kStep <= count; j += kStep) {
    Lanes<float> sum[kRowsOfX][kWords];
#pragma GCC unroll 8
    for (int b = 0; b < kRowsOfX; ++b)
#pragma GCC unroll 4
      for (int v = 0; v < kWords; ++v) sum[b][v] = load_lanes(y + b * stride + j + v * kLanes<float>);
    for (int r = 0; r < n; ++r) {
      Lanes<float> weights[kWords];
#pragma GCC unroll 4
      for (int v = 0; v < kWords; ++v) weights[v] = load_weights(row[r] + j + v * kLanes<float>);
#pragma GCC unroll 8
      for (int b = 0; b < kRowsOfX; ++b) {
        const Lanes<float> factor = broadcast(x[r][b]);
#pragma GCC unroll 4
        for (int v = 0; v < kWords; ++v) sum[b][v] = fma(weights[v], factor, sum[b][v]);
      }
    }
#pragma GCC unroll 8
    for (int b = 0; b < kRowsOfX; ++b)
#pragma GCC unroll 4
      for (int v = 0; v < kWords; ++v) store_lanes(y + b * stride + j + v * kLanes<float>, sum[b][v]);
  }
  for (; j < count; j += kLanes<float>) {
    const int rest = int(least(kLanes<float>, count - j));
    for (int b = 0; b < kRowsOfX; ++b) {
      Lanes<float> sum = load_first(y + b * stride + j, rest);
      for (int r = 0; r < n; ++r) sum = fma(load_weights(row[r] + j, rest), broadcast(x[r][b]), sum);
      store_first(y + b * stride + j, sum, rest);
    }
  }
}

template <class W>
struct Product {
  const float* x;  // [batch, c]
  int64_t batch, c;
  const W* w;  // [c, k]
  int64_t k;
  const float* bias;
  const int64_t* place;  // the rows of w to read
  const uint8_t* who;
  int64_t found;
  float* y;  // [batch, k]
};

// The columns [begin, end) of y[b], with the rows of w in [at, at + rows) that x[b] keeps.
template <class W>
void add_own(const Product<W>& p, int64_t b, int64_t at, int rows, int64_t begin, int64_t end) {
  const W* mine[kRows];
  float factor[kRows];
  int n = 0;
  for (int r = 0; r < rows; ++r) {
    if (!(p.who[at + r] >> b & 1)) continue;
    mine[n] = p.w + p.place[at + r] * p.k + begin;
    factor[n++] = p.x[b * p.c + p.place[at + r]];
  }
  add_some(n, mine, factor, end - begin, p.y + b * p.k + begin);
}

// The same for every b; 0 times a weight is added where x does not keep the row.
template <class W>
void add_all(const Product<W>& p, int64_t at, int rows, int64_t begin, int64_t end) {
  const W* row[kRows];
  float factor[kRows][kBatch];
  for (int r = 0; r < rows; ++r) {
    row[r] = p.w + p.place[at + r] * p.k + begin;
    for (int64_t b = 0; b < p.batch; ++b) {  // by bits: a branch would be mispredicted every other time
      uint32_t bits;
      memcpy(&bits, p.x + b * p.c + p.place[at + r], 4);
      bits &= -uint32_t(p.who[at + r] >> b & 1);
      memcpy(&factor[r][b], &bits, 4);
    }
  }
  with_batch(p.batch, [&]<int kRowsOfX>() {
    add_shared<kRowsOfX>(rows, row, factor, end - begin, p.y + begin, p.k);
  });
}

template <class W>
void begin_with_bias(const Product<W>& p, int64_t b, int64_t begin, int64_t end) {
  if (p.bias) memcpy(p.y + b * p.k + begin, p.bias + begin, size_t(end - begin) * sizeof(float));
  else memset(p.y + b * p.k + begin, 0, size_t(end - begin) * sizeof(float));
}

// Makes -0 of y +0, which is all that adding zeros can have changed; true if a NaN is among y.
inline bool settle(float* y, int64_t count) {
  bool broken = false;
  for (int64_t j = 0; j < count; ++j) {
    y[j] += 0.0f;
    broken |= y[j] != y[j];
  }
  return broken;
}

// The columns [begin, end) of y.
template <class W>
void columns(const Product<W>& p, int64_t begin, int64_t end) {
  constexpr int64_t kStrip = kStripBytes / int64_t(sizeof(W));
  for (int64_t b = 0; b < p.batch; ++b) begin_with_bias(p, b, begin, end);
  bool shared = false;
  for (int64_t at = 0; at < p.found; at += kRows) {
    const int rows = int(least(kRows, p.found - at));
    int64_t pairs = 0;
    for (int r = 0; r < rows; ++r) pairs += __builtin_popcount(p.who[at + r]);
    if (shares<W>(pairs, rows, p.batch)) {
      add_all(p, at, rows, begin, end);
      shared = true;
      continue;
    }
    for (int64_t of = at; of < at + rows; of += kRows)
      for (int64_t from = begin; from < end; from += kStrip)
        for (int64_t b = 0; b < p.batch; ++b)
          add_own(p, b, of, int(least(kRows, at + rows - of)), from, least(end, from + kStrip));
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    if (!settle(p.y + b * p.k + begin, end - begin) || !shared) continue;
    // It may be of 0 times a weight that is not finite, which a row that drops it must not see.
    begin_with_bias(p, b, begin, end);
    for (int64_t of = 0; of < p.found; of += kRows)
      add_own(p, b, of, int(least(kRows, p.found - of)), begin, end);
    settle(p.y + b * p.k + begin, end - begin);
  }
}

template <class W>
void multiply(const float* x, int64_t batch, int64_t c, const W* w, int64_t k, const float* bias, float threshold,
              float* y, int64_t* counts, void* workspace, int threads) {
  int64_t* const place = static_cast<int64_t*>(workspace);
  uint8_t* const who = reinterpret_cast<uint8_t*>(place + c);
  counts[0] = 0;
  for (int64_t first = 0; first < batch; first += kBatch) {
    Product<W> p = {x + first * c, least(kBatch, batch - first), c, w, k, bias, place, who, 0, y + first * k};
    p.found = find_kept(p.x, p.batch, c, threshold, place, who, counts);
    const int team = useful_threads((p.found * int64_t(sizeof(W)) + p.batch * 4) * k, threads);
    const int64_t blocks = ceil_div(k, kColumns);
    parallel(team, team, [=, &p](int64_t part) {
      columns(p, part_begin(blocks, part, team) * kColumns, least(k, part_begin(blocks, part + 1, team) * kColumns));
    });
  }
}

}  // namespace

int64_t skip_mv_workspace(int64_t c) { return c * int64_t(sizeof(int64_t) + sizeof(uint8_t)); }

void skip_mv(const float* x, int64_t batch, int64_t c, const void* w, int type, int64_t k, const float* bias,
             float threshold, float* y, int64_t* counts, void* workspace, int threads) {
  with_weights(w, type, [=](auto weights) {
    multiply(x, batch, c, weights, k, bias, threshold, y, counts, workspace, threads);
  });
}

}  // namespace gossamer::GOSSAMER_ISA
