// The relu with one bit for each element, and what a bit keeps: one stream over x and the bits.
#include "kernels.h"
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kWord = 32;  // elements of a word of bits

// 32 elements cut at zero; returns the bits of those that are not below or at it: NaN stays.
inline uint32_t relu_word(const float* x, float* y) {
  uint32_t bits = 0, kept;
  for (int i = 0; i < kWord; i += kLanes<float>) {
    store_lanes(y + i, relu_lanes(load_lanes(x + i), &kept));
    bits |= kept << i;
  }
  return bits;
}

// 32 elements, zero where the bit is.
inline void keep_word(const float* x, uint32_t bits, float* y) {
  for (int i = 0; i < kWord; i += kLanes<float>) store_lanes(y + i, load_where(x + i, bits >> i));
}

// Calls f(element, word, count) for the words of every row, on all threads.
template <class F>
void for_each_word(int64_t rows, int64_t cols, int threads, const F& f) {
  const int64_t words = ceil_div(cols, kWord);
  threads = useful_threads(rows * cols * 8, threads);
  parallel(threads, threads, [&, threads](int64_t part) {
    const int64_t begin = part_begin(rows * words, part, threads), end = part_begin(rows * words, part + 1, threads);
    if (begin == end) return;
    int64_t element = begin / words * cols + begin % words * kWord, col = begin % words * kWord;
    for (int64_t word = begin; word < end; ++word) {
      const int64_t count = least(kWord, cols - col);
      f(element, word, count);
      element += count;
      col += count;
      if (col == cols) col = 0;
    }
  });
}

}  // namespace

void relu_bits(const float* x, int64_t rows, int64_t cols, float* y, void* bits, int threads) {
  uint32_t* const words = static_cast<uint32_t*>(bits);
  for_each_word(rows, cols, threads, [=](int64_t at, int64_t word, int64_t count) {
    if (count == kWord) {
      words[word] = relu_word(x + at, y + at);
    } else {
      float few[kWord] = {};
      memcpy(few, x + at, size_t(count) * sizeof(float));
      words[word] = relu_word(few, few);
      memcpy(y + at, few, size_t(count) * sizeof(float));
    }
  });
}

void keep_bits(const float* x, const void* bits, int64_t rows, int64_t cols, float* y, int threads) {
  const uint32_t* const words = static_cast<const uint32_t*>(bits);
  for_each_word(rows, cols, threads, [=](int64_t at, int64_t word, int64_t count) {
    if (count == kWord) {
      keep_word(x + at, words[word], y + at);
    } else {
      for (int64_t i = 0; i < count; ++i) y[at + i] = words[word] >> i & 1 ? x[at + i] : 0;
    }
  });
}

}  // namespace gossamer::GOSSAMER_ISA
