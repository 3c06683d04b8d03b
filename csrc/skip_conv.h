// Convolution that skips the zeros of its input: what one line of output gets from a panel of weights.
//
// A scalar of x that is not zero is broadcast and meets the weights of kTaps taps and kGroups * kVectors vectors of
// outputs, which lie in L1; their sums stay in registers. Sums belong to output columns: as the sweep goes one input
// column on, one column of sums is stored, one is loaded, and the others are renamed. Which scalars are not zero is
// known as bits, 16 channels of up to four segments at a time, so that one loop runs over 48 or 64 channels: how often
// it runs cannot be foreseen, and the longer it runs the less its end costs.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kSegment = 16;      // channels of a segment: one row of x under one row of the kernel
constexpr int kMostSegments = 4;  // 64 bits
constexpr int kMostTaps = 3;
constexpr int kMostGroups = kWidth == 32 ? 3 : 2;
constexpr int kLeastVectors = kWidth >= 32 ? 1 : 2;  // the bits of one vector of four would be half a byte
constexpr int kMostVectors = 4;
constexpr int kF = kLanes<float>;

// Bytes of weights that are expected to stay in L1 while x and y stream past: three quarters of 48 KB or of 32 KB.
constexpr int kPanelBytes = kWidth == 64 ? 36864 : 24576;

// Segments whose weights for `vectors` vectors make a panel.
constexpr int segments_of(int vectors) {
  const int fit = kPanelBytes / (kSegment * vectors * kWidth);
  return fit < 1 ? 1 : fit > kMostSegments ? kMostSegments : fit;
}

// One line: input columns i in [0, columns) and output columns o in [0, outs), where tap t takes i to o = i + shift - t.
// In step e of outs + taps - 1, input column e - shift is met, output column e enters and e - taps + 1 leaves.
struct Line {
  const float* x;           // scalar 0 of column 0, the others behind it
  const uint16_t* bits;     // those of column 0: 64 can be read
  uint64_t lanes;           // the bits that are meant
  int64_t x_step, bits_step;  // from a column to the next
  int64_t columns, outs, shift;
  const float* w;           // the weights of the first tap of scalar 0, group 0
  int64_t w_row, w_group;   // floats from a scalar to the next, from a group of outputs to the next
  const float* from;        // the sums of output column 0 so far
  float* to;                // where they are put
  int64_t from_step, to_step;
  const float *x_next, *w_next;  // what is asked for meanwhile: so many floats with every step
  int64_t x_next_step, w_next_step;
};

template <int kTaps, int kGroups, int kVectors>
using Sums = Lanes<float>[kTaps][kGroups][kVectors];

// Adds what the scalars x[i] of the bits i set give to taps [kLow, kHigh).
template <int kTaps, int kStep, int kGroups, int kVectors, int kLow, int kHigh>
[[gnu::always_inline]] inline void accumulate(uint64_t bits, const float* x, const float* w, int64_t w_row,
                                              int64_t w_group, Sums<kTaps, kGroups, kVectors>& sums) {
  const auto add = [&](Sums<kTaps, kGroups, kVectors>& to) __attribute__((always_inline)) {
    const int64_t i = __builtin_ctzll(bits);
    bits &= bits - 1;
    const Lanes<float> scalar = broadcast(x[i]);
    const float* const row = w + i * w_row;
#pragma GCC unroll 4
    for (int t = kLow; t < kHigh; ++t)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          to[t][g][v] = fma(scalar, load_lanes(row + g * w_group + (t * kStep * kVectors + v) * kF), to[t][g][v]);
  };
  if (bits == 0) return;
  if constexpr (kTaps * kGroups * kVectors <= kRegisters / 4) {  // too few to hide an addition's latency
    Sums<kTaps, kGroups, kVectors> odd = {};
    while (true) {
      add(sums);
      if (bits == 0) break;
      add(odd);
      if (bits == 0) break;
    }
#pragma GCC unroll 4
    for (int t = kLow; t < kHigh; ++t)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[t][g][v] += odd[t][g][v];
  } else {
    do {
      add(sums);
    } while (bits != 0);
  }
}

// Asks for the `step` floats at p, at most four lines of the cache: a loop over them would end in a branch that the
// noise of the others hides from the predictor.
[[gnu::always_inline]] inline void ask(const float* p, int64_t step) {
  if (step <= 0) return;
  __builtin_prefetch(p, 0, 3);
  if (step <= 16) return;
  __builtin_prefetch(p + 16, 0, 3);
  if (step <= 32) return;
  __builtin_prefetch(p + 32, 0, 3);
  __builtin_prefetch(p + 48, 0, 3);
}

template <int kTaps, int kStep, int kGroups, int kVectors>
struct Sweeper {
  Line line;
  int64_t i;  // the column of x
  const float* x;
  const uint16_t* p;
  Sums<kTaps, kGroups, kVectors> sums;

#define GOSSAMER_EACH(count) \
  _Pragma("GCC unroll 4") for (int t = 0; t < (count); ++t) \
  _Pragma("GCC unroll 4") for (int g = 0; g < kGroups; ++g) \
  _Pragma("GCC unroll 4") for (int v = 0; v < kVectors; ++v)

  [[gnu::always_inline]] void enter() {
    GOSSAMER_EACH(1) sums[t][g][v] = load_lanes(line.from + (g * kVectors + v) * kF);
    line.from += line.from_step;
  }

  [[gnu::always_inline]] void leave() {
    GOSSAMER_EACH(1) store_lanes(line.to + (g * kVectors + v) * kF, sums[kTaps - 1][g][v]);
    line.to += line.to_step;
  }

  // To the next step.
  [[gnu::always_inline]] void advance() {
#pragma GCC unroll 4
    for (int t = kTaps - 1; t > 0; --t)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[t][g][v] = sums[t - 1][g][v];
    ++i;
    x += line.x_step;
    p += line.bits_step;
    ask(line.x_next, line.x_next_step);
    ask(line.w_next, line.w_next_step);
    line.x_next += line.x_next_step;
    line.w_next += line.w_next_step;
  }

  [[gnu::always_inline]] uint64_t load_bits(const uint16_t* from) const {
    uint64_t bits;
    memcpy(&bits, from, 8);
    return bits & line.lanes;
  }

  // What column i gives to taps [kLow, kHigh).
  template <int kLow, int kHigh>
  [[gnu::always_inline]] void meet(uint64_t bits) {
    accumulate<kTaps, kStep, kGroups, kVectors, kLow, kHigh>(bits, x, line.w, line.w_row, line.w_group, sums);
  }

  template <int kLow, int kHigh>
  [[gnu::always_inline]] void meet_edge() {
    if (uint64_t(i) < uint64_t(line.columns)) meet<kLow, kHigh>(load_bits(p));
  }

  // Each step at an end of the line, where some taps lead outside, has its own code: what lines have in common, a
  // branch of its own foresees.
  [[gnu::always_inline]] void run() {
    const int64_t outs = line.outs;
    i = -line.shift;
    x = line.x + i * line.x_step;
    p = line.bits + i * line.bits_step;
    if constexpr (kTaps >= 2) {
      enter();
      meet_edge<0, 1>();
      advance();
    }
    if constexpr (kTaps == 3) {
      if (outs == 1) {
        meet_edge<1, 2>();
        advance();
        meet_edge<2, 3>();
        leave();
        return;
      }
      enter();
      meet_edge<0, 2>();
      advance();
    }
    int64_t left = outs - kTaps + 1;
    for (; left > 0 && i < 0; --left) pass();
    int64_t met = least(left, line.columns - i);
    left -= met > 0 ? met : 0;
    if (met > 0) {
      uint64_t bits = load_bits(p);
      while (true) {  // the next column's bits are there before this column's end has been foreseen wrongly
        const uint64_t next = load_bits(met > 1 ? p + line.bits_step : p);
        enter();
        meet<0, kTaps>(bits);
        leave();
        advance();
        if (--met == 0) break;
        bits = next;
      }
    }
    for (; left > 0; --left) pass();
    if constexpr (kTaps == 3) {
      meet_edge<1, 3>();
      leave();
      advance();
    }
    if constexpr (kTaps >= 2) {
      meet_edge<kTaps - 1, kTaps>();
      leave();
    }
  }

  [[gnu::always_inline]] void pass() {
    enter();
    leave();
    advance();
  }
#undef GOSSAMER_EACH
};

template <int kTaps, int kStep, int kGroups, int kVectors>
void sweep_line(const Line& line) {
  Sweeper<kTaps, kStep, kGroups, kVectors> sweeper;
  sweeper.line = line;
  sweeper.run();
}

// Puts the sums of a line, `vectors` vectors a column, where they belong: `width` outputs of each column exist. With
// y_bits, they are cut at zero, and the bits_bytes bytes of a column's bits from here on are written.
inline void finish_line(const float* sums, int64_t columns, int vectors, float* y, int64_t y_step, int64_t width,
                        uint8_t* y_bits, int64_t y_bits_step, int64_t bits_bytes) {
  const int64_t outs = vectors * kF, exist = least(width, outs), whole = exist / kF * kF, bytes = (exist + 7) / 8;
  for (int64_t o = 0; o < columns; ++o, sums += outs, y += y_step) {
    uint8_t kept[kMostGroups * kMostVectors * kF / 8 + 4] = {};
    for (int64_t lane = 0; lane < exist; lane += kF) {
      Lanes<float> v = load_lanes(sums + lane);
      if (y_bits != nullptr) {
        uint32_t bits;
        v = relu_lanes(v, &bits);
        kept[lane / 8] = uint8_t(kept[lane / 8] | bits << lane % 8);
        if constexpr (kF == 16) kept[lane / 8 + 1] = uint8_t(bits >> 8);
      }
      if (lane < whole) store_lanes(y + lane, v);
      else store_first<float>(y + lane, v, int(exist - lane));
    }
    if (y_bits == nullptr) continue;
    if (exist % 8 != 0) kept[exist / 8] &= uint8_t((1 << exist % 8) - 1);
    memcpy(y_bits, kept, size_t(bytes));
    if (width <= outs) memset(y_bits + bytes, 0, size_t(bits_bytes - bytes));  // the last of a pixel
    y_bits += y_bits_step;
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
