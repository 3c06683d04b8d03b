// Words of the products of a few vectors with a matrix of weights of which most rows are not read.
//
// Up to eight vectors share one reading of the weights: a row that any of them needs is read once, and each takes it only
// if it needs it. `who` says which, a bit a vector.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kBatch = 8;  // vectors that share a reading of the weights

// Whether to multiply weights once widened with all of `batch` vectors, of which `pairs` of rows * batch use them, rather
// than with each that does: by the instructions for a word of them.
template <class W>
inline bool shares(int64_t pairs, int64_t rows, int64_t batch) {
  return batch > 1 && pairs * (sizeof(W) == 2 ? 4 : 3) > rows * (batch + 2);
}

// Calls run.template operator()<batch>() for 2 <= batch <= kBatch.
template <int kFrom = 2, class Run>
inline void with_batch(int64_t batch, const Run& run) {
  if constexpr (kFrom < kBatch) {
    if (batch > kFrom) return with_batch<kFrom + 1>(batch, run);
  }
  run.template operator()<kFrom>();
}

// Calls run(w) with the weights as what they are.
template <class Run>
inline void with_weights(const void* w, int type, const Run& run) {
  if (type == 2) run(static_cast<const Float16*>(w));
  else if (type == 1) run(static_cast<const BFloat16*>(w));
  else run(static_cast<const float*>(w));
}

// The places, ascending, where one of `batch` <= kBatch rows of x[batch, n] is not within `threshold` of zero, and which
// rows these are. Compares bits: those of a NaN are above those of every number. Returns how many; adds to *pairs how
// many elements of x that is.
int64_t find_kept(const float* x, int64_t batch, int64_t n, float threshold, int64_t* place, uint8_t* who,
                  int64_t* pairs) {
  typedef uint32_t Words __attribute__((vector_size(kWidth)));
  typedef int32_t SignedWords __attribute__((vector_size(kWidth)));
  int32_t limit;
  memcpy(&limit, &threshold, sizeof(limit));
  int64_t found = 0;
  for (int64_t i = 0; i < n; i += 64) {
    const int64_t count = least(64, n - i);
    uint64_t kept[kBatch], any = 0;
    for (int64_t b = 0; b < batch; ++b) {
      const float* const from = x + b * n + i;
      Block<uint32_t> block;
      if (count == 64) {
        block = load_block(reinterpret_cast<const uint32_t*>(from));
      } else {
        memset(&block, 0, sizeof(block));
        memcpy(&block, from, size_t(count) * sizeof(float));
      }
      for (int v = 0; v < kVecs<uint32_t>; ++v)
        block.v[v] = (Vec)((SignedWords)((Words)block.v[v] & 0x7fffffffu) > limit);
      kept[b] = lane_bits(block, ~uint32_t(0));
      any |= kept[b];
      *pairs += __builtin_popcountll(kept[b]);
    }
    for (; any != 0; any &= any - 1, ++found) {
      const int bit = __builtin_ctzll(any);
      place[found] = i + bit;
      uint8_t users = 1;
      if (batch > 1) {
        users = 0;
        for (int64_t b = 0; b < batch; ++b) users = uint8_t(users | (kept[b] >> bit & 1) << b);
      }
      who[found] = users;
    }
  }
  return found;
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
