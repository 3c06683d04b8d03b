// One tap and few nonzeros: pixel by pixel. The vectors of the dense operand stay in registers and the sums in L1, where
// each nonzero adds to its channel's. Nothing is listed or copied, but every nonzero loads and stores sums, so with many
// nonzeros lists are faster.
#pragma once
#include "skip_conv_weight_division.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kPointVectors = kRegisters / 4;
constexpr int64_t kPointSumBytes = 32768;  // stay in L1, beside what streams by
constexpr int64_t kPointChannels = 512;
constexpr int64_t kPointAhead = 6;  // pixels between what is asked for and what is used
constexpr double kPointDensity = 0.27;

struct Points {
  const Pixels& sparse;
  const Pixels& dense;
  const Table& table;
  int64_t channel, channels;  // of the sparse operand, at most kPointChannels
  int64_t dense_channel;
  float* sums;  // of vector v of channel c: sums + v * vector + c * kL
  int64_t vector;
};

// The channels of one place, those without a bit as zeros; `copy` if they are not as they lie, or there is no such place.
inline const float* sparse_row(const Points& job, int64_t place, bool is, float* copy) {
  const Pixels& a = job.sparse;
  const int64_t from = job.table.sparse[place];
  if (a.bits == nullptr && is) return a.data + from * a.channels + job.channel;
  for (int64_t c = 0; c < job.channels; c += kL) {
    const Floats x = is ? load_channels(a, from, job.channel + c) : Floats{};
    store_first(copy + c, x, int(least(kL, job.channels - c)));
  }
  return copy;
}

template <int kV>
inline void ask_for(const Points& job, int64_t place) {
  const float* const sparse = job.sparse.data + job.table.sparse[place] * job.sparse.channels + job.channel;
  const float* const dense = job.dense.data + job.table.dense[place] * job.dense.channels + job.dense_channel;
  for (int64_t c = 0; c < job.channels; c += 16) __builtin_prefetch(sparse + c);
  for (int j = 0; j < kV * kL; j += 16) __builtin_prefetch(dense + j);
}

// Adds what the channels of kPixels rows contribute, and returns how many of their elements are not zero.
template <int kV, int kPixels>
inline int64_t add_rows(const Points& job, const float* const (&row)[kPixels], const Floats (&y)[kPixels][kV]) {
  const int64_t channels = job.channels, vector = job.vector;
  float* const sums = job.sums;
  int64_t nonzero = 0;
  for (int64_t first = 0; first < channels; first += 64) {
    uint64_t some = 0;
#pragma GCC unroll 2
    for (int i = 0; i < kPixels; ++i) {
      const uint64_t bits = first + 64 <= channels ? nonzero_bits<64>(row[i] + first)
                                                   : nonzero_bits_first(row[i] + first, int(channels - first));
      nonzero += __builtin_popcountll(bits);
      some |= bits;
    }
    for (; some != 0; some &= some - 1) {
      const int64_t c = first + __builtin_ctzll(some);
      Floats x[kPixels];
#pragma GCC unroll 2
      for (int i = 0; i < kPixels; ++i) x[i] = broadcast(row[i][c]);
      float* const sum = sums + c * kL;
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) {
        Floats s = load_lanes(sum + v * vector);
#pragma GCC unroll 2
        for (int i = 0; i < kPixels; ++i) s = fma(x[i], y[i][v], s);
        store_lanes(sum + v * vector, s);
      }
    }
  }
  return nonzero;
}

// Adds the products of all pixels, kPixels at a time: a channel that is not zero in one of them is multiplied in all, so
// that its sums move once. Returns how many nonzeros there are.
template <int kV, int kPixels>
int64_t add_points(const Points& job) {
  const Pixels& b = job.dense;
  const bool whole = b.bits == nullptr && job.dense_channel + kV * kL <= b.channels;
  const int64_t count = job.table.count;
  const float* const dense = b.data + job.dense_channel;
  float copies[kPixels][kPointChannels];
  int64_t nonzero = 0;
  for (int64_t p = 0; p < count; p += kPixels) {
    Floats y[kPixels][kV];
    const float* row[kPixels];
#pragma GCC unroll 2
    for (int i = 0; i < kPixels; ++i) {
      const bool is = p + i < count;
      const int64_t place = is ? p + i : p, pixel = job.table.dense[place];
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v)
        y[i][v] = whole ? load_lanes(dense + pixel * b.channels + v * kL)
                        : load_channels(b, pixel, job.dense_channel + v * kL);
      row[i] = sparse_row(job, place, is, copies[i]);
      if (p + i + kPointAhead < count) ask_for<kV>(job, p + i + kPointAhead);
    }
    nonzero += add_rows<kV, kPixels>(job, row, y);
  }
  return nonzero;
}

template <int kV = kPointVectors>
int64_t add_points_of(int vectors, bool exact, const Points& job) {
  if constexpr (kV > 1) {
    if (vectors < kV) return add_points_of<kV - 1>(vectors, exact, job);
  }
  return exact ? add_points<kV, 1>(job) : add_points<kV, 2>(job);
}

inline int64_t pixels_that_meet(const Problem& p) {
  return p.images * least(p.down.sparse, p.down.dense) * least(p.along.sparse, p.along.dense);
}

inline void fill_points(Table& table, const Problem& p, int64_t begin, int64_t count) {
  const auto step = [](const Line& line, bool dense) { return line.dense_strides == dense ? line.stride : 1; };
  const int64_t rows = least(p.down.sparse, p.down.dense), cols = least(p.along.sparse, p.along.dense);
  table.count = count;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = begin + i, n = at / (rows * cols), r = at / cols % rows, c = at % cols;
    table.sparse[i] =
        (n * p.down.sparse + r * step(p.down, false)) * p.along.sparse + c * step(p.along, false);
    table.dense[i] = (n * p.down.dense + r * step(p.down, true)) * p.along.dense + c * step(p.along, true);
  }
}

// Whether that is the way: one tap, no border, a small gradient, and some pixels show few nonzeros. A function of the
// operands alone, as it decides the order of the sums.
inline bool are_points(const Problem& p) {
  constexpr int64_t kSamples = 32;
  const int64_t pixels = p.images * p.down.sparse * p.along.sparse;
  const auto point = [](const Line& line) { return line.taps == 1 && line.padding == 0 && line.dilation == 1; };
  if (!point(p.down) || !point(p.along) || stretches_of(p) == 1) return false;
  int64_t nonzero = 0;
  for (int64_t i = 0; i < kSamples; ++i)
    for (int64_t c = 0; c < p.sparse.channels; c += kL) {
      float lanes[kL];
      store_lanes(lanes, load_channels(p.sparse, pixels / kSamples * i + i / 4, c));
      nonzero += __builtin_popcountll(nonzero_bits_first(lanes, kL));
    }
  return double(nonzero) < kPointDensity * double(kSamples * p.sparse.channels);
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
