// y = gate * (x @ w^T + bias) for few rows of x: the rows of w whose gate is zero for every row of x are never read.
//
// The rows that are read are listed first and dealt out in equal runs of the list; eight are read side by side, as in
// skip_mv.cc. An inner product is made by one thread, one chain of multiply-adds per lane of a vector, so its bits depend
// on the length of a row and on nothing beside it.
#include "kernels.h"
#include "mv.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kRows = 8;               // rows of w side by side
constexpr int64_t kStripBytes = 8192;  // of each, multiplied at a time: then the others of the batch take them from L2
constexpr int64_t kSharedBytes = 32768;  // of all rows of x, where they share what is read

// *total[r] += the products of row[r] and x, for r < kCount, over count elements.
template <int kCount, class W>
void add_dots(const W* const* row, const float* x, int64_t count, Lanes<float>* const* total) {
  Lanes<float> sum[kCount];
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r) sum[r] = *total[r];
  int64_t j = 0;
  for (; j + kLanes<float> <= count; j += kLanes<float>) {
    const Lanes<float> factor = load_lanes(x + j);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) sum[r] = fma(load_weights(row[r] + j), factor, sum[r]);
  }
  if (j < count) {
    const int rest = int(count - j);
    const Lanes<float> factor = load_first(x + j, rest);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) sum[r] = fma(load_weights(row[r] + j, rest), factor, sum[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r) *total[r] = sum[r];
}

template <class W>
void add_some(int n, const W* const* row, const float* x, int64_t count, Lanes<float>* const* total) {
  if (n == kRows) return add_dots<kRows>(row, x, count, total);
  int r = 0;
  for (; r + 4 <= n; r += 4) add_dots<4>(row + r, x, count, total + r);
  if (n & 2) add_dots<2>(row + r, x, count, total + r), r += 2;
  if (n & 1) add_dots<1>(row + r, x, count, total + r);
}

// The same for kCount rows of w and all kRowsOfX rows of x, `stride` apart: total[r][b].
template <int kCount, int kRowsOfX, class W>
void add_shared(const W* const* row, const float* x, int64_t stride, int64_t count, Lanes<float> (*total)[kBatch]) {
  Lanes<float> sum[kCount][kRowsOfX];
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < kRowsOfX; ++b) sum[r][b] = total[r][b];
  const auto step = [&](int64_t j, auto load, auto load_x) __attribute__((always_inline)) {
    Lanes<float> weights[kCount];
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) weights[r] = load(row[r] + j);
#pragma GCC unroll 8
    for (int b = 0; b < kRowsOfX; ++b) {
      const Lanes<float> factor = load_x(x + b * stride + j);
#pragma GCC unroll 8
      for (int r = 0; r < kCount; ++r) sum[r][b] = fma(weights[r], factor, sum[r][b]);
    }
  };
  int64_t j = 0;
  for (; j + kLanes<float> <= count; j += kLanes<float>)
    step(j, [](const W* p) { return load_weights(p); }, [](const float* p) { return load_lanes(p); });
  if (const int rest = int(count - j); rest > 0)
    step(j, [=](const W* p) { return load_weights(p, rest); }, [=](const float* p) { return load_first(p, rest); });
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < kRowsOfX; ++b) total[r][b] = sum[r][b];
}

template <class W>
struct Product {
  const float* x;  // [batch, c]
  int64_t batch, c;
  const W* w;  // [k, c]
  int64_t k;
  const float* bias;
  const float* gate;     // [batch, k]
  const int64_t* place;  // the rows of w to read
  const uint8_t* who;
  float* y;  // [batch, k]
};

// Up to kRows rows of w with every row of x, whether it needs them or not: a strip that leaves x in L1 at a time.
template <class W>
void add_all(const Product<W>& p, int64_t at, int rows, Lanes<float> (*total)[kBatch]) {
  with_batch(p.batch, [&]<int kRowsOfX>() {
    constexpr int kCount = (kRegisters == 32 ? 16 : 8) / kRowsOfX;
    const int64_t strip = kSharedBytes / int64_t(sizeof(float)) / kRowsOfX / kLanes<float> * kLanes<float>;
    for (int64_t from = 0; from < p.c; from += strip) {
      const W* row[kRows];
      for (int r = 0; r < rows; ++r) row[r] = p.w + p.place[at + r] * p.c + from;
      const int64_t count = least(strip, p.c - from);
      int r = 0;
      for (; r + kCount <= rows; r += kCount)
        add_shared<kCount, kRowsOfX>(row + r, p.x + from, p.c, count, total + r);
      for (; r < rows; ++r) add_shared<1, kRowsOfX>(row + r, p.x + from, p.c, count, total + r);
    }
  });
}

// The rows of w listed in [begin, end).
template <class W>
void listed(const Product<W>& p, int64_t begin, int64_t end) {
  constexpr int64_t kStrip = kStripBytes / int64_t(sizeof(W));
  for (int64_t at = begin; at < end; at += kRows) {
    const int rows = int(least(kRows, end - at));
    Lanes<float> total[kRows][kBatch] = {};
    int64_t pairs = 0;
    for (int r = 0; r < rows; ++r) pairs += __builtin_popcount(p.who[at + r]);
    const bool shared = shares<W>(pairs, rows, p.batch);
    if (shared) add_all(p, at, rows, total);
    for (int64_t from = 0; from < p.c && !shared; from += kStrip) {
      const int64_t count = least(kStrip, p.c - from);
      for (int64_t b = 0; b < p.batch; ++b) {
        const W* mine[kRows];
        Lanes<float>* sum[kRows];
        int n = 0;
        for (int r = 0; r < rows; ++r) {
          if (!(p.who[at + r] >> b & 1)) continue;
          mine[n] = p.w + p.place[at + r] * p.c + from;
          sum[n++] = &total[r][b];
        }
        add_some(n, mine, p.x + b * p.c + from, count, sum);
      }
    }
    for (int r = 0; r < rows; ++r) {
      const int64_t row = p.place[at + r];
      for (unsigned users = p.who[at + r]; users != 0; users &= users - 1) {
        const int b = __builtin_ctz(users);
        const float sum = sum_lanes<float>(total[r][b]) + (p.bias ? p.bias[row] : 0.0f);
        p.y[b * p.k + row] = p.gate[b * p.k + row] * sum;
      }
    }
  }
}

template <class W>
void multiply(const float* x, int64_t batch, int64_t c, const W* w, int64_t k, const float* bias, const float* gate,
              float* y, void* workspace, int threads) {
  int64_t* const place = static_cast<int64_t*>(workspace);
  uint8_t* const who = reinterpret_cast<uint8_t*>(place + k);
  memset(y, 0, size_t(batch * k) * sizeof(float));
  for (int64_t first = 0; first < batch; first += kBatch) {
    const Product<W> p = {
        x + first * c, least(kBatch, batch - first), c, w, k, bias, gate + first * k, place, who, y + first * k};
    int64_t pairs = 0;
    const int64_t found = find_kept(p.gate, p.batch, k, 0.0f, place, who, &pairs);
    const int team = useful_threads(found * c * int64_t(sizeof(W)), threads);
    parallel(team, team, [=, &p](int64_t part) {
      listed(p, part_begin(found, part, team), part_begin(found, part + 1, team));
    });
  }
}

}  // namespace

int64_t gated_mv_workspace(int64_t k) { return k * int64_t(sizeof(int64_t) + sizeof(uint8_t)); }

void gated_mv(const float* x, int64_t batch, int64_t c, const void* w, int type, int64_t k, const float* bias,
              const float* gate, float* y, void* workspace, int threads) {
  with_weights(w, type, [=](auto weights) {
    multiply(x, batch, c, weights, k, bias, gate, y, workspace, threads);
  });
}

}  // namespace gossamer::GOSSAMER_ISA
