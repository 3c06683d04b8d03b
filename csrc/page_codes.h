// Keys as codes, as they lie in pages: four bits of four coordinates of a token at a time, in one plane or two.
#pragma once
#include "page_tiles.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// The four bytes of each of kLanes<float> tokens.
#if defined(GOSSAMER_AVX512)
typedef __m512i Codes;
inline Codes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Codes low_half(Codes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Codes high_half(Codes x) { return low_half(_mm512_srli_epi16(x, 4)); }
// Codes of eight bits of both their halves.
inline Codes joined(Codes upper, Codes lower) { return _mm512_or_si512(_mm512_slli_epi16(upper, 4), lower); }
template <int kByte>
inline Lanes<float> floats_of(Codes x) {
  x = _mm512_srli_epi32(x, 8 * kByte);
  return (Lanes<float>)_mm512_cvtepi32_ps(kByte == 3 ? x : _mm512_and_si512(x, _mm512_set1_epi32(255)));
}
#elif defined(GOSSAMER_AVX2)
typedef __m256i Codes;
inline Codes load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Codes low_half(Codes x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Codes high_half(Codes x) { return low_half(_mm256_srli_epi16(x, 4)); }
inline Codes joined(Codes upper, Codes lower) { return _mm256_or_si256(_mm256_slli_epi16(upper, 4), lower); }
template <int kByte>
inline Lanes<float> floats_of(Codes x) {
  x = _mm256_srli_epi32(x, 8 * kByte);
  return (Lanes<float>)_mm256_cvtepi32_ps(kByte == 3 ? x : _mm256_and_si256(x, _mm256_set1_epi32(255)));
}
#else
struct Codes {
  int32_t x[4 * kLanes<float>];
};
inline Codes load_bytes(const uint8_t* p) {
  Codes c;
  for (int i = 0; i < 4 * kLanes<float>; ++i) c.x[i] = p[i];
  return c;
}
inline Codes low_half(Codes c) {
  for (int32_t& x : c.x) x &= 15;
  return c;
}
inline Codes high_half(Codes c) {
  for (int32_t& x : c.x) x >>= 4;
  return c;
}
inline Codes joined(const Codes& upper, Codes lower) {
  for (int i = 0; i < 4 * kLanes<float>; ++i) lower.x[i] |= upper.x[i] << 4;
  return lower;
}
template <int kByte>
inline Lanes<float> floats_of(const Codes& c) {
  Lanes<float> y;
  for (int t = 0; t < kLanes<float>; ++t) y[t] = float(c.x[4 * t + kByte]);
  return y;
}
#endif

// Whole codes of four coordinates: kHalf 0 has 8 j to 8 j + 3, kHalf 1 the four after them. `plane` bytes lie between planes.
template <int kPlanes, int kHalf>
inline Codes load_four(const uint8_t* p, int64_t plane) {
  const auto half = [](Codes x) { return kHalf == 0 ? low_half(x) : high_half(x); };
  if constexpr (kPlanes == 1) return half(load_bytes(p));
  return joined(half(load_bytes(p)), half(load_bytes(p + plane)));
}

// The codes of a tile's keys as floats, [width][page].
template <int kPlanes>
inline void widen_keys(const KeyPlanes& keys, int64_t tile, float* out) {
  const int64_t page = keys.page, plane = keys.plane_bytes();
  const uint8_t* from = keys.plane(tile, 0);
  for (int64_t d = 0; d < keys.width; d += 8)
    for (int64_t t = 0; t < page; t += kLanes<float>, from += 4 * kLanes<float>) {
      float* const to = out + d * page + t;
      const auto store = [&](float* at, const Codes& four) {
        store_lanes(at, floats_of<0>(four));
        store_lanes(at + page, floats_of<1>(four));
        store_lanes(at + 2 * page, floats_of<2>(four));
        store_lanes(at + 3 * page, floats_of<3>(four));
      };
      store(to, load_four<kPlanes, 0>(from, plane));
      store(to + 4 * page, load_four<kPlanes, 1>(from, plane));
    }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
