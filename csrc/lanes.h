// Floating-point words, for float and double at every vector width: load, store, broadcast, fma, sum, which are zero.
//
// `count` of the words ending in _first is in [0, kLanes<T>]; memory past it is neither read nor written. Nothing needs
// alignment beyond that of its elements. A product is rounded before it is added only where there is no fused
// instruction (scalar), so results differ between instruction sets but never between runs.
#pragma once
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class T>
struct LanesOf {
  typedef T type __attribute__((vector_size(kWidth)));
  typedef T loose __attribute__((vector_size(kWidth), aligned(alignof(T)), may_alias));
};
template <class T>
using Lanes = typename LanesOf<T>::type;
template <class T>
constexpr int kLanes = kWidth / int(sizeof(T));

// Accumulators that fit in registers beside the operands of a product.
#if defined(GOSSAMER_AVX512)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

template <class T>
inline Lanes<T> load_lanes(const T* p) {
  return *reinterpret_cast<const typename LanesOf<T>::loose*>(p);
}

template <class T>
inline void store_lanes(T* p, Lanes<T> v) {
  *reinterpret_cast<typename LanesOf<T>::loose*>(p) = v;
}

inline Lanes<float> broadcast(float x) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<float>)_mm512_set1_ps(x);
#elif defined(GOSSAMER_AVX2)
  return (Lanes<float>)_mm256_set1_ps(x);
#else
  return Lanes<float>{x, x, x, x};
#endif
}

inline Lanes<double> broadcast(double x) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<double>)_mm512_set1_pd(x);
#elif defined(GOSSAMER_AVX2)
  return (Lanes<double>)_mm256_set1_pd(x);
#else
  return Lanes<double>{x, x};
#endif
}

// a * b + c
inline Lanes<float> fma(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(GOSSAMER_AVX2)
  return (Lanes<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Lanes<double> fma(Lanes<double> a, Lanes<double> b, Lanes<double> c) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(GOSSAMER_AVX2)
  return (Lanes<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

inline Lanes<float> sqrt_lanes(Lanes<float> x) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<float>)_mm512_sqrt_ps((__m512)x);
#elif defined(GOSSAMER_AVX2)
  return (Lanes<float>)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

#if defined(GOSSAMER_AVX2)
// `count` words of ones, then zeros.
template <class T>
inline __m256i first_mask(int count) {
  alignas(64) static constexpr int kOnes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnes + 8 - count * int(sizeof(T) / 4)));
}
#endif

// The first `count` lanes from memory, zero in the others.
template <class T>
inline Lanes<T> load_first(const T* p, int count) {
#if defined(GOSSAMER_AVX512)
  if constexpr (sizeof(T) == 4) return (Lanes<T>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
  else return (Lanes<T>)_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), p);
#elif defined(GOSSAMER_AVX2)
  if constexpr (sizeof(T) == 4) return (Lanes<T>)_mm256_maskload_ps(p, first_mask<T>(count));
  else return (Lanes<T>)_mm256_maskload_pd(p, first_mask<T>(count));
#else
  Lanes<T> v = {};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

template <class T>
inline void store_first(T* p, Lanes<T> v, int count) {
#if defined(GOSSAMER_AVX512)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
  else _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), (__m512d)v);
#elif defined(GOSSAMER_AVX2)
  if constexpr (sizeof(T) == 4) _mm256_maskstore_ps(p, first_mask<T>(count), (__m256)v);
  else _mm256_maskstore_pd(p, first_mask<T>(count), (__m256d)v);
#else
  for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
}

// Writes the elements of p whose `bits` are set side by side; p has `readable` of kLanes<T>, and the set ones are among
// them. All kLanes<T> elements of `out` may be written.
template <class T>
inline void compress_lanes(const T* p, uint32_t bits, int64_t readable, T* out) {
#if defined(GOSSAMER_AVX512)
  const Lanes<T> v = readable >= kLanes<T> ? load_lanes(p) : load_first(p, int(readable));
  if constexpr (sizeof(T) == 4) _mm512_storeu_ps(out, _mm512_maskz_compress_ps(__mmask16(bits), (__m512)v));
  else _mm512_storeu_pd(out, _mm512_maskz_compress_pd(__mmask8(bits), (__m512d)v));
#else
#if defined(GOSSAMER_AVX2)
  if constexpr (sizeof(T) == 4) {
    const __m256 v = readable >= 8 ? _mm256_loadu_ps(p) : (__m256)load_first(p, int(readable));
    const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSetBits.of[bits]));
    _mm256_storeu_ps(out, _mm256_permutevar8x32_ps(v, _mm256_cvtepu8_epi32(places)));
    return;
  }
#endif
  (void)readable;
  for (; bits != 0; bits &= bits - 1) *out++ = p[__builtin_ctz(bits)];
#endif
}

// The sum of the lanes, halves added to halves.
template <class T>
inline T sum_lanes(Lanes<T> v) {
  T lanes[kLanes<T>];
  store_lanes(lanes, v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// bfloat16 is the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(int8_t x) { return float(x); }
inline float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// IEEE's half: sign, five bits of exponent, ten of fraction.
struct Float16 {
  uint16_t bits;
};
inline float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits & 0x7c00;
  // The bits in a float's place, its exponent counted from another number; a denormal is first given a leading one.
  uint32_t bits = (uint32_t(x.bits & 0x7fff) << 13) + (exponent == 0x7c00 ? 224u << 23 : exponent ? 112u << 23 : 113u << 23);
  float value;
  memcpy(&value, &bits, 4);
  if (exponent == 0) value -= 6.103515625e-05f;
  memcpy(&bits, &value, 4);
  bits |= sign;
  memcpy(&value, &bits, 4);
  return value;
}

// Weights as floats, or doubles as what they are; `count` of them, the rest zero.
inline Lanes<float> load_weights(const float* p) { return load_lanes(p); }
inline Lanes<float> load_weights(const float* p, int count) { return load_first(p, count); }
inline Lanes<double> load_weights(const double* p) { return load_lanes(p); }
inline Lanes<double> load_weights(const double* p, int count) { return load_first(p, count); }

inline Lanes<float> load_weights(const BFloat16* p) {
#if defined(GOSSAMER_AVX512)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Lanes<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#elif defined(GOSSAMER_AVX2)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Lanes<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#else
  return Lanes<float>{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
#endif
}

inline Lanes<float> load_weights(const Float16* p) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(GOSSAMER_AVX2)
  return (Lanes<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return Lanes<float>{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
#endif
}

template <class Half>
inline Lanes<float> load_weights(const Half* p, int count) {
  Half few[kLanes<float>] = {};
  memcpy(few, p, size_t(count) * sizeof(Half));
  return load_weights(few);
}

// Which of up to 64 floats are not zero, as bits. Decided on bits, the sign left out: -0.0 is zero, NaN and denormals
// are not, whatever the mode of the thread's arithmetic.

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
  for (int i = 0; i < kLanes<float>; ++i) {
    const bool keep = !(v[i] <= 0);
    v[i] = keep ? v[i] : 0;
    bits |= uint32_t(keep) << i;
  }
  *kept = bits;
  return v;
#endif
}

// The lanes whose bit is set; the others are zero and their memory is not read.
inline Lanes<float> load_where(const float* p, uint32_t bits) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<float>)_mm512_maskz_loadu_ps(__mmask16(bits), p);
#elif defined(GOSSAMER_AVX2)
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i mask = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lane), lane);
  return (Lanes<float>)_mm256_maskload_ps(p, mask);
#else
  Lanes<float> v = {};
  for (int i = 0; i < kLanes<float>; ++i)
    if (bits >> i & 1) v[i] = p[i];
  return v;
#endif
}

// The nonzero lanes of v among those of `keep`, as bits; adds up their `valid`.
inline uint32_t nonzeros(Lanes<float> v, Lanes<int32_t> valid, uint32_t keep, Lanes<int32_t>& total) {
#if defined(GOSSAMER_AVX512)
  const __mmask16 m = _mm512_mask_test_epi32_mask(__mmask16(keep), (__m512i)v, _mm512_set1_epi32(0x7fffffff));
  total = (Lanes<int32_t>)_mm512_mask_add_epi32((__m512i)total, m, (__m512i)total, (__m512i)valid);
  return m;
#elif defined(GOSSAMER_AVX2)
  const __m256i bits = (__m256i)v;
  const __m256i zero = _mm256_cmpeq_epi32(_mm256_add_epi32(bits, bits), _mm256_setzero_si256());
  total = (Lanes<int32_t>)_mm256_add_epi32((__m256i)total, _mm256_andnot_si256(zero, (__m256i)valid));
  return ~uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(zero))) & keep;
#else
  const Lanes<uint32_t> bits = (Lanes<uint32_t>)v;
  const Lanes<int32_t> zero = bits + bits == 0;
  total += valid & ~zero;
  uint32_t m = 0;
  for (int i = 0; i < kLanes<float>; ++i) m |= uint32_t(zero[i] == 0) << i;
  return m & keep;
#endif
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
