// Which of up to 64 floats are not zero, as bits. Decided on bits, the sign left out: -0.0 is zero, NaN and denormals
// are not, whatever the mode of the thread's arithmetic.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Bit i is set when p[i] is not zero, for i < kCount; kCount is a multiple of 16, at most 64.
template <int kCount>
inline uint64_t nonzero_bits(const float* p) {
  static_assert(kCount % 16 == 0 && kCount <= 64);
  uint64_t bits = 0;
#if defined(GOSSAMER_AVX512)
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; i += 16)
    bits |= uint64_t(_mm512_test_epi32_mask(_mm512_loadu_si512(p + i), magnitude)) << i;
#elif defined(GOSSAMER_AVX2)
  const __m256i zero = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int i = 0; i < kCount; i += 8) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i));
    const __m256i is_zero = _mm256_cmpeq_epi32(_mm256_add_epi32(v, v), zero);  // the addition shifts the sign out
    bits |= uint64_t(uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(is_zero)))) << i;
  }
  bits ^= ~uint64_t(0) >> (64 - kCount);
#else
  for (int i = 0; i < kCount; ++i) {
    uint32_t word;
    memcpy(&word, p + i, 4);
    bits |= uint64_t(word << 1 != 0) << i;
  }
#endif
  return bits;
}

// The same for the first `count` floats, 0 <= count <= 64; memory past them is not read.
inline uint64_t nonzero_bits_first(const float* p, int count) {
  uint64_t bits = 0;
  int i = 0;
  for (; i + 16 <= count; i += 16) bits |= nonzero_bits<16>(p + i) << i;
  for (; i < count; ++i) {
    uint32_t word;
    memcpy(&word, p + i, 4);
    bits |= uint64_t(word << 1 != 0) << i;
  }
  return bits;
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
