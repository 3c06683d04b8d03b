// The parts of attention over pages: which rows look at which pages.
#pragma once
#include "page_products.h"
#include "slots.h"
#include "softmax_rows.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kMostRows = 128;   // queries that meet a page together ...
constexpr int64_t kMostPaired = 256;  // ... and where bfloat16 numbers are multiplied as such, which takes less time
constexpr int64_t kFewRows = 16;     // fewer are divided along their pages too
constexpr int64_t kChunkPages = 16;  // pages whose softmax is one sum: the same however rows and pages are divided

#if defined(GOSSAMER_AVX512_BF16)
constexpr bool kMultipliesPairs = true;
#else
constexpr bool kMultipliesPairs = false;
#endif
inline bool in_pairs(const PageTiles& pages) { return kMultipliesPairs && pages.stored() == Stored::kBFloat16; }
inline int64_t most_rows(const PageTiles& pages) { return in_pairs(pages) ? kMostPaired : kMostRows; }

// Queries that look at the same pages: those of `tokens` consecutive tokens of a request, and of `heads` heads of each.
struct QueryBlock {
  int64_t request, token, tokens, pool_head, head, heads;
  int64_t first_place;      // in the request, of the first token
  int64_t list, list_end;   // entries of the list of pages; without one: list is -1
  int64_t rows() const { return tokens * heads; }
  int64_t last_place() const { return first_place + tokens - 1; }
};

// The keys that a token sees: at most its own place, and of those the first `sink` and the last `window`.
struct Sight {
  int64_t page, window, sink;

  bool any(const QueryBlock& b, int64_t p) const {
    const int64_t begin = p * page;
    return begin <= b.last_place() && (begin < sink || begin + page - 1 > b.first_place - window);
  }
  bool all(const QueryBlock& b, int64_t p) const {
    const int64_t end = (p + 1) * page - 1;
    return end <= b.first_place && (end < sink || p * page > b.last_place() - window);
  }
  // Makes the scores of the keys that the token at `place` does not see minus infinity.
  void hide(float* scores, int64_t p, int64_t place) const {
    const float hidden = -__builtin_inff();
    const int64_t begin = p * page, old = place - window + 1 - begin;
    int64_t t = sink > begin ? sink - begin : 0;
    for (; t < least(old, page); ++t) scores[t] = hidden;
    for (t = place + 1 - begin > 0 ? place + 1 - begin : 0; t < page; ++t) scores[t] = hidden;
  }
};

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
