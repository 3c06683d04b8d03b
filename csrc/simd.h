// One width-agnostic vocabulary for every instruction set: vectors of kWidth bytes and blocks of 64 lanes as 64 bits.
//
// A op's source is compiled once per instruction set with GOSSAMER_ISA naming its namespace. Everything here is in an
// anonymous namespace inside it: nothing compiled for AVX-512 may be the copy that the scalar path calls.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(GOSSAMER_AVX2)
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
// That of a division which rounds down.
inline int64_t remainder(int64_t a, int64_t b) { return (a % b + b) % b; }
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

// The bits of `from` that `mask` names, moved together; slow where not kExtracts (Zen 1 and 2 take it bit by bit).
#if defined(GOSSAMER_AVX512)
constexpr bool kExtracts = true;
inline uint64_t extract_bits(uint64_t from, uint64_t mask) { return _pext_u64(from, mask); }
#else
constexpr bool kExtracts = false;
inline uint64_t extract_bits(uint64_t from, uint64_t) { return from; }
#endif

// Of up to kWords words of bits, word[0] the first that is not empty, forgets the lowest bit; an empty word[0] is replaced
// by the next, and first[] moves with word[]. The compiler would make branches of this, one mispredicted at every end of a
// word: here blsr clears the bit and says if none is left (the flag Z), and the moves happen only then (cmovz).
template <int kWords>
inline void drop_lowest(uint64_t* word, uint64_t* first) {
#if defined(GOSSAMER_AVX2)
  if constexpr (kWords == 4) {
    asm("blsr %0, %0\n\tcmovz %1, %0\n\tcmovz %4, %3\n\tcmovz %2, %1\n\tcmovz %5, %4\n\tcmovz %6, %2\n\tcmovz %7, %5"
        : "+&r"(word[0]), "+&r"(word[1]), "+&r"(word[2]), "+&r"(first[0]), "+&r"(first[1]), "+&r"(first[2])
        : "r"(word[3]), "r"(first[3])
        : "cc");
  } else if constexpr (kWords == 3) {
    asm("blsr %0, %0\n\tcmovz %1, %0\n\tcmovz %3, %2\n\tcmovz %4, %1\n\tcmovz %5, %3"
        : "+&r"(word[0]), "+&r"(word[1]), "+&r"(first[0]), "+&r"(first[1])
        : "r"(word[2]), "r"(first[2])
        : "cc");
  } else {
    asm("blsr %0, %0\n\tcmovz %2, %0\n\tcmovz %3, %1"
        : "+&r"(word[0]), "+&r"(first[0])
        : "r"(word[1]), "r"(first[1])
        : "cc");
  }
#else
  word[0] &= word[0] - 1;
  const bool empty = word[0] == 0;
  for (int i = 0; i + 1 < kWords; ++i) {
    word[i] = empty ? word[i + 1] : word[i];
    first[i] = empty ? first[i + 1] : first[i];
  }
#endif
}

#if defined(GOSSAMER_AVX512)
// Writes the places of the first `room` bits of a row, bits.words[0, bits.count), of which the first is bits.first, by the
// instruction that is made for it: which not every CPU of this instruction set has.
inline bool has_compress_bytes() { return __builtin_cpu_supports("avx512vbmi2"); }

template <class Bits, class Index>
__attribute__((target("avx512vbmi2"))) void write_compressed(const Bits& bits, Index* out, int64_t room) {
  Index* const end = out + room;
  alignas(64) uint8_t iota[64];
  for (int i = 0; i < 64; ++i) iota[i] = uint8_t(i);
  const __m512i places = _mm512_load_si512(iota);
  for (int64_t w = 0; w < bits.count; ++w) {
    bits.prefetch(w);
    if (bits.words[w] == 0) continue;
    const int64_t count = least(__builtin_popcountll(bits.words[w]), end - out);
    __m512i here = _mm512_maskz_compress_epi8(bits.words[w], places);
    if constexpr (sizeof(Index) == 2) {
      const __m512i base = _mm512_set1_epi16(short(bits.first + w * 64));
      _mm512_mask_storeu_epi16(out, _bzhi_u32(~0u, uint32_t(count)),
                               _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(here)), base));
      if (count > 32)
        _mm512_mask_storeu_epi16(out + 32, _bzhi_u32(~0u, uint32_t(count - 32)),
                                 _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(here, 1)), base));
    } else {
      const __m512i base = _mm512_set1_epi32(int(bits.first + w * 64));
      for (int64_t at = 0; at < count; at += 16) {
        _mm512_mask_storeu_epi32(out + at, __mmask16(_bzhi_u32(0xffff, uint32_t(count - at))),
                                 _mm512_add_epi32(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(here)), base));
        here = _mm512_alignr_epi64(here, here, 2);
      }
    }
    out += count;
  }
}
#else
constexpr bool has_compress_bytes() { return false; }
template <class Bits, class Index>
void write_compressed(const Bits&, Index*, int64_t) {}
#endif

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
