// A group of labels that read the same columns: their rows of x are gathered once, and what follows is dense.
#pragma once
#include "fan_in_rows.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// sum[r][v] += over i < n of a[r * down + i * along] * b[i * stride + v].
template <int kR, int kV>
inline void multiply_tile(const float* a, int64_t down, int64_t along, const float* b, int64_t stride, int64_t n,
                          Lanes<float> (&sum)[kR][kV]) {
  for (int64_t i = 0; i < n; ++i) {
    Lanes<float> row[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) row[v] = load_lanes(b + i * stride + v * kLanes<float>);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Lanes<float> factor = broadcast(a[r * down + i * along]);
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) sum[r][v] = fma(factor, row[v], sum[r][v]);
    }
  }
}

template <int kN>
struct Count {
  static constexpr int value = kN;
};

// f(Count<kR>, i) for every kR of n things, then f(Count<1>, i) for those left.
template <int kR, class F>
inline void in_tiles(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kR <= n; i += kR) f(Count<kR>(), i);
  for (; i < n; ++i) f(Count<1>(), i);
}

// Rows of a tile whose sums fit in registers beside a row of kV vectors.
template <int kV>
constexpr int kTileRows = kV * 8 + kV < kRegisters ? 8 : kV * 4 + kV < kRegisters ? 4 : 2;

constexpr int64_t kMostStride = kMostVectors * kLanes<float>;

// Floats of scratch: the rows of x, the same transposed, and the gradients by the logits.
inline int64_t group_room(int64_t group, int64_t k, int64_t row) {
  return group == 1 ? 0 : k * kMostStride + row * kMostStride + group * kMostStride;
}

template <int kV>
class Group {
  static constexpr int64_t kStride = kV * kLanes<float>;

 public:
  Group(float* room, int64_t group, int64_t k, int64_t row)
      : x_(room), gradients_(room + k * kMostStride), turned_(gradients_ + group * kMostStride), k_(k), row_(row) {}

  template <class Number>
  void gather(const Number* columns, const float* x) const {
    for (int64_t j = 0; j < k_; ++j) {
      const float* const from = x + int64_t(columns[j]) * kStride;
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v)
        store_lanes(x_ + j * kStride + v * kLanes<float>, load_lanes(from + v * kLanes<float>));
    }
  }

  // f(i, the sums of label i), in order.
  template <class F>
  void multiply(const float* w, int64_t labels, const F& f) const {
    in_tiles<kTileRows<kV>>(labels, [&]<int kR>(Count<kR>, int64_t i) {
      Lanes<float> z[kR][kV] = {};
      multiply_tile<kR, kV>(w + i * k_, k_, 1, x_, kStride, k_, z);
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) f(i + r, z[r]);
    });
  }

  void keep(int64_t i, const Lanes<float> (&g)[kV]) const {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) store_lanes(gradients_ + i * kStride + v * kLanes<float>, g[v]);
  }
  void load(int64_t i, Lanes<float> (&g)[kV]) const {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) g[v] = load_lanes(gradients_ + i * kStride + v * kLanes<float>);
  }

  // dx[columns[j]] += the sum over labels of w * gradient.
  template <class Number>
  void spread(const float* w, int64_t labels, const Number* columns, float* dx) const {
    in_tiles<kTileRows<kV>>(k_, [&]<int kR>(Count<kR>, int64_t j) {
      Lanes<float> sum[kR][kV] = {};
      multiply_tile<kR, kV>(w + j, 1, k_, gradients_, kStride, labels, sum);
      for (int r = 0; r < kR; ++r) {
        float* const to = dx + int64_t(columns[j + r]) * kStride;
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v)
          store_lanes(to + v * kLanes<float>, load_lanes(to + v * kLanes<float>) + sum[r][v]);
      }
    });
  }

  // dw[label][j] = (if `more`, +=) the sum over the first `width` of the batch of gradient * x.
  void sample(int64_t labels, int64_t width, bool more, float* dw) const {
    transpose(x_, kStride, turned_, row_, k_, width);
    for (int64_t b = 0; b < width; ++b) memset(turned_ + b * row_ + k_, 0, size_t(row_ - k_) * sizeof(float));
    in_tiles<4>(row_ / kLanes<float>, [&]<int kN>(Count<kN>, int64_t j) {
      in_tiles<kTileRows<kN>>(labels, [&]<int kR>(Count<kR>, int64_t i) {
        Lanes<float> sum[kR][kN] = {};
        multiply_tile<kR, kN>(gradients_ + i * kStride, kStride, 1, turned_ + j * kLanes<float>, row_, width, sum);
        for (int r = 0; r < kR; ++r) {
          float* const to = dw + (i + r) * row_ + j * kLanes<float>;
          for (int v = 0; v < kN; ++v) {
            const Lanes<float> before = more ? load_lanes(to + v * kLanes<float>) : Lanes<float>{};
            store_lanes(to + v * kLanes<float>, before + sum[r][v]);
          }
        }
      });
    });
  }

 private:
  float *x_, *gradients_, *turned_;
  int64_t k_, row_;
};

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
