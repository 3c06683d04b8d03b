// The k highest or lowest of n floats, exactly, without sorting: a radix search for the k-th, then one comparison each.
//
// A float's bits become a 32-bit rank whose unsigned order is the order of selection. Three passes histogram 11, 11 and
// 10 bits of the ranks that share the prefix found so far; they end with the rank of the k-th element and how many
// equals of it belong. The last pass writes the mask. Every pass reads the scores once, so time is linear in n.
#include "kernels.h"
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kDigits = 3, kShift[kDigits] = {21, 10, 0}, kBits[kDigits] = {11, 11, 10};
constexpr int kBuckets = 1 << 11;
constexpr int kCopies = 4;  // histograms filled in turn: equal neighbours must not wait for each other's increment
constexpr int64_t kPartLimit = int64_t(1) << 31;  // scores a part may hold so that its 32-bit counts cannot overflow
constexpr uint32_t kSign = 0x80000000u, kInfinity = 0x7f800000u;

struct Histogram {
  uint32_t counts[kCopies][kBuckets];
  uint32_t nans;
};

typedef uint32_t Ranks __attribute__((vector_size(kWidth)));
typedef int32_t SignedRanks __attribute__((vector_size(kWidth)));
constexpr int kLanes = kWidth / 4;

int64_t part_count(int64_t n, int threads) {
  const int64_t parts = useful_threads(n * 4, threads), least_parts = ceil_div(n, kPartLimit);
  return parts > least_parts ? parts : least_parts;
}

// Sign and magnitude to two's complement (so -0.0 and 0.0 are one number), then to unsigned order of selection:
// order = 0x7fffffff puts the largest first, 0x80000000 the smallest.
inline Ranks rank(Ranks bits, uint32_t order) {
  const Ranks sign = (Ranks)((SignedRanks)bits >> 31);
  return (((bits & ~kSign) ^ sign) - sign) ^ order;
}

// Calls f(the bits of 64 scores, which of the 64 are allowed, the index of the first) along a range; the lanes past a
// ragged end are not allowed.
template <class F>
inline void for_blocks(const float* scores, const uint8_t* allowed, int64_t begin, int64_t end, F f) {
  for (int64_t i = begin; i < end; i += 64) {
    const int64_t count = least(64, end - i);
    const uint64_t inside = count == 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
    Block<uint32_t> bits;
    uint64_t wanted = inside;
    if (count == 64) {
      bits = load_block(reinterpret_cast<const uint32_t*>(scores + i));
      if (allowed) wanted = lane_bits(load_block(allowed + i), uint8_t(0xff));
    } else {
      memset(&bits, 0, sizeof(bits));
      memcpy(&bits, scores + i, size_t(count) * 4);
      for (int64_t j = 0; allowed && j < count; ++j)
        if (!allowed[i + j]) wanted &= ~(uint64_t(1) << j);
    }
    f(bits, wanted, i);
  }
}

template <class Compare>
inline uint64_t compare(const Block<uint32_t>& block, Compare is) {
  Block<uint32_t> answer;
  for (int v = 0; v < kVecs<uint32_t>; ++v) answer.v[v] = (Vec)is((Ranks)block.v[v]);
  return lane_bits(answer, ~uint32_t(0));
}

// Counts digit `d` of the allowed ranks of one part whose higher digits are those of `prefix`.
void count_digit(Histogram* h, const float* scores, const uint8_t* allowed, int64_t begin, int64_t end,
                 uint32_t order, int d, uint32_t prefix) {
  memset(h, 0, sizeof(*h));
  const int shift = kShift[d], above = shift + kBits[d];
  const uint32_t digit = (1u << kBits[d]) - 1;
  for_blocks(scores, allowed, begin, end, [=](const Block<uint32_t>& bits, uint64_t wanted, int64_t) {
    uint32_t digits[64];
    for (int v = 0; v < kVecs<uint32_t>; ++v) {
      const Ranks r = rank((Ranks)bits.v[v], order) >> shift & digit;
      store(digits + v * kLanes, (Vec)r);
    }
    if (d == 0) {
      h->nans |= (compare(bits, [](Ranks b) { return (b & ~kSign) > kInfinity; }) & wanted) != 0;
    } else {
      wanted &= compare(bits, [=](Ranks b) { return rank(b, order) >> above == prefix >> above; });
    }
    if (wanted == ~uint64_t(0)) {
      for (int i = 0; i < 64; i += kCopies)
        for (int c = 0; c < kCopies; ++c) ++h->counts[c][digits[i + c]];
    } else {
      for (int c = 0; wanted != 0; wanted &= wanted - 1, c = (c + 1) % kCopies)
        ++h->counts[c][digits[__builtin_ctzll(wanted)]];
    }
  });
  for (int b = 0; b < kBuckets; ++b)
    for (int c = 1; c < kCopies; ++c) h->counts[0][b] += h->counts[c][b];
}

// 64 bits to 64 bytes of 0 or 1.
inline void store_bools(uint8_t* to, uint64_t bits) {
  for (int i = 0; i < 8; ++i) {
    // Eight copies of a byte, one bit kept of each, that bit moved to the bottom.
    const uint64_t spread = (bits >> (8 * i) & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
    const uint64_t bools = (spread + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
    memcpy(to + 8 * i, &bools, 8);
  }
}

}  // namespace

int64_t select_workspace(int64_t n, int threads) { return part_count(n, threads) * int64_t(sizeof(Histogram)); }

int64_t select(const float* scores, const uint8_t* allowed, int64_t n, int64_t k, bool largest, uint8_t* mask,
               void* workspace, int threads) {
  const int64_t parts = part_count(n, threads);
  const uint32_t order = largest ? ~kSign : kSign;
  Histogram* const histograms = static_cast<Histogram*>(workspace);
  uint32_t kth = 0;
  int64_t total = 0, before = 0;  // allowed scores; those that rank before every candidate for the k-th
  for (int d = 0; d < kDigits; ++d) {
    parallel(parts, threads, [=](int64_t p) {
      count_digit(histograms + p, scores, allowed, part_begin(n, p, parts), part_begin(n, p + 1, parts), order, d, kth);
    });
    if (d == 0) {
      for (int64_t p = 0; p < parts; ++p) {
        if (histograms[p].nans) return -1;
        for (int b = 0; b < kBuckets; ++b) total += histograms[p].counts[0][b];
      }
      k = least(k, total);
      if (k == 0) {
        memset(mask, 0, size_t(n));
        return 0;
      }
    }
    for (uint32_t b = 0;; ++b) {
      int64_t here = 0;
      for (int64_t p = 0; p < parts; ++p) here += histograms[p].counts[0][b];
      if (before + here >= k) {
        kth |= b << kShift[d];
        break;
      }
      before += here;
    }
  }

  // A part's share of the equals of the k-th: what the parts before it leave of k - before.
  const int64_t equals = k - before;
  parallel(parts, threads, [=](int64_t p) {
    int64_t mine = equals;
    for (int64_t q = 0; q < p; ++q) mine -= histograms[q].counts[0][kth & ((1u << kBits[2]) - 1)];
    const int64_t end = part_begin(n, p + 1, parts);
    for_blocks(scores, allowed, part_begin(n, p, parts), end,
               [&, kth](const Block<uint32_t>& bits, uint64_t wanted, int64_t i) {
      uint64_t taken = wanted & compare(bits, [=](Ranks b) { return rank(b, order) < kth; });
      uint64_t equal = wanted & compare(bits, [=](Ranks b) { return rank(b, order) == kth; });
      for (; equal != 0 && mine > 0; equal &= equal - 1, --mine) taken |= equal & -equal;
      if (end - i >= 64) {
        store_bools(mask + i, taken);
      } else {
        for (int64_t j = 0; j < end - i; ++j) mask[i + j] = taken >> j & 1;
      }
    });
  });
  return k;
}

}  // namespace gossamer::GOSSAMER_ISA
