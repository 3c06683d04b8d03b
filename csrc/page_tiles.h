// Keys and values as they lie in pages, and as the floats that products read.
#pragma once
#include "kernels.h"
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

enum class Stored : int64_t { kFloat = 0, kBFloat16 = 2, kBytes = 3, kHalf = 4, kNibbles = 5 };

inline bool has_scales(Stored s) { return s == Stored::kBytes || s == Stored::kNibbles; }
// Largest code of what is stored as codes.
inline float codes(Stored s) { return s == Stored::kBytes ? 255.0f : 15.0f; }
inline int64_t bytes_of(Stored s, int64_t n) {
  return s == Stored::kFloat ? 4 * n : s == Stored::kBytes ? n : s == Stored::kNibbles ? n / 2 : 2 * n;
}

inline float widen_half(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  // Its exponent is 112 too small as that of a float; denormals follow by a subtraction that normalizes them.
  uint32_t wide = magnitude << 13;
  float value;
  if (magnitude >= 0x7c00) wide += 224u << 23;
  else if (magnitude >= 0x0400) wide += 112u << 23;
  if (magnitude >= 0x0400) {
    wide |= sign;
    memcpy(&value, &wide, 4);
    return value;
  }
  value = float(magnitude) * 5.96046448e-8f;  // 2^-24
  return sign ? -value : value;
}

inline Lanes<float> load_halves(const uint16_t* p) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(GOSSAMER_AVX2)
  return (Lanes<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return Lanes<float>{widen_half(p[0]), widen_half(p[1]), widen_half(p[2]), widen_half(p[3])};
#endif
}

// Four bits, or all eight, of kLanes<float> bytes.
template <int kShift, int kMask>
inline Lanes<float> load_codes(const uint8_t* p) {
#if defined(GOSSAMER_AVX512)
  __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  if (kMask != 255) v = _mm512_and_si512(_mm512_srli_epi32(v, kShift), _mm512_set1_epi32(kMask));
  return (Lanes<float>)_mm512_cvtepi32_ps(v);
#elif defined(GOSSAMER_AVX2)
  __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  if (kMask != 255) v = _mm256_and_si256(_mm256_srli_epi32(v, kShift), _mm256_set1_epi32(kMask));
  return (Lanes<float>)_mm256_cvtepi32_ps(v);
#else
  Lanes<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = float(p[i] >> kShift & kMask);
  return v;
#endif
}

// Calls f(place, vector of floats) for n elements in vectors, n a multiple of two of them; codes stay codes. Byte i of
// nibbles has element i in its lower half, and element n / 2 + i in its upper.
template <class F>
inline void for_each_vector(const void* row, int64_t n, Stored stored, const F& f) {
  constexpr int64_t kStep = kLanes<float>;
  const char* const p = static_cast<const char*>(row);
  switch (stored) {
    case Stored::kFloat:
      for (int64_t i = 0; i < n; i += kStep) f(i, load_lanes(reinterpret_cast<const float*>(p) + i));
      break;
    case Stored::kBFloat16:
      for (int64_t i = 0; i < n; i += kStep) f(i, load_weights(reinterpret_cast<const BFloat16*>(p) + i));
      break;
    case Stored::kHalf:
      for (int64_t i = 0; i < n; i += kStep) f(i, load_halves(reinterpret_cast<const uint16_t*>(p) + i));
      break;
    case Stored::kBytes:
      for (int64_t i = 0; i < n; i += kStep) f(i, load_codes<0, 255>(reinterpret_cast<const uint8_t*>(p) + i));
      break;
    case Stored::kNibbles:
      for (int64_t i = 0; i < n / 2; i += kStep) {
        f(i, load_codes<0, 15>(reinterpret_cast<const uint8_t*>(p) + i));
        f(n / 2 + i, load_codes<4, 15>(reinterpret_cast<const uint8_t*>(p) + i));
      }
      break;
  }
}

// The tile of one head in one page: keys[width][page] if they are no codes, values[page][width].
struct PageTiles : Pages {
  explicit PageTiles(const Pages& pages) : Pages(pages) {}

  Stored stored() const { return Stored(storage); }
  int64_t tile_bytes() const { return bytes_of(stored(), width * page); }
  char* keys_of(int64_t tile) const { return static_cast<char*>(keys) + tile * tile_bytes(); }
  char* values_of(int64_t tile) const { return static_cast<char*>(values) + tile * tile_bytes(); }
  // Of each token of a tile: its scale; `page` further, its zero.
  BFloat16* scales_of(void* scales, int64_t tile) const { return static_cast<BFloat16*>(scales) + tile * 2 * page; }
};

// The keys of tiles as codes: those that attention reads, or a copy in four bits.
struct KeyPlanes : KeyCodes {
  int64_t width, page;

  KeyPlanes(const KeyCodes& codes, const Pages& pages) : KeyCodes(codes), width(pages.width), page(pages.page) {}
  explicit KeyPlanes(const Pages& p)
      : KeyPlanes({p.keys, p.key_scales, Stored(p.storage) == Stored::kBytes ? 2 : 1}, p) {}

  float most() const { return planes == 2 ? 255.0f : 15.0f; }
  int64_t plane_bytes() const { return width * page / 2; }
  uint8_t* plane(int64_t tile, int64_t i) const {
    return static_cast<uint8_t*>(codes) + (tile * planes + i) * plane_bytes();
  }
  // Of each token of a tile: its scale; `page` further, its zero.
  BFloat16* scales_of(int64_t tile) const { return static_cast<BFloat16*>(scales) + tile * 2 * page; }
  // Where in a plane the bits of coordinate d of token t are, with 4 further coordinates in the upper half of the byte.
  int64_t byte_of(int64_t d, int64_t t) const { return (d / 8 * page + t) * 4 + d % 4; }
};

// Whether each head of the pages has `group` heads of a model, and no two have one in common.
inline bool are_heads(const int64_t* first, int64_t count, int64_t of, int64_t group) {
  for (int64_t h = 0; h < count; ++h) {
    if (first[h] < 0 || first[h] > of - group) return false;
    if (h == 0 || first[h] >= first[h - 1] + group) continue;
    for (int64_t i = 0; i < count; ++i)
      if (i != h && first[h] < first[i] + group && first[i] < first[h] + group) return false;
  }
  return true;
}

// Whose tokens, and which pages they have.
struct PagedRequests : Requests {
  explicit PagedRequests(const Requests& requests) : Requests(requests) {}

  int64_t tokens_of(int64_t r) const { return offsets[r + 1] - offsets[r]; }
  // The place in its request of the first token of r that is new.
  int64_t first_place(int64_t r) const { return lengths[r] - tokens_of(r); }
  int64_t page_of(int64_t r, int64_t page) const { return table[r * table_cols + page]; }

  // Whether every page that a request may read exists.
  bool are_right(const Pages& pages) const {
    if (offsets[0] != 0 || offsets[count] != tokens) return false;
    for (int64_t r = 0; r < count; ++r) {
      if (offsets[r + 1] < offsets[r] || offsets[r + 1] > tokens || lengths[r] < tokens_of(r)) return false;
      if (lengths[r] > table_cols * pages.page) return false;
    }
    return true;
  }
};

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
