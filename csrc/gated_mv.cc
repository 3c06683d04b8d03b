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

// The rows of w listed in [begin, end).
template <class W>
void listed(const Product<W>& p, int64_t begin, int64_t end) {
  constexpr int64_t kStrip = kStripBytes / int64_t(sizeof(W));
  for (int64_t at = begin; at < end; at += kRows) {
    const int rows = int(least(kRows, end - at));
    Lanes<float> total[kRows][kBatch] = {};
    for (int64_t from = 0; from < p.c; from += kStrip) {
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

void gated_mv(const float* x, int64_t batch, int64_t c, const void* w, bool bfloat16, int64_t k, const float* bias,
              const float* gate, float* y, void* workspace, int threads) {
  if (bfloat16) multiply(x, batch, c, static_cast<const BFloat16*>(w), k, bias, gate, y, workspace, threads);
  else multiply(x, batch, c, static_cast<const float*>(w), k, bias, gate, y, workspace, threads);
}

}  // namespace gossamer::GOSSAMER_ISA
