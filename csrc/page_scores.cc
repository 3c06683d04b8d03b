// How much each page of a request may matter to its query: the product of a form of the query with the page's summaries.
//
// Both rankings are linear in what is kept of a page. No key of a stretch scores more than max(q, 0) . largest +
// min(q, 0) . least; and the logarithm of the mean of exp(q . k) is about q . mean + q^2 . variance / 2.
#include "page_tiles.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kTogether = 4;  // query heads that meet a summary together

// The largest product of the stretches of a tile with each of `count` forms.
void score_tile(const BFloat16* summaries, int64_t stretches, const float* form, int64_t n, int64_t count, float* best) {
  for (int64_t g = 0; g < count; ++g) best[g] = -__builtin_inff();
  for (int64_t j = 0; j < stretches; ++j, summaries += n) {
    Lanes<float> sum[kTogether] = {};
    for (int64_t d = 0; d < n; d += kLanes<float>) {
      const Lanes<float> x = load_weights(summaries + d);
#pragma GCC unroll 4
      for (int64_t g = 0; g < kTogether; ++g) sum[g] = fma(load_lanes(form + least(g, count - 1) * n + d), x, sum[g]);
    }
    for (int64_t g = 0; g < count; ++g) {
      const float s = sum_lanes<float>(sum[g]);
      best[g] = s < best[g] ? best[g] : s;
    }
  }
}

}  // namespace

bool page_scores(const float* form, int64_t query_heads, int64_t group, const int64_t* first_heads, const Pages& pages,
                 const Requests& requests, const Summaries& summaries, float* scores, int threads) {
  const PageTiles tiles(pages);
  const PagedRequests all(requests);
  if (!all.are_right(pages) || !are_heads(first_heads, pages.heads, query_heads, group)) return false;
  const int64_t n = 2 * pages.width, stretches = pages.page / summaries.stretch, cols = requests.table_cols;
  for (int64_t i = 0; i < requests.count * query_heads * cols; ++i) scores[i] = -__builtin_inff();
  threads = useful_threads(requests.count * cols * pages.heads * stretches * n * 2, threads);
  Verdict verdict;
  parallel(threads, threads, [&](int64_t part) {
    for (int64_t r = 0; r < requests.count; ++r) {
      const int64_t used = ceil_div(requests.lengths[r], pages.page);
      for (int64_t p = part_begin(used, part, threads); p < part_begin(used, part + 1, threads); ++p) {
        const int64_t place = all.page_of(r, p);
        if (place < 0 || place >= pages.count) return void(verdict.add(false));
        // The last page may be filled in part: its later stretches hold nothing.
        const int64_t filled = least(stretches, ceil_div(requests.lengths[r] - p * pages.page, summaries.stretch));
        for (int64_t h = 0; h < pages.heads; ++h) {
          const BFloat16* const from =
              static_cast<const BFloat16*>(summaries.address) + (place * pages.heads + h) * stretches * n;
          for (int64_t g = 0; g < group; g += kTogether) {
            float best[kTogether];
            const int64_t head = first_heads[h] + g, count = least(kTogether, group - g);
            score_tile(from, filled, form + (r * query_heads + head) * n, n, count, best);
            for (int64_t i = 0; i < count; ++i) scores[(r * query_heads + head + i) * cols + p] = best[i];
          }
        }
      }
    }
  });
  return verdict.right();
}

}  // namespace gossamer::GOSSAMER_ISA
