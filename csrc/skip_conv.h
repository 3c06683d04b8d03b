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
#if defined(GOSSAMER_AVX512)
constexpr int kMostGroups = 4;
#elif defined(GOSSAMER_AVX2)
constexpr int kMostGroups = 3;
#else
constexpr int kMostGroups = 2;
#endif
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

// One line: input columns i in [0, columns) and output columns o in [0, outs), where tap t takes i to o = i + shift - t.
struct Line {
  const float* x[kMostSegments];        // column 0 of each segment, always an address inside x
  const uint16_t* bits[kMostSegments];  // the bits of column 0, or null
  int lanes[kMostSegments];             // channels of the segment: 0 where it lies outside x
  int64_t x_step, bits_step;            // from a column to the next
  int64_t columns, outs, shift;
  const float* w;           // the weights of the first tap of channel 0 of segment 0, group 0
  int64_t w_row, w_group;   // floats from a channel to the next, from a group of outputs to the next
  float* y;                 // output column 0, or null
  int64_t y_step, y_width;  // outputs from here to the end of a pixel: at least 1, more than kF * vectors perhaps
  const float* bias;        // null: zeros
  uint8_t* y_bits;          // null, or of column 0: only written when `last` is set
  int64_t y_bits_step, y_bits_bytes;  // bytes from here to the end of a pixel's bits
  bool first, last, relu;   // whether this is the first, the last panel that these outputs get
  uint64_t own;             // bits of the segments that are counted here
  int64_t nonzeros, products;  // what was met: scalars counted, scalars times taps
};

template <int kTaps, int kGroups, int kVectors>
using Sums = Lanes<float>[kTaps][kGroups][kVectors];

// Adds what the scalars x[i] of the bits i set give to taps [kLow, kHigh).
template <int kTaps, int kStep, int kGroups, int kVectors, int kLow, int kHigh>
[[gnu::always_inline]] inline void accumulate(uint64_t bits, const float* x, const float* w, int64_t w_row,
                                              int64_t w_group, Sums<kTaps, kGroups, kVectors>& sums) {
  do {
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
          sums[t][g][v] =
              fma(scalar, load_lanes(row + g * w_group + (t * kStep * kVectors + v) * kF), sums[t][g][v]);
  } while (bits != 0);
}

// Copies the segments of one column to `x` and returns the bits of what is not zero there.
template <int kSegments>
[[gnu::always_inline]] inline uint64_t read_column(const Line& line, int64_t at, int64_t bits_at, float* x) {
  uint64_t all = 0;
#pragma GCC unroll 4
  for (int j = 0; j < kSegments; ++j) {
    const float* const from = line.x[j] + at;
    uint64_t bits;
#if defined(GOSSAMER_AVX512)
    const __m512i v = _mm512_maskz_loadu_epi32(__mmask16((1u << line.lanes[j]) - 1), from);
    _mm512_storeu_si512(x + j * kSegment, v);
    bits = _mm512_test_epi32_mask(v, _mm512_set1_epi32(0x7fffffff));
#else
    if (line.lanes[j] == kSegment) {
      for (int i = 0; i < kSegment; i += kF) store_lanes(x + j * kSegment + i, load_lanes(from + i));
      bits = nonzero_bits<kSegment>(from);
    } else {
      for (int i = 0; i < line.lanes[j]; ++i) x[j * kSegment + i] = from[i];
      bits = nonzero_bits_first(from, line.lanes[j]);
    }
#endif
    if (line.bits[0] != nullptr && line.lanes[j] != 0) bits &= line.bits[j][bits_at];
    all |= bits << (j * kSegment);
  }
  return all;
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

template <int kTaps, int kStep, int kGroups, int kVectors>
void sweep_line(Line& given) {
  const Line line = given;  // whose fields no store can change
  constexpr int kSegments = segments_of(kTaps * kGroups * kVectors);
  constexpr int kOuts = kGroups * kVectors * kF;
  alignas(64) float x[2][kMostSegments * kSegment];
  alignas(64) float edge[kOuts], bias[kOuts];
  Sums<kTaps, kGroups, kVectors> sums;
  const bool whole = line.y_width >= kOuts;
  const size_t width = whole ? sizeof(edge) : size_t(line.y_width) * sizeof(float);
  if (line.first) {
    memset(bias, 0, sizeof(bias));
    if (line.bias != nullptr) memcpy(bias, line.bias, width);
  }
  if (!whole) memset(edge, 0, sizeof(edge));
#pragma GCC unroll 4
  for (int t = 0; t < kTaps; ++t)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[t][g][v] = Lanes<float>{};

  const int64_t steps = line.outs + kTaps - 1;
  int64_t i = -line.shift, nonzeros = 0, products = 0;
  const auto read = [&](int64_t column) {
    if (uint64_t(column) >= uint64_t(line.columns)) return uint64_t(0);
    return read_column<kSegments>(line, column * line.x_step, column * line.bits_step, x[column & 1]);
  };
  uint64_t next = read(i);
  float* y = line.y;
  float* y_done = line.y - (kTaps - 1) * line.y_step;
  for (int64_t e = 0; e < steps; ++e, ++i, y += line.y_step, y_done += line.y_step) {
    const uint64_t bits = next;
    if (e + 1 < steps) next = read(i + 1);
    if (e < line.outs) {  // a column enters
      const float* from = bias;
      if (!line.first) {
        from = y;
        if (!whole) {
          memcpy(edge, y, width);
          from = edge;
        }
      }
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[0][g][v] = load_lanes(from + (g * kVectors + v) * kF);
    }
    if (bits != 0) {
      const float* const column = x[i & 1];
      const int64_t count = __builtin_popcountll(bits);
      nonzeros += __builtin_popcountll(bits & line.own);
#define GOSSAMER_TAPS(low, high)                                                                                    \
  accumulate<kTaps, kStep, kGroups, kVectors, low, high>(bits, column, line.w, line.w_row, line.w_group, sums);      \
  products += count * ((high) - (low))
      if (kTaps == 1 || (e >= kTaps - 1 && e < line.outs)) {
        GOSSAMER_TAPS(0, kTaps);
      } else {
        const int64_t low = e < line.outs ? 0 : e - line.outs + 1, high = e + 1 < kTaps ? e + 1 : kTaps;
        if constexpr (kTaps >= 2) {
          if (low == 0 && high == 1) {
            GOSSAMER_TAPS(0, 1);
          } else if (low == kTaps - 1) {
            GOSSAMER_TAPS(kTaps - 1, kTaps);
          }
        }
        if constexpr (kTaps == 3) {
          if (low == 0 && high == 2) {
            GOSSAMER_TAPS(0, 2);
          } else if (low == 1 && high == 3) {
            GOSSAMER_TAPS(1, 3);
          } else if (low == 1 && high == 2) {
            GOSSAMER_TAPS(1, 2);
          }
        }
      }
#undef GOSSAMER_TAPS
    }
    if (e >= kTaps - 1) {  // a column leaves
      auto& done = sums[kTaps - 1];
      if (line.last && line.relu) {
        constexpr int kBytes = kOuts / 8;
        uint8_t kept[kBytes + 4] = {};
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            uint32_t lanes;
            done[g][v] = relu_lanes(done[g][v], &lanes);
            const int lane = (g * kVectors + v) * kF;
            kept[lane / 8] = uint8_t(kept[lane / 8] | lanes << lane % 8);
            if constexpr (kF == 16) kept[lane / 8 + 1] = uint8_t(lanes >> 8);
          }
        uint8_t* const to = line.y_bits + (e - kTaps + 1) * line.y_bits_step;
        if (line.y_width > kOuts) {
          memcpy(to, kept, kBytes);
        } else {  // the last of a pixel: what lies past its outputs is zero
          if (line.y_width % 8 != 0) kept[line.y_width / 8] &= uint8_t((1 << line.y_width % 8) - 1);
          const int64_t bytes = (line.y_width + 7) / 8;
          memcpy(to, kept, size_t(bytes));
          memset(to + bytes, 0, size_t(line.y_bits_bytes - bytes));
        }
      }
      float* const to = whole ? y_done : edge;
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) store_lanes(to + (g * kVectors + v) * kF, done[g][v]);
      if (!whole) memcpy(y_done, edge, width);
    }
#pragma GCC unroll 4
    for (int t = kTaps - 1; t > 0; --t)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[t][g][v] = sums[t - 1][g][v];
  }
  given.nonzeros += nonzeros;
  given.products += products;
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
