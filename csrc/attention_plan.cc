// Which keys each query sees, read off a mask once, and blocks of queries that look alike.
//
// The rows of a block follow one another, but for those that see much more than the others of theirs (global tokens): these
// would make the whole block look at what they alone see, and meet in blocks of their own.
#include "attention.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// What is added to scores and is no larger leaves no weight beside any key that is seen.
constexpr float kHidden = -1e30f;

// Of 64 numbers, those that satisfy `see`.
template <class See>
inline uint64_t bits_that(const float* x, const See& see) {
  constexpr int kStep = kLanes<float>;
  uint64_t bits = 0;
  for (int i = 0; i < 64; i += kStep) {
    const Lanes<int32_t> seen = see(load_lanes(x + i));
#if defined(GOSSAMER_AVX512)
    bits |= uint64_t(_mm512_movepi32_mask((__m512i)seen)) << i;
#elif defined(GOSSAMER_AVX2)
    bits |= uint64_t(uint32_t(_mm256_movemask_ps((__m256)seen))) << i;
#else
    for (int j = 0; j < kStep; ++j) bits |= uint64_t(seen[j] != 0) << (i + j);
#endif
  }
  return bits;
}

// Calls f(w, x) with the 64 numbers of each word of a row; after its end there are those that hide.
template <class T, class F>
void for_each_word(const T* row, const MaskRows& from, int64_t cols, T hides, const F& f) {
  const bool near = from.places == nullptr && from.col == 1;
  for (int64_t w = 0; w * 64 < cols; ++w) {
    const int64_t count = least(64, cols - w * 64);
    if (near && count == 64) {
      f(w, row + w * 64);
      continue;
    }
    T some[64];
    for (int64_t j = 0; j < count; ++j) some[j] = row[near ? w * 64 + j : from.place(w * 64 + j) * from.col];
    for (int64_t j = count; j < 64; ++j) some[j] = hides;
    f(w, some);
  }
}

// Fills bits[words] of a row; returns whether something is to be added to its scores. A row all of whose numbers are very
// low, but not minus infinity, sees every key that it is not forbidden.
bool read_row(const SeenMask& mask, const MaskRows& from, int64_t i, int64_t cols, uint64_t* bits) {
  const int64_t row = from.place(i) * from.row;
  if (!mask.is_float) {
    for_each_word<uint8_t>(reinterpret_cast<const uint8_t*>(from.p) + row, from, cols, 0, [&](int64_t w, const uint8_t* x) {
      bits[w] = lane_bits<uint8_t>(load_block<uint8_t>(x), 0xff);
    });
    return false;
  }
  const float* const numbers = reinterpret_cast<const float*>(from.p) + row;
  constexpr float kNothing = -__builtin_inff();
  uint64_t any = 0, added = 0;
  for_each_word<float>(numbers, from, cols, kNothing, [&](int64_t w, const float* x) {
    bits[w] = bits_that(x, [](Lanes<float> v) { return ~(v <= broadcast(kHidden)); });  // NaN is seen
    any |= bits[w];
    added |= bits[w] & nonzero_bits<64>(x);
  });
  if (any == 0)
    for_each_word<float>(numbers, from, cols, kNothing, [&](int64_t w, const float* x) {
      bits[w] = bits_that(x, [](Lanes<float> v) { return v > broadcast(kNothing); });
      added |= bits[w];
    });
  return added != 0;
}

int64_t count_bits(const uint64_t* bits, int64_t words) {
  int64_t n = 0;
  for (int64_t w = 0; w < words; ++w) n += __builtin_popcountll(bits[w]);
  return n;
}

// The number in the middle of up to kPlanRows.
int64_t middle(const int64_t* numbers, int64_t count) {
  int64_t sorted[kPlanRows];
  for (int64_t i = 0; i < count; ++i) {
    int64_t at = i;
    for (; at > 0 && sorted[at - 1] > numbers[i]; --at) sorted[at] = sorted[at - 1];
    sorted[at] = numbers[i];
  }
  return sorted[(count - 1) / 2];
}

// Joins the rows of block g, which are listed; returns rows times keys.
int64_t join(const Plane& plane, int64_t g, const uint8_t* biased) {
  uint64_t* const any = plane.any + g * plane.words;
  uint64_t* const all = plane.all + g * plane.words;
  memset(any, 0, size_t(plane.words) * 8);
  memset(all, 0xff, size_t(plane.words) * 8);
  plane.biased[g] = 0;
  for (int64_t at = plane.ends[g]; at < plane.ends[g + 1]; ++at) {
    const uint64_t* const row = plane.bits + plane.listed[at] * plane.words;
    for (int64_t w = 0; w < plane.words; ++w) {
      any[w] |= row[w];
      all[w] &= row[w];
    }
    plane.biased[g] |= biased[plane.listed[at]];
  }
  return (plane.ends[g + 1] - plane.ends[g]) * count_bits(any, plane.words);
}

// Divides the rows of a plane, whose bits are there, into blocks. What many rows see stands in `biased` only until then.
int64_t divide(const Plane& plane, uint8_t* biased) {
  constexpr uint8_t kHeavy = 2;
  int64_t light = 0, blocks = 0, cost = 0, heavy = 0;
  plane.ends[0] = 0;
  for (int64_t first = 0; first < plane.rows; first += kPlanRows) {
    const int64_t count = least(kPlanRows, plane.rows - first);
    int64_t seen[kPlanRows];
    for (int64_t i = 0; i < count; ++i) seen[i] = count_bits(plane.bits + (first + i) * plane.words, plane.words);
    const int64_t most = 2 * middle(seen, count) + 64;
    for (int64_t i = 0; i < count; ++i) {
      if (seen[i] > most) {
        biased[first + i] |= kHeavy;
        ++heavy;
      } else {
        plane.listed[light++] = first + i;
      }
    }
    if (light == plane.ends[blocks]) continue;
    plane.ends[++blocks] = light;
  }
  for (int64_t i = 0; i < plane.rows && heavy > 0; ++i) {
    if ((biased[i] & kHeavy) == 0) continue;
    plane.listed[light++] = i;
    if (light - plane.ends[blocks] == kPlanRows || --heavy == 0) plane.ends[++blocks] = light;
  }
  if (light > plane.ends[blocks]) plane.ends[++blocks] = light;
  for (int64_t i = 0; i < plane.rows; ++i) biased[i] &= 1;
  *plane.count = blocks;
  for (int64_t g = 0; g < blocks; ++g) cost += join(plane, g, biased);
  return cost;
}

bool places_are_right(const SeenMask& mask, const Texts& texts) {
  const uint64_t* const places = reinterpret_cast<const uint64_t*>(mask.places);
  return places == nullptr || all_below(places, texts.rows, mask.size);
}

}  // namespace

int64_t attention_plan_size(const Texts& texts, const SeenMask& mask) {
  if (!texts_are_right(texts)) return -1;
  int64_t words = 1, rows = 0;
  for (int64_t t = 0; t < mask.text_planes; ++t) {
    words += mask.head_planes * (1 + Plane::size(rows_of(texts, t), keys_of(texts, t)));
    rows += mask.head_planes * rows_of(texts, t);
  }
  return words + ceil_div(rows, 8);
}

int64_t attention_plan(const Texts& texts, const SeenMask& mask, int64_t* plan, int threads) {
  if (!texts_are_right(texts) || !places_are_right(mask, texts)) return -1;
  const Plan to(plan, texts, mask);
  const int64_t planes = to.planes();
  int64_t at = planes + 1, rows = 0;
  for (int64_t i = 0; i < planes; ++i) {
    const int64_t t = i / mask.head_planes;
    plan[i] = at;
    at += Plane::size(rows_of(texts, t), keys_of(texts, t));
    rows += rows_of(texts, t);
  }
  plan[planes] = at;
  uint8_t* const biased = reinterpret_cast<uint8_t*>(plan + at);
  const int64_t bytes = rows * to.plane(0).cols * (mask.is_float ? 4 : 1);
  const int64_t parts = useful_threads(bytes, threads);
  parallel(parts, threads, [&](int64_t part) {
    int64_t before = 0;
    const int64_t begin = part_begin(rows, part, parts), end = part_begin(rows, part + 1, parts);
    for (int64_t i = 0; i < planes && before < end; ++i) {
      const Plane plane = to.plane(i);
      const MaskRows from(mask, texts, i / mask.head_planes, i % mask.head_planes);
      for (int64_t r = begin > before ? begin - before : 0; r < least(plane.rows, end - before); ++r)
        biased[before + r] = read_row(mask, from, r, plane.cols, plane.bits + r * plane.words);
      before += plane.rows;
    }
  });
  int64_t cost = 0, before = 0;
  for (int64_t i = 0; i < planes; ++i) {
    const Plane plane = to.plane(i);
    cost += divide(plane, biased + before);
    before += plane.rows;
  }
  return cost;
}

}  // namespace gossamer::GOSSAMER_ISA
