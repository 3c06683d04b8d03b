// New keys and values go to the pages of their requests, transposed or as they are, narrowed as they are stored.
//
// Summaries are made from what the page then holds, of the whole stretch: so they are those of the keys that attention
// reads, and nothing is left in them of who had the page before.
#include "page_tiles.h"
#include "slots.h"
#include "transpose_lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

enum class Round { kNearest, kUp, kDown };

BFloat16 to_bfloat16(float x, Round how) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return {uint16_t(bits >> 16 | 0x40)};
  const bool negative = bits >> 31, exact = (bits & 0xffff) == 0;
  if (how == Round::kNearest) bits += 0x7fff + (bits >> 16 & 1);
  else if (!exact && (how == Round::kUp) != negative) bits += 0x10000;  // away from zero
  return {uint16_t(bits >> 16)};
}

uint16_t to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // what rounds to 65536 and more
  if (magnitude < 0x38800000) {                                  // denormal: in units of 2^-24, to nearest even
    float value;
    memcpy(&value, &magnitude, 4);
    return uint16_t(sign | uint32_t(__builtin_rintf(value * 16777216.0f)));
  }
  return uint16_t(sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

// The scale and zero of codes for n numbers: every number is within half a scale of a code's value. NaN makes all NaN.
struct Coding {
  float scale, zero;
  Coding(const float* x, int64_t n, float most) {
    float low = x[0], high = x[0], nothing = 0;
    for (int64_t i = 0; i < n; ++i) {
      low = x[i] < low ? x[i] : low;
      high = x[i] > high ? x[i] : high;
      nothing += x[i] - x[i];
    }
    low += nothing;
    zero = widen(to_bfloat16(low, Round::kDown));
    scale = widen(to_bfloat16((high - zero) / most, Round::kUp));
  }
  uint8_t code(float x, float most) const {
    const float c = scale > 0 ? __builtin_rintf((x - zero) / scale) : 0;
    return uint8_t(c > most ? most : c > 0 ? c : 0);
  }
};

// Numbers of a token, element i at `at(i)` of those of `p`.
template <class At>
void store_narrow(char* p, const float* x, int64_t n, Stored stored, const At& at) {
  for (int64_t i = 0; i < n; ++i) {
    if (stored == Stored::kFloat) reinterpret_cast<float*>(p)[at(i)] = x[i];
    else if (stored == Stored::kBFloat16) reinterpret_cast<BFloat16*>(p)[at(i)] = to_bfloat16(x[i], Round::kNearest);
    else reinterpret_cast<uint16_t*>(p)[at(i)] = to_half(x[i]);
  }
}

void store_scale(BFloat16* at, int64_t page, const Coding& coding) {
  at[0] = to_bfloat16(coding.scale, Round::kNearest);
  at[page] = to_bfloat16(coding.zero, Round::kNearest);
}

struct Append {
  const float *keys, *values;
  int64_t key_heads;
  const int64_t* sources;
  PageTiles pages;
  PagedRequests requests;
  Summaries extremes, moments;
  KeyPlanes sketches;

  // The new tokens of a request that page p gets, for one head.
  void run(int64_t r, int64_t p, int64_t h) const {
    const int64_t first = requests.first_place(r), page = pages.page, width = pages.width;
    const int64_t begin = first > p * page ? first : p * page, end = least(requests.lengths[r], (p + 1) * page);
    const int64_t tile = requests.page_of(r, p) * pages.heads + h, step = key_heads * width;
    const int64_t at = ((requests.offsets[r] + begin - first) * key_heads + sources[h]) * width;
    if (pages.stored() == Stored::kFloat)
      transpose(keys + at, step, reinterpret_cast<float*>(pages.keys_of(tile)) + begin % page, page, end - begin, width);
    for (int64_t i = 0; i < end - begin; ++i) {
      token(tile, begin % page + i, keys + at + i * step, values + at + i * step);
      if (sketches.codes != nullptr) store_key(sketches, tile, begin % page + i, keys + at + i * step);
    }
    summarize(extremes, tile, begin % page, begin % page + end - begin);
    summarize(moments, tile, begin % page, begin % page + end - begin);
  }

  void token(int64_t tile, int64_t t, const float* key, const float* value) const {
    const int64_t page = pages.page, width = pages.width;
    const auto down = [=](int64_t d) { return d * page + t; };
    const auto along = [=](int64_t d) { return t * width + d; };
    const Stored stored = pages.stored();
    if (!has_scales(stored)) {
      if (stored != Stored::kFloat) store_narrow(pages.keys_of(tile), key, width, stored, down);
      store_narrow(pages.values_of(tile), value, width, stored, along);
      return;
    }
    store_key(KeyPlanes(pages), tile, t, key);
    const float most = codes(stored);
    const Coding coding(value, width, most);
    store_scale(pages.scales_of(pages.value_scales, tile) + t, page, coding);
    if (stored == Stored::kBytes) {
      uint8_t* const to = reinterpret_cast<uint8_t*>(pages.values_of(tile)) + t * width;
      for (int64_t d = 0; d < width; ++d) to[d] = coding.code(value[d], most);
      return;
    }
    uint8_t* const to = reinterpret_cast<uint8_t*>(pages.values_of(tile)) + t * width / 2;
    for (int64_t d = 0; d < width / 2; ++d)
      to[d] = uint8_t(coding.code(value[d], most) | coding.code(value[width / 2 + d], most) << 4);
  }

  void store_key(const KeyPlanes& to, int64_t tile, int64_t t, const float* key) const {
    const Coding coding(key, to.width, to.most());
    store_scale(to.scales_of(tile) + t, to.page, coding);
    uint8_t* const bytes = to.plane(tile, 0);
    for (int64_t j = 0; j < to.width; j += 8)
      for (int64_t d = j; d < j + 4; ++d) {
        const int low = coding.code(key[d], to.most()), high = coding.code(key[d + 4], to.most());
        uint8_t* const at = bytes + to.byte_of(d, t);
        at[0] = uint8_t(to.planes == 1 ? low | high << 4 : low >> 4 | (high & 0xf0));
        if (to.planes == 2) at[to.plane_bytes()] = uint8_t((low & 0x0f) | high << 4);
      }
  }

  // The number that attention reads for coordinate d of the key of token t.
  float key_at(int64_t tile, int64_t d, int64_t t) const {
    const char* const keys = pages.keys_of(tile);
    const int64_t page = pages.page, i = d * page + t;
    switch (pages.stored()) {
      case Stored::kFloat: return reinterpret_cast<const float*>(keys)[i];
      case Stored::kBFloat16: return widen(reinterpret_cast<const BFloat16*>(keys)[i]);
      case Stored::kHalf: return widen_half(reinterpret_cast<const uint16_t*>(keys)[i]);
      default: break;
    }
    const KeyPlanes coded(pages);
    const int64_t at = coded.byte_of(d, t);
    int code = 0;
    for (int64_t j = 0; j < coded.planes; ++j) code = code << 4 | (coded.plane(tile, j)[at] >> d % 8 / 4 * 4 & 15);
    const BFloat16* const scale = coded.scales_of(tile) + t;
    // Fused, as the vectors of attention are, where the machine has that.
    return fma(broadcast(float(code)), broadcast(widen(scale[0])), broadcast(widen(scale[page])))[0];
  }

  // Of the stretches that have some of the tokens [begin, end) of a page; `end` is the last that it has.
  void summarize(const Summaries& s, int64_t tile, int64_t begin, int64_t end) const {
    if (s.address == nullptr) return;
    const int64_t width = pages.width, stretches = pages.page / s.stretch;
    for (int64_t j = begin / s.stretch; j * s.stretch < end; ++j) {
      const int64_t from = j * s.stretch, to = least(end, from + s.stretch);
      BFloat16* const out = static_cast<BFloat16*>(s.address) + (tile * stretches + j) * 2 * width;
      for (int64_t d = 0; d < width; ++d) {
        float low = key_at(tile, d, from), high = low, sum = 0, squares = 0;
        for (int64_t t = from; t < to; ++t) {
          const float x = key_at(tile, d, t);
          low = x < low ? x : low;
          high = x > high ? x : high;
          sum += x;
        }
        const float mean = sum / float(to - from);
        for (int64_t t = from; t < to; ++t) {
          const float x = key_at(tile, d, t) - mean;
          squares += x * x;
        }
        const bool is_extremes = &s == &extremes;
        out[d] = is_extremes ? to_bfloat16(high, Round::kUp) : to_bfloat16(mean, Round::kNearest);
        out[width + d] = is_extremes ? to_bfloat16(low, Round::kDown)
                                     : to_bfloat16(squares / float(to - from), Round::kNearest);
      }
    }
  }

  // Whether all heads and pages that are written exist.
  bool is_right() const {
    if (!requests.are_right(pages)) return false;
    for (int64_t h = 0; h < pages.heads; ++h)
      if (sources[h] < 0 || sources[h] >= key_heads) return false;
    for (int64_t r = 0; r < requests.count; ++r)
      for (int64_t p = requests.first_place(r) / pages.page; p * pages.page < requests.lengths[r]; ++p)
        if (requests.tokens_of(r) > 0 && uint64_t(requests.page_of(r, p)) >= uint64_t(pages.count)) return false;
    return true;
  }
};

}  // namespace

bool page_append(const float* keys, const float* values, int64_t key_heads, const int64_t* sources, const Pages& pages,
                 const Requests& requests, const Summaries& extremes, const Summaries& moments, const KeyCodes& sketches,
                 int threads) {
  const Append a = {keys, values, key_heads, sources, PageTiles(pages), PagedRequests(requests), extremes, moments,
                    KeyPlanes(sketches, pages)};
  if (!a.is_right()) return false;
  threads = useful_threads(requests.tokens * pages.heads * pages.width * 8, threads);
  // Each thread takes a share of all (page, head) there are; two requests that wrote one page would be a broken table.
  int64_t all = 0;
  for (int64_t r = 0; r < requests.count; ++r)
    if (a.requests.tokens_of(r) > 0)
      all += ((requests.lengths[r] - 1) / pages.page - a.requests.first_place(r) / pages.page + 1) * pages.heads;
  parallel(threads, threads, [&](int64_t part) {
    const int64_t from = part_begin(all, part, threads), to = part_begin(all, part + 1, threads);
    int64_t at = 0;
    for (int64_t r = 0; r < requests.count && at < to; ++r) {
      if (a.requests.tokens_of(r) == 0) continue;
      const int64_t first = a.requests.first_place(r) / pages.page, last = (requests.lengths[r] - 1) / pages.page;
      const int64_t count = (last - first + 1) * pages.heads;
      for (int64_t i = from > at ? from - at : 0; i < least(count, to - at); ++i)
        a.run(r, first + i / pages.heads, i % pages.heads);
      at += count;
    }
  });
  return true;
}

}  // namespace gossamer::GOSSAMER_ISA
