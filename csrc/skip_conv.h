// Convolution that skips the zeros of its input: what one line of output gets from a panel of weights.
//
// A scalar of x that is not zero is broadcast and meets the weights of kTaps taps and kGroups * kVectors vectors of
// outputs, which lie in L1; their sums stay in registers. Sums belong to output columns: as the sweep goes one input
// column on, one column of sums is stored, one is loaded, and the others are renamed. Which scalars are not zero is
// known as bits, 16 channels of up to four segments at a time, so that one loop runs over 48 or 64 channels: how often
// it runs cannot be foreseen, and the longer it runs the less its end costs.
#pragma once
#include "nonzeros.h"

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
#if defined(GOSSAMER_AVX512)
constexpr int kPanelBytes = 36864;
#else
constexpr int kPanelBytes = 24576;
#endif

// Segments whose weights for `vectors` vectors make a panel.
constexpr int segments_of(int vectors) {
  const int fit = kPanelBytes / (kSegment * vectors * kWidth);
  return fit < 1 ? 1 : fit > kMostSegments ? kMostSegments : fit;
}

// Columns of y that are narrower than the sums, or that are cut at zero, are treated so many at a time.
constexpr int kChunk = 10;

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
  float* y;                 // output column 0
  int64_t y_step, y_width;  // outputs from here to the end of a pixel: at least 1, more than kF * vectors perhaps
  const float* bias;        // null: zeros
  uint8_t* y_bits;          // null, or of column 0: only written when `last` is set
  int64_t y_bits_step, y_bits_bytes;  // bytes from here to the end of a pixel's bits
  const float* next;        // what is asked for meanwhile: so many floats with every step
  int64_t next_step;
  bool first, last, relu;   // whether this is the first, the last panel that these outputs get
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

// Where the sums of output columns come from and go to: those of the present step.
struct Outs {
  const float* from;
  float* to;
  int64_t from_step, to_step;
};

// Steps [begin, end) of a sweep; the sums are those of step `begin`.
template <int kTaps, int kStep, int kGroups, int kVectors>
[[gnu::noinline]] void make_steps(const Line& line, int64_t begin, int64_t end, Outs at,
                                  Sums<kTaps, kGroups, kVectors>& kept) {
  const float* const w = line.w;
  const int64_t w_row = line.w_row, w_group = line.w_group, outs = line.outs;
  const int64_t x_step = line.x_step, bits_step = line.bits_step;
  const uint64_t lanes = line.lanes, columns = uint64_t(line.columns);
  const float* next = line.next + begin * line.next_step;
  const int64_t next_step = line.next_step;
  int64_t i = begin - line.shift;  // the column of x
  const float* x = line.x + i * x_step;
  const uint16_t* p = line.bits + i * bits_step;
  Sums<kTaps, kGroups, kVectors> sums;
#define GOSSAMER_EACH(count) \
  _Pragma("GCC unroll 4") for (int t = 0; t < (count); ++t) \
  _Pragma("GCC unroll 4") for (int g = 0; g < kGroups; ++g) \
  _Pragma("GCC unroll 4") for (int v = 0; v < kVectors; ++v)
  GOSSAMER_EACH(kTaps) sums[t][g][v] = kept[t][g][v];
  for (int64_t e = begin; e < end; ++e, ++i, p += bits_step, x += x_step) {
    uint64_t bits = 0;
    if (uint64_t(i) < columns) {
      memcpy(&bits, p, 8);
      bits &= lanes;
    }
    if (kTaps == 1 || e < outs) {  // a column enters
      GOSSAMER_EACH(1) sums[t][g][v] = load_lanes(at.from + (g * kVectors + v) * kF);
    }
    at.from += at.from_step;
    for (const float* const until = next + next_step; next < until; next += 16) __builtin_prefetch(next, 0, 2);
#define GOSSAMER_TAPS(low, high) \
  accumulate<kTaps, kStep, kGroups, kVectors, low, high>(bits, x, w, w_row, w_group, sums)
    if (kTaps == 1 || (e >= kTaps - 1 && e < outs)) {
      GOSSAMER_TAPS(0, kTaps);
    } else {  // at both ends of a line some taps lead outside
      const int64_t low = e < outs ? 0 : e - outs + 1, high = e + 1 < kTaps ? e + 1 : kTaps;
      if constexpr (kTaps >= 2) {
        if (low == 0 && high == 1) GOSSAMER_TAPS(0, 1);
        if (low == kTaps - 1) GOSSAMER_TAPS(kTaps - 1, kTaps);
      }
      if constexpr (kTaps == 3) {
        if (low == 0 && high == 2) GOSSAMER_TAPS(0, 2);
        if (low == 1 && high == 3) GOSSAMER_TAPS(1, 3);
        if (low == 1 && high == 2) GOSSAMER_TAPS(1, 2);
      }
    }
#undef GOSSAMER_TAPS
    if (e >= kTaps - 1) {  // a column leaves
      GOSSAMER_EACH(1) store_lanes(at.to + (g * kVectors + v) * kF, sums[kTaps - 1][g][v]);
    }
    at.to += at.to_step;
#pragma GCC unroll 4
    for (int t = kTaps - 1; t > 0; --t)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[t][g][v] = sums[t - 1][g][v];
  }
  if (kTaps > 1 && end < outs + kTaps - 1) {
    GOSSAMER_EACH(kTaps) kept[t][g][v] = sums[t][g][v];
  }
#undef GOSSAMER_EACH
}

// relu of a vector; *kept gets the bits of what is not below or at zero, so that NaN stays.
inline Lanes<float> relu_lanes(Lanes<float> v, uint32_t* kept) {
#if defined(GOSSAMER_AVX512)
  const __mmask16 keep = _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NLE_UQ);
  *kept = keep;
  return (Lanes<float>)_mm512_maskz_mov_ps(keep, (__m512)v);
#elif defined(GOSSAMER_AVX2)
  const __m256 keep = _mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NLE_UQ);
  *kept = uint32_t(_mm256_movemask_ps(keep));
  return (Lanes<float>)_mm256_and_ps(keep, (__m256)v);
#else
  uint32_t bits = 0;
  for (int i = 0; i < kF; ++i) {
    const bool keep = !(v[i] <= 0);
    v[i] = keep ? v[i] : 0;
    bits |= uint32_t(keep) << i;
  }
  *kept = bits;
  return v;
#endif
}

// Cuts the kOuts outputs of an output column at zero and writes their bits; `width` of them exist.
template <int kOuts>
[[gnu::noinline]] void relu_column(float* y, uint8_t* y_bits, int64_t width, int64_t bits_bytes) {
  uint8_t kept[kOuts / 8 + 4] = {};
  for (int lane = 0; lane < kOuts; lane += kF) {
    uint32_t lanes;
    store_lanes(y + lane, relu_lanes(load_lanes(y + lane), &lanes));
    kept[lane / 8] = uint8_t(kept[lane / 8] | lanes << lane % 8);
    if constexpr (kF == 16) kept[lane / 8 + 1] = uint8_t(lanes >> 8);
  }
  if (width > kOuts) {
    memcpy(y_bits, kept, kOuts / 8);
  } else {  // the last of a pixel: what lies past its outputs is zero
    if (width % 8 != 0) kept[width / 8] &= uint8_t((1 << width % 8) - 1);
    const int64_t bytes = (width + 7) / 8;
    memcpy(y_bits, kept, size_t(bytes));
    memset(y_bits + bytes, 0, size_t(bits_bytes - bytes));
  }
}

template <int kTaps, int kStep, int kGroups, int kVectors>
void sweep_line(const Line& line) {
  constexpr int kOuts = kGroups * kVectors * kF;
  constexpr int kRoom = kChunk + kTaps - 1;
  alignas(64) float bias[kOuts], room[kRoom * kOuts];
  Sums<kTaps, kGroups, kVectors> sums = {};
  const bool whole = line.y_width >= kOuts;
  const size_t width = whole ? sizeof(bias) : size_t(line.y_width) * sizeof(float);
  if (line.first) {
    memset(bias, 0, sizeof(bias));
    if (line.bias != nullptr) memcpy(bias, line.bias, width);
  }
  if (!whole) memset(room, 0, sizeof(room));  // columns that are narrower than the sums stay here for a chunk
  const int64_t steps = line.outs + kTaps - 1;
  const int64_t chunk = whole && !(line.last && line.relu) ? steps : ceil_div(steps, ceil_div(steps, kChunk));
  for (int64_t begin = 0, end; begin < steps; begin = end) {
    end = least(steps, begin + chunk);
    const int64_t entering = least(end, line.outs), leaving = begin > kTaps - 1 ? begin - kTaps + 1 : 0;
    const int64_t left = end - kTaps + 1;  // output columns [leaving, left) leave in this chunk
    if (!whole && !line.first)
      for (int64_t o = begin; o < entering; ++o) memcpy(room + (o - begin) * kOuts, line.y + o * line.y_step, width);
    float* const y = whole ? line.y : room - begin * kOuts;
    const int64_t y_step = whole ? line.y_step : kOuts;
    // What leaves lies behind what enters: in its place, or, in the room, in front of it.
    const Outs at = {line.first ? bias : y + begin * y_step, whole ? y + (begin - kTaps + 1) * y_step : room,
                     line.first ? 0 : y_step, y_step};
    make_steps<kTaps, kStep, kGroups, kVectors>(line, begin, end, at, sums);
    for (int64_t o = leaving; o < left; ++o) {
      float* const done = whole ? line.y + o * line.y_step : room + (o + kTaps - 1 - begin) * kOuts;
      if (line.last && line.relu)
        relu_column<kOuts>(done, line.y_bits + o * line.y_bits_step, line.y_width, line.y_bits_bytes);
      if (!whole) memcpy(line.y + o * line.y_step, done, width);
    }
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
