// Softmax weights that are rounded to bfloat16, 16 rows at a time: what products of pairs take.
//
// Sums are of the rounded weights, so that a result is a mean of values whatever the rounding. exp is one to 3e-6.
#pragma once
#include "page_attention.h"
#include "page_pairs.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kWeightRows = 16;

struct Larger {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_max_ps(a, b); }
};
struct Sum {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_add_ps(a, b); }
};

// Lane i is what f makes of all lanes of v[i].
template <class F>
inline __m512 across(const __m512* v, const F& f) {
  __m512 of_four[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 *const r = v + 4 * i;
    const __m512d ab = (__m512d)f(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
    const __m512d cd = (__m512d)f(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
    of_four[i] = f((__m512)_mm512_unpacklo_pd(ab, cd), (__m512)_mm512_unpackhi_pd(ab, cd));
  }
  const auto halves = [&](__m512 a, __m512 b) {
    return f(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  };
  return halves(halves(of_four[0], of_four[1]), halves(of_four[2], of_four[3]));
}

constexpr float kLog2E = 1.44269504f;

// 2^(x * by + shift), of what is at most about 0: exactly 0 below 2^-126 (a denormal result takes a hundred cycles), and
// NaN stays.
inline __m512 power(__m512 x, __m512 by, __m512 shift) {
  const __m512 nearest = _mm512_set1_ps(12582912.0f);  // adding 1.5 * 2^23 rounds
  const __m512 t = _mm512_fmadd_ps(x, by, shift);
  const __mmask16 normal = _mm512_cmp_ps_mask(t, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  const __m512 n = _mm512_sub_ps(_mm512_add_ps(t, nearest), nearest), r = _mm512_sub_ps(t, n);
  // The polynomial of degree 4 whose relative error is least in [-1/2, 1/2].
  __m512 p = _mm512_set1_ps(9.570102207362652e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.591785907745361e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240247443318367f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.6931217908859253f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.9999992847442627f));
  return _mm512_maskz_scalef_ps(normal, p, n);
}

// The weights[page] of `count` rows of scores[page], which are to be multiplied by scale > 0; counts them in as the rows
// r, r + 1, ... of a state.
inline void take_weights(const SoftmaxRows& state, int64_t r, int64_t count, const float* scores, int64_t page,
                         float scale, BFloat16* weights) {
  const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
  const __mmask16 here = __mmask16((1u << count) - 1);
  __m512 each[kWeightRows];
  for (int64_t i = 0; i < kWeightRows; ++i) {
    __m512 most = nothing;
    for (int64_t t = 0; i < count && t < page; t += 16)
      most = _mm512_max_ps(most, _mm512_loadu_ps(scores + i * page + t));
    each[i] = most;
  }
  const __m512 before = _mm512_mask_loadu_ps(nothing, here, state.largest + r);
  const __m512 top = _mm512_max_ps(before, _mm512_mul_ps(across(each, Larger()), _mm512_set1_ps(scale)));
  const __m512 so_far = _mm512_maskz_loadu_ps(here, state.sum + r);
  uint32_t grown = _mm512_cmp_ps_mask(top, before, _CMP_NEQ_UQ) &
                   _mm512_cmp_ps_mask(so_far, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  if (grown != 0) {
    float factors[kWeightRows];
    store_lanes(factors, exp_lanes((Lanes<float>)_mm512_sub_ps(before, top)));
    for (; grown != 0; grown &= grown - 1) state.scale(r + __builtin_ctz(grown), factors[__builtin_ctz(grown)]);
  }
  _mm512_mask_storeu_ps(state.largest + r, here, top);
  float shifts[kWeightRows];
  _mm512_storeu_ps(shifts, _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(top, nothing, _CMP_NEQ_UQ), top,
                                               _mm512_set1_ps(-kLog2E)));
  const __m512 by = _mm512_set1_ps(scale * kLog2E);
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  for (int64_t i = 0; i < kWeightRows; ++i) {
    __m512 sum = _mm512_setzero_ps();
    const __m512 shift = _mm512_set1_ps(shifts[i]);
    for (int64_t t = 0; i < count && t < page; t += 32) {
      const float* const from = scores + i * page + t;
      const __m512 low = power(_mm512_loadu_ps(from), by, shift);
      const __m512 high = power(_mm512_loadu_ps(from + 16), by, shift);
      const __m512i two = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      _mm512_storeu_si512(weights + i * page + t, two);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)two, (__m512bh)ones);
    }
    each[i] = sum;
  }
  const __m512 sum = _mm512_maskz_loadu_ps(here, state.sum + r);
  _mm512_mask_storeu_ps(state.sum + r, here, _mm512_add_ps(sum, across(each, Sum())));
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
