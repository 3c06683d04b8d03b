// Random bits that are a pure function of (seed, step, row, slot); gossamer/kernels/counter.py computes the same.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Stafford's mix 13 of 64 bits, of the next number of Weyl's sequence: a step of splitmix64.
inline uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

inline uint64_t step_key(int64_t seed, int64_t step) { return mixed(mixed(uint64_t(seed)) ^ uint64_t(step)); }
inline uint64_t row_key(uint64_t step_key, int64_t row) { return mixed(step_key + uint64_t(row)); }

// 32 random bits for each of the slots from `slot` on, of the row with this key.
inline Lanes<uint32_t> slot_bits(uint64_t row_key, int64_t slot) {
  Lanes<uint32_t> x;
  for (int i = 0; i < kLanes<uint32_t>; ++i) x[i] = uint32_t(i) * 0x9E3779B1u;
  x += uint32_t(row_key) + uint32_t(slot) * 0x9E3779B1u;
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16 ^ uint32_t(row_key >> 32);
}

// The lanes as bfloat16, each up or down with the odds of where it lies between: the upper half of `bits` is added to
// what bfloat16 leaves out, and that is cut off. NaN stays what it is.
inline void store_rounded(BFloat16* p, Lanes<float> v, Lanes<uint32_t> bits, int count) {
  typedef uint16_t Halves __attribute__((vector_size(kWidth / 2)));
  const Lanes<uint32_t> odds = (Lanes<uint32_t>)(v == v) & bits >> 16;
  const Halves upper = __builtin_convertvector(((Lanes<uint32_t>)v + odds) >> 16, Halves);
  memcpy(p, &upper, size_t(count) * sizeof(BFloat16));
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
