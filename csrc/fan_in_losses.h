// Losses of a vector of logits, and their gradients.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

enum class Loss { kBce, kHinge };

// e to the power of x <= 0; what would be smaller than a normal number is about that number. NaN stays NaN.
inline Lanes<float> exp_negative(Lanes<float> x) {
  const Lanes<float> least = broadcast(-87.0f), round = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds
  x = x < least ? least : x;
  const Lanes<float> shifted = fma(x, broadcast(1.44269504f), round), n = shifted - round;
  Lanes<float> r = fma(n, broadcast(-0.693359375f), x);  // ln 2 in two parts, the first exact in few bits
  r = fma(n, broadcast(2.12194440e-4f), r);
  Lanes<float> p = broadcast(1.0f / 5040);  // Taylor's, |r| <= ln 2 / 2: off by 2e-9
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  const Lanes<uint32_t> power = ((Lanes<uint32_t>)shifted + (127u - 0x4B400000u)) << 23;
  return p * (Lanes<float>)power;
}

// log(1 + e) for e in [0, 1]: e times the polynomial that interpolates log(1 + e) / e at Chebyshev's points, off by 5e-9.
// The series in e / (2 + e) would be shorter, but a division costs as much as all this.
inline Lanes<float> log_one_plus(Lanes<float> e) {
  constexpr float kTerms[] = {0.0195425283f, -0.0563736148f, 0.105436236f, -0.152696669f, 0.196632743f,
                              -0.249516159f, 0.333297104f,   -0.499998927f, 1.0f};
  Lanes<float> p = broadcast(-0.00317605701f);
#pragma GCC unroll 9
  for (const float term : kTerms) p = fma(p, e, broadcast(term));
  return e * p;
}

// Of logits z with targets y, 1 or 0: adds the loss to `sum` and returns its gradient.
inline Lanes<float> loss_gradient(Loss loss, Lanes<float> z, Lanes<float> y, Lanes<float>& sum, Lanes<int32_t> inside) {
  const Lanes<float> zero = {};
  Lanes<float> gradient, value;
  if (loss == Loss::kBce) {
    const Lanes<float> e = exp_negative(z < zero ? z : -z), part = 1.0f / (e + 1.0f);
    gradient = (z < zero ? e * part : part) - y;
    value = (z < zero ? zero : z) - y * z + log_one_plus(e);
  } else {
    const Lanes<float> sign = y + y - 1.0f, slack = 1.0f - sign * z;
    const Lanes<float> margin = slack <= zero ? zero : slack;  // NaN stays
    gradient = -2.0f * sign * margin;
    value = margin * margin;
  }
  sum += (Lanes<float>)((Lanes<int32_t>)value & inside);
  return (Lanes<float>)((Lanes<int32_t>)gradient & inside);
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
