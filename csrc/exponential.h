// exp of floats, a vector at a time: 2^n times a polynomial of what is left; within 2 units in the last place.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// 0 below exp(-87), where floats become denormal; infinity above exp(88.7); NaN stays.
inline Lanes<float> exp_lanes(Lanes<float> x) {
  constexpr float kLowest = -87.0f, kHighest = 88.72284f, kNearest = 12582912.0f;  // adding 1.5 * 2^23 rounds
  const Lanes<float> low = broadcast(kLowest), high = broadcast(kHighest), nearest = broadcast(kNearest);
  Lanes<float> t = x < low ? low : x;
  t = t > high ? high : t;
  const Lanes<float> rounded = fma(t, broadcast(1.44269504f), nearest), n = rounded - nearest;
  // ln 2 in two parts: n times the first is exact.
  const Lanes<float> r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), t));
  constexpr float kTaylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  Lanes<float> p = broadcast(1.0f / 5040);
#pragma GCC unroll 7
  for (int i = 0; i < 7; ++i) p = fma(p, r, broadcast(kTaylor[i]));
  // n is in the low bits of `rounded`; 2^n is made in two factors, for 2^128 is no float.
  const Lanes<int32_t> whole = (Lanes<int32_t>)rounded - (Lanes<int32_t>)nearest, half = whole >> 1;
  p = p * (Lanes<float>)((half + 127) << 23) * (Lanes<float>)((whole - half + 127) << 23);
  p = x < low ? Lanes<float>{} : p;
  return x > high ? broadcast(__builtin_inff()) : p;
}

// The same in two thirds of the time, of what is at most a little above 0, as a score less the largest: exactly 1 at 0,
// exactly 0 where the result would be denormal, and NaN stays. Within 2 units in the last place beside the largest weight.
inline Lanes<float> exp_weights(Lanes<float> x) {
  constexpr float kNearest = 12582912.0f, kLeast = -126.0f;
  const Lanes<float> nearest = broadcast(kNearest), t = x * broadcast(1.44269504f);
  const Lanes<float> rounded = t + nearest, n = rounded - nearest, r = t - n;
  // 2^r: of the polynomials of degree 6 that are 1 at 0 that whose relative error is least in [-1/2, 1/2].
  constexpr float kPowers[] = {0.00015353362f, 0.0013398875f, 0.00961843692f, 0.0555033237f, 0.240226477f, 0.693147182f};
  Lanes<float> p = broadcast(kPowers[0]);
#pragma GCC unroll 6
  for (int i = 1; i < 6; ++i) p = fma(p, r, broadcast(kPowers[i]));
  p = fma(p, r, broadcast(1.0f));
#if defined(GOSSAMER_AVX512)
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)t, _mm512_set1_ps(kLeast), _CMP_NLT_UQ);
  return (Lanes<float>)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
  p = p * (Lanes<float>)(((Lanes<int32_t>)rounded - (Lanes<int32_t>)nearest + 127) << 23);
  return t < broadcast(kLeast) ? Lanes<float>{} : p;
#endif
}

inline float exp_of(float x) { return exp_lanes(broadcast(x))[0]; }

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
