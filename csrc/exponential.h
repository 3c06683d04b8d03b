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

inline float exp_of(float x) { return exp_lanes(broadcast(x))[0]; }

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
