// The nonzeros of a tile of the sparse operand, channel by channel: values, and where in the dense tile they meet it.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

using Floats = Lanes<float>;
using Ints = Lanes<int32_t>;
constexpr int kL = kLanes<float>;

struct Operand {  // [pixels, channels]; an element whose bit is 0 counts as zero
  const float* data;
  int64_t channels;
  const uint32_t* bits;  // null: all count
  int64_t words;
};

constexpr uint32_t kAllLanes = (1u << kL) - 1;

inline uint32_t lanes_below(int64_t count) { return count >= kL ? kAllLanes : (1u << count) - 1; }

// The lanes whose bit is set; the others are zero and their memory is not read.
inline Floats load_where(const float* p, uint32_t bits) {
#if defined(GOSSAMER_AVX512)
  return (Floats)_mm512_maskz_loadu_ps(__mmask16(bits), p);
#elif defined(GOSSAMER_AVX2)
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i mask = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lane), lane);
  return (Floats)_mm256_maskload_ps(p, mask);
#else
  Floats v = {};
  for (int i = 0; i < kL; ++i)
    if (bits >> i & 1) v[i] = p[i];
  return v;
#endif
}

// Channels [c, c + kL) of a pixel, zero where there is no channel or no bit.
inline Floats load_channels(const Operand& a, int64_t pixel, int64_t c) {
  uint32_t bits = lanes_below(a.channels - c);
  if (a.bits != nullptr) bits &= a.bits[pixel * a.words + (c >> 5)] >> (c & 31);
  return load_where(a.data + pixel * a.channels + c, bits);
}

// Row i of the square becomes column i.
inline void transpose_square(Floats (&r)[kL]) {
#if defined(GOSSAMER_AVX512)
  __m512 s[16], t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
    s[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    t[i] = _mm512_shuffle_ps(s[i], s[i + 2], 0x44);
    t[i + 1] = _mm512_shuffle_ps(s[i], s[i + 2], 0xEE);
    t[i + 2] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    t[i + 3] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 lo = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88), lo2 = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
    const __m512 hi = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xDD), hi2 = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xDD);
    r[j] = (Floats)_mm512_shuffle_f32x4(lo, lo2, 0x88);
    r[8 + j] = (Floats)_mm512_shuffle_f32x4(lo, lo2, 0xDD);
    r[4 + j] = (Floats)_mm512_shuffle_f32x4(hi, hi2, 0x88);
    r[12 + j] = (Floats)_mm512_shuffle_f32x4(hi, hi2, 0xDD);
  }
#elif defined(GOSSAMER_AVX2)
  __m256 s[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    t[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    t[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xEE);
    t[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    t[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = (Floats)_mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    r[i + 4] = (Floats)_mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
#else
  for (int i = 0; i < kL; ++i)
    for (int j = 0; j < i; ++j) {
      const float v = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = v;
    }
#endif
}

// Appends the nonzeros of v among the lanes of `keep`, and their offsets, and adds up their `valid`. Returns how many.
// All kL places of both outputs may be written.
inline int append(Floats v, Ints offset, Ints valid, uint32_t keep, float* values, int32_t* offsets, Ints& total) {
#if defined(GOSSAMER_AVX512)
  const __mmask16 m = _mm512_mask_test_epi32_mask(__mmask16(keep), (__m512i)v, _mm512_set1_epi32(0x7fffffff));
  _mm512_storeu_ps(values, _mm512_maskz_compress_ps(m, (__m512)v));
  _mm512_storeu_si512(offsets, _mm512_maskz_compress_epi32(m, (__m512i)offset));
  total = (Ints)_mm512_mask_add_epi32((__m512i)total, m, (__m512i)total, (__m512i)valid);
  return __builtin_popcount(uint32_t(m));
#elif defined(GOSSAMER_AVX2)
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(keep)), lane), lane);
  const __m256i bits = (__m256i)v;
  const __m256i zero = _mm256_cmpeq_epi32(_mm256_add_epi32(bits, bits), _mm256_setzero_si256());
  const __m256i found = _mm256_andnot_si256(zero, kept);
  const uint32_t m = uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(found)));
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSetBits.of[m]));
  const __m256i places = _mm256_cvtepu8_epi32(bytes);
  _mm256_storeu_ps(values, _mm256_permutevar8x32_ps((__m256)v, places));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(offsets), _mm256_permutevar8x32_epi32((__m256i)offset, places));
  total = (Ints)_mm256_add_epi32((__m256i)total, _mm256_and_si256(found, (__m256i)valid));
  return __builtin_popcount(m);
#else
  int count = 0;
  for (int i = 0; i < kL; ++i) {
    const float value = v[i];
    uint32_t word;
    memcpy(&word, &value, 4);
    if (word << 1 == 0 || (keep >> i & 1) == 0) continue;
    values[count] = value;
    offsets[count++] = offset[i];
    total[i] += valid[i];
  }
  return count;
#endif
}

struct Pixels {  // of a tile, filled up to a multiple of kL with pixels that exist
  int64_t count;
  const int64_t* index;    // in the sparse operand
  const int32_t* offset;   // in the dense tile, bytes
  const int32_t* valid;    // taps that meet a pixel of the dense operand
};

struct Lists {
  float* values;  // [channels, pitch]
  int32_t* offsets;
  int32_t* counts;  // [channels], filled up to a multiple of kL
  int64_t pitch;
};

inline int64_t sum_of(Ints v) {
  int64_t sum = 0;
  for (int i = 0; i < kL; ++i) sum += v[i];
  return sum;
}

// Makes the lists of channels [first, first + count). Returns the sum of `valid` over all nonzeros.
inline int64_t make_lists(const Operand& a, int64_t first, int64_t count, const Pixels& pixels, const Lists& lists) {
  for (int64_t c = 0; c < ceil_div(count, kL) * kL; ++c) lists.counts[c] = 0;
  Ints total = {};
  for (int64_t p = 0; p < pixels.count; p += kL) {
    const uint32_t keep = lanes_below(pixels.count - p);
    const Ints offset = load_lanes(pixels.offset + p), valid = load_lanes(pixels.valid + p);
    const int64_t* const index = pixels.index + p;
    for (int64_t c = 0; c < count; c += kL) {
      Floats square[kL];
      if (a.bits == nullptr && c + kL <= count) {
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) square[i] = load_lanes(a.data + index[i] * a.channels + first + c);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) square[i] = load_channels(a, index[i], first + c);
      }
      transpose_square(square);
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) {
        int32_t& n = lists.counts[c + i];
        const int64_t at = (c + i) * lists.pitch + n;
        n += append(square[i], offset, valid, keep, lists.values + at, lists.offsets + at, total);
      }
    }
  }
  return sum_of(total);
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
