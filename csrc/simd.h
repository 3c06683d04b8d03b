// One width-agnostic vocabulary for every instruction set: vectors of kWidth bytes and blocks of 64 lanes as 64 bits.
//
// A op's source is compiled once per instruction set with GOSSAMER_ISA naming its namespace. Everything here is in an
// anonymous namespace inside it: nothing compiled for AVX-512 may be the copy that the scalar path calls.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(GOSSAMER_AVX2) || defined(GOSSAMER_AVX512)
#include <immintrin.h>
#endif

#include "parallel.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bits and bytes of a word are taken in the same order");

namespace gossamer::GOSSAMER_ISA {
namespace {

#if defined(GOSSAMER_AVX512)
constexpr int kWidth = 64;
#elif defined(GOSSAMER_AVX2)
constexpr int kWidth = 32;
#else
constexpr int kWidth = 16;  // SSE2 and NEON have such registers; the compiler splits vectors where there are none
#endif

typedef uint64_t Vec __attribute__((vector_size(kWidth)));
typedef uint64_t LooseVec __attribute__((vector_size(kWidth), aligned(1), may_alias));

inline Vec load(const void* p) { return *static_cast<const LooseVec*>(p); }
inline void store(void* p, Vec v) { *static_cast<LooseVec*>(p) = v; }

// Stores past the caches, where the instruction set can (p on a multiple of kWidth). Whoever did ends it before another
// thread may look.
constexpr bool kStreams = kWidth >= 32;
#if defined(GOSSAMER_AVX512)
inline void stream(void* p, Vec v) { _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v); }
inline void end_stream() { _mm_sfence(); }
#elif defined(GOSSAMER_AVX2)
inline void stream(void* p, Vec v) { _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v); }
inline void end_stream() { _mm_sfence(); }
#else
inline void stream(void* p, Vec v) { store(p, v); }
inline void end_stream() {}
#endif

inline bool any_bit(Vec v) {
#if defined(GOSSAMER_AVX512)
  return _mm512_test_epi64_mask((__m512i)v, (__m512i)v) != 0;
#elif defined(GOSSAMER_AVX2)
  return !_mm256_testz_si256((__m256i)v, (__m256i)v);
#else
  return (v[0] | v[1]) != 0;
#endif
}

template <class Lane>
constexpr int kVecs = 64 * int(sizeof(Lane)) / kWidth;  // vectors in a block of 64 lanes

template <class Lane>
struct Block {
  Vec v[kVecs<Lane>];
};

template <class Lane>
inline Block<Lane> load_block(const Lane* p) {
  Block<Lane> b;
  for (int i = 0; i < kVecs<Lane>; ++i) b.v[i] = load(reinterpret_cast<const char*>(p) + i * kWidth);
  return b;
}

template <class Lane>
inline void store_block(Lane* p, const Block<Lane>& b) {
  for (int i = 0; i < kVecs<Lane>; ++i) store(reinterpret_cast<char*>(p) + i * kWidth, b.v[i]);
}

// Bit i is set when lane i has a bit of `keep` set.
template <class Lane>
inline uint64_t lane_bits(const Block<Lane>& b, Lane keep) {
  uint64_t bits = 0;
#if defined(GOSSAMER_AVX512)
  for (int i = 0; i < kVecs<Lane>; ++i) {
    const __m512i v = (__m512i)b.v[i];
    uint64_t set;
    if constexpr (sizeof(Lane) == 1) set = _mm512_test_epi8_mask(v, _mm512_set1_epi8(char(keep)));
    if constexpr (sizeof(Lane) == 2) set = _mm512_test_epi16_mask(v, _mm512_set1_epi16(short(keep)));
    if constexpr (sizeof(Lane) == 4) set = _mm512_test_epi32_mask(v, _mm512_set1_epi32(int(keep)));
    if constexpr (sizeof(Lane) == 8) set = _mm512_test_epi64_mask(v, _mm512_set1_epi64((long long)(keep)));
    bits |= set << (i * (kWidth / int(sizeof(Lane))));
  }
#elif defined(GOSSAMER_AVX2)
  const __m256i zero = _mm256_setzero_si256();
  if constexpr (sizeof(Lane) == 1) {
    for (int i = 0; i < 2; ++i) {
      const __m256i v = _mm256_and_si256((__m256i)b.v[i], _mm256_set1_epi8(char(keep)));
      bits |= uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, zero)))) << (i * 32);
    }
  } else if constexpr (sizeof(Lane) == 2) {
    const __m256i k = _mm256_set1_epi16(short(keep));
    for (int i = 0; i < 2; ++i) {
      const __m256i lo = _mm256_cmpeq_epi16(_mm256_and_si256((__m256i)b.v[2 * i], k), zero);
      const __m256i hi = _mm256_cmpeq_epi16(_mm256_and_si256((__m256i)b.v[2 * i + 1], k), zero);
      const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(lo, hi), 0xD8);
      bits |= uint64_t(uint32_t(_mm256_movemask_epi8(both))) << (i * 32);
    }
  } else if constexpr (sizeof(Lane) == 4) {
    const __m256i k = _mm256_set1_epi32(int(keep));
    for (int i = 0; i < 8; ++i) {
      const __m256i v = _mm256_cmpeq_epi32(_mm256_and_si256((__m256i)b.v[i], k), zero);
      bits |= uint64_t(_mm256_movemask_ps(_mm256_castsi256_ps(v))) << (i * 8);
    }
  } else {
    const __m256i k = _mm256_set1_epi64x((long long)(keep));
    for (int i = 0; i < 16; ++i) {
      const __m256i v = _mm256_cmpeq_epi64(_mm256_and_si256((__m256i)b.v[i], k), zero);
      bits |= uint64_t(_mm256_movemask_pd(_mm256_castsi256_pd(v))) << (i * 4);
    }
  }
  bits = ~bits;
#else
  Lane lanes[64];
  uint8_t flags[64];
  memcpy(lanes, b.v, sizeof(lanes));
  for (int i = 0; i < 64; ++i) flags[i] = (lanes[i] & keep) != 0;  // the compiler packs lanes to bytes
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    memcpy(&eight, flags + 8 * i, 8);
    bits |= (eight * 0x0102040810204080u >> 56) << (8 * i);  // byte j of eight, 0 or 1, lands on bit j
  }
#endif
  return bits;
}

// v with the lanes zeroed, by bits, whose byte of `flags` is zero.
template <class Lane>
inline Vec keep_lanes(Vec v, const uint8_t* flags) {
#if defined(GOSSAMER_AVX512)
  const __m512i x = (__m512i)v;
  if constexpr (sizeof(Lane) == 1) {
    const __m512i f = _mm512_loadu_si512(flags);
    return (Vec)_mm512_maskz_mov_epi8(_mm512_test_epi8_mask(f, f), x);
  } else if constexpr (sizeof(Lane) == 2) {
    const __m512i f = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(flags)));
    return (Vec)_mm512_maskz_mov_epi16(_mm512_test_epi16_mask(f, f), x);
  } else if constexpr (sizeof(Lane) == 4) {
    const __m512i f = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(flags)));
    return (Vec)_mm512_maskz_mov_epi32(_mm512_test_epi32_mask(f, f), x);
  } else {
    const __m512i f = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(flags)));
    return (Vec)_mm512_maskz_mov_epi64(_mm512_test_epi64_mask(f, f), x);
  }
#elif defined(GOSSAMER_AVX2)
  const __m256i x = (__m256i)v, zero = _mm256_setzero_si256();
  if constexpr (sizeof(Lane) == 1) {
    const __m256i f = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(flags));
    return (Vec)_mm256_andnot_si256(_mm256_cmpeq_epi8(f, zero), x);
  } else if constexpr (sizeof(Lane) == 2) {
    const __m256i f = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(flags)));
    return (Vec)_mm256_andnot_si256(_mm256_cmpeq_epi16(f, zero), x);
  } else if constexpr (sizeof(Lane) == 4) {
    const __m256i f = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(flags)));
    return (Vec)_mm256_andnot_si256(_mm256_cmpeq_epi32(f, zero), x);
  } else {
    int four;
    memcpy(&four, flags, 4);
    const __m256i f = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
    return (Vec)_mm256_andnot_si256(_mm256_cmpeq_epi64(f, zero), x);
  }
#else
  typedef Lane Lanes __attribute__((vector_size(kWidth)));
  typedef uint8_t Bytes __attribute__((vector_size(kWidth / sizeof(Lane))));
  Bytes f;
  memcpy(&f, flags, sizeof(f));
  return v & (Vec)(__builtin_convertvector(f, Lanes) != Lanes{});
#endif
}

// Runs f(part) for every part, on a team of `threads` threads.
template <class F>
inline void parallel(int64_t parts, int threads, const F& f) {
  run_parts(parts, threads, [](void* f, int64_t part) { (*static_cast<const F*>(f))(part); },
            const_cast<void*>(static_cast<const void*>(&f)));
}

// The first of n things that belong to `part`; the part ends where the next begins.
inline int64_t part_begin(int64_t n, int64_t part, int64_t parts) {
  return n / parts * part + n % parts * part / parts;  // n * part would overflow for the largest n
}

// Below this, waking other threads costs more than they save. All of them or none: libgomp ends and restarts threads
// when the size of a team changes, so the kernels only ever ask for torch's own number.
constexpr int64_t kParallelBytes = 131072;

inline int useful_threads(int64_t bytes, int threads) { return bytes < kParallelBytes ? 1 : threads; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// kSetBits.of[b]: the places of the bits of byte b, low to high, then 0.
struct SetBits {
  uint8_t of[256][8] = {};
  constexpr SetBits() {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0, n = 0; bit < 8; ++bit)
        if (byte >> bit & 1) of[byte][n++] = uint8_t(bit);
  }
};
constexpr SetBits kSetBits;

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
