// Rows become columns: whole squares in registers, what is left over element by element.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// A square block of kSide<T> rows of kSide<T> elements is transposed in registers; row i of the result goes to out[i].
template <class T>
constexpr int kSide = 32 / int(sizeof(T));

#if defined(GOSSAMER_AVX2)
// Row i of eight becomes column i.
inline void transpose_eight(__m256 (&r)[8]) {
  __m256 s[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
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
    r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
}

inline void transpose_block(const float* in, int64_t in_stride, float* const* out) {
  __m256 r[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + i * in_stride);
  transpose_eight(r);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) _mm256_storeu_ps(out[i], r[i]);
}

inline void transpose_block(const double* in, int64_t in_stride, double* const* out) {
  const __m256d r0 = _mm256_loadu_pd(in), r1 = _mm256_loadu_pd(in + in_stride);
  const __m256d r2 = _mm256_loadu_pd(in + 2 * in_stride), r3 = _mm256_loadu_pd(in + 3 * in_stride);
  const __m256d s0 = _mm256_unpacklo_pd(r0, r1), s1 = _mm256_unpackhi_pd(r0, r1);
  const __m256d s2 = _mm256_unpacklo_pd(r2, r3), s3 = _mm256_unpackhi_pd(r2, r3);
  _mm256_storeu_pd(out[0], _mm256_permute2f128_pd(s0, s2, 0x20));
  _mm256_storeu_pd(out[1], _mm256_permute2f128_pd(s1, s3, 0x20));
  _mm256_storeu_pd(out[2], _mm256_permute2f128_pd(s0, s2, 0x31));
  _mm256_storeu_pd(out[3], _mm256_permute2f128_pd(s1, s3, 0x31));
}
#else
template <class T>
inline void transpose_block(const T* in, int64_t in_stride, T* const* out) {
  for (int j = 0; j < kSide<T>; ++j)
    for (int i = 0; i < kSide<T>; ++i) out[j][i] = in[i * in_stride + j];
}
#endif

// Writes column j of in[rows, cols], whose rows are `in_stride` elements apart, to the row that begins at to(j).
template <class T, class To>
inline void transpose_to(const T* in, int64_t in_stride, int64_t rows, int64_t cols, const To& to) {
  constexpr int64_t kStep = kSide<T>;
  const int64_t whole = cols >= kStep ? rows / kStep * kStep : 0;
  // Along the rows of the result in the inner loop: a line of it is written at once.
  for (int64_t j = 0; j < cols && whole > 0; j += kStep) {
    const int64_t left = least(j, cols - kStep);  // the last block takes some columns again
    T* out[kStep];
    for (int64_t i = 0; i < kStep; ++i) out[i] = to(left + i);
    for (int64_t i = 0; i < whole; i += kStep) {
      transpose_block(in + i * in_stride + left, in_stride, out);
      for (int64_t k = 0; k < kStep; ++k) out[k] += kStep;
    }
  }
  for (int64_t j = 0; j < cols && whole < rows; ++j) {
    T* const out = to(j);
    for (int64_t i = whole; i < rows; ++i) out[i] = in[i * in_stride + j];
  }
}

// out[j, i] = in[i, j] for i < rows, j < cols; strides in elements.
template <class T>
inline void transpose(const T* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows, int64_t cols) {
  transpose_to(in, in_stride, rows, cols, [=](int64_t j) { return out + j * out_stride; });
}

// Row i of the square becomes column i.
inline void transpose_square(Lanes<float> (&r)[kLanes<float>]) {
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
    r[j] = (Lanes<float>)_mm512_shuffle_f32x4(lo, lo2, 0x88);
    r[8 + j] = (Lanes<float>)_mm512_shuffle_f32x4(lo, lo2, 0xDD);
    r[4 + j] = (Lanes<float>)_mm512_shuffle_f32x4(hi, hi2, 0x88);
    r[12 + j] = (Lanes<float>)_mm512_shuffle_f32x4(hi, hi2, 0xDD);
  }
#elif defined(GOSSAMER_AVX2)
  transpose_eight(reinterpret_cast<__m256(&)[8]>(r));
#else
  for (int i = 0; i < kLanes<float>; ++i)
    for (int j = 0; j < i; ++j) {
      const float v = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = v;
    }
#endif
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
