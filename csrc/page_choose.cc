// The pages that a query reads, of those that it has scores for: a radix search for the last score that is taken, then one
// pass that names the pages in order.
#include "kernels.h"
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr uint32_t kAlways = 0xffffffffu;

// Scores [members][cols] whose highest counts, as integers of the same order. -0.0 is 0.0; NaN is as minus infinity, and
// infinity as the largest number, for nothing comes before what is always taken.
struct PageRanks {
  const float* scores;
  int64_t members, cols, last;

  uint32_t operator()(int64_t p) const {
    if (p == 0 || p == last) return kAlways;
    float best = -__builtin_inff();
    for (int64_t g = 0; g < members; ++g) best = scores[g * cols + p] > best ? scores[g * cols + p] : best;
    best = best > __FLT_MAX__ ? __FLT_MAX__ : best + 0.0f;
    uint32_t bits;
    memcpy(&bits, &best, 4);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }
};

// The `count` highest of `used` pages, ascending.
void choose(const PageRanks& rank, int64_t used, int64_t count, int32_t* chosen) {
  uint32_t least_rank = 0;
  int64_t room = count;  // for those that share the digits found so far
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t counts[256] = {};
    for (int64_t p = 0; p < used; ++p) {
      const uint32_t r = rank(p);
      if (shift == 24 || r >> (shift + 8) == least_rank >> (shift + 8)) ++counts[r >> shift & 255];
    }
    int64_t digit = 255;
    for (; counts[digit] < room; --digit) room -= counts[digit];
    least_rank |= uint32_t(digit) << shift;
  }
  for (int64_t p = 0; p < used; ++p) {
    const uint32_t r = rank(p);
    if (r < least_rank || (r == least_rank && room == 0)) continue;
    room -= r == least_rank;
    *chosen++ = int32_t(p);
  }
}

}  // namespace

bool page_choose(const float* scores, int64_t query_heads, int64_t group, const int64_t* first_heads, int64_t heads,
                 bool together, const int64_t* lengths, int64_t requests, int64_t cols, int64_t page, int64_t count,
                 int32_t* chosen, int threads) {
  for (int64_t h = 0; h < heads; ++h)
    if (first_heads[h] < 0 || first_heads[h] > query_heads - group) return false;
  for (int64_t r = 0; r < requests; ++r)
    if (lengths[r] < 0 || lengths[r] > cols * page || ceil_div(lengths[r], page) < count) return false;
  const int64_t members = together ? group : 1, of_head = group / members, rows = requests * heads * of_head;
  threads = useful_threads(rows * cols * members * 16, threads);
  parallel(threads, threads, [&](int64_t part) {
    for (int64_t row = part_begin(rows, part, threads); row < part_begin(rows, part + 1, threads); ++row) {
      const int64_t r = row / (heads * of_head), h = row / of_head % heads;
      const int64_t used = ceil_div(lengths[r], page), head = first_heads[h] + row % of_head;
      choose({scores + (r * query_heads + head) * cols, members, cols, used - 1}, used, count, chosen + row * count);
    }
  });
  return true;
}

}  // namespace gossamer::GOSSAMER_ISA
