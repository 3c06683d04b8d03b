// y = gate * (x @ w^T + bias) for few rows of x: the rows of w whose gate is zero for every row of x are never read.
//
// The rows that are read are listed first and dealt out in equal runs of the list. Four are read side by side, a strip of
// each at a time, while the lines of the next strips are asked for. An inner product is made by one thread, in an order
// that only the length of a row decides.
#include "kernels.h"
#include "mv.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kRows = 4;             // rows of w side by side
constexpr int kSums = 4;             // chains of multiply-adds in a strip
constexpr int64_t kStripBytes = 2048;  // of each row

// total + the lanes of row * x, over count elements. kAsk: asks for as much of `next`.
template <bool kAsk, class W>
inline Lanes<float> add_dot(Lanes<float> total, const W* row, const float* x, int64_t count, const W* next) {
  constexpr int64_t kLane = kLanes<float>, kStep = kSums * kLane;
  Lanes<float> sum[kSums] = {};
  int64_t j = 0;
  for (; j + kStep <= count; j += kStep) {
    if constexpr (kAsk) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kStep; i += kLine<W>) __builtin_prefetch(next + j + i);
    }
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s)
      sum[s] = fma(load_weights(row + j + s * kLane), load_lanes(x + j + s * kLane), sum[s]);
  }
  for (int s = 0; j < count; j += kLane, ++s) {
    const int some = int(least(count - j, kLane));
    sum[s] = fma(load_weights(row + j, some), load_first(x + j, some), sum[s]);
  }
  return total + ((sum[0] + sum[1]) + (sum[2] + sum[3]));
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
      for (int r = 0; r < rows; ++r) {
        const W* const row = p.w + p.place[at + r] * p.c + from;
        const W* const next = from + kStrip < p.c ? row + kStrip : p.w + p.place[least(at + kRows + r, end - 1)] * p.c;
        unsigned users = p.who[at + r];
        const int b = __builtin_ctz(users);
        total[r][b] = add_dot<true>(total[r][b], row, p.x + b * p.c + from, count, next);
        for (users &= users - 1; users != 0; users &= users - 1) {
          const int other = __builtin_ctz(users);
          total[r][other] = add_dot<false>(total[r][other], row, p.x + other * p.c + from, count, next);
        }
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
              float* y, void* scratch, int threads) {
  int64_t* const place = static_cast<int64_t*>(scratch);
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

int64_t gated_mv_scratch(int64_t k) { return k * int64_t(sizeof(int64_t) + sizeof(uint8_t)); }

void gated_mv(const float* x, int64_t batch, int64_t c, const void* w, bool bfloat16, int64_t k, const float* bias,
              const float* gate, float* y, void* scratch, int threads) {
  if (bfloat16) multiply(x, batch, c, static_cast<const BFloat16*>(w), k, bias, gate, y, scratch, threads);
  else multiply(x, batch, c, static_cast<const float*>(w), k, bias, gate, y, scratch, threads);
}

}  // namespace gossamer::GOSSAMER_ISA
