// The relu with one bit for each element, and what a bit keeps: one stream over x and the bits.
#include "kernels.h"
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kWord = 32;  // elements of a word of bits

// 32 elements cut at zero; returns the bits of those that are not below or at it: NaN stays.
inline uint32_t relu_word(const float* x, float* y) {
  uint32_t bits = 0;
#if defined(GOSSAMER_AVX512)
  for (int i = 0; i < kWord; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    const __mmask16 keep = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NLE_UQ);
    _mm512_storeu_ps(y + i, _mm512_maskz_mov_ps(keep, v));
    bits |= uint32_t(keep) << i;
  }
#elif defined(GOSSAMER_AVX2)
  for (int i = 0; i < kWord; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i), keep = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NLE_UQ);
    _mm256_storeu_ps(y + i, _mm256_and_ps(keep, v));
    bits |= uint32_t(_mm256_movemask_ps(keep)) << i;
  }
#else
  for (int i = 0; i < kWord; ++i) {
    const bool keep = !(x[i] <= 0);
    y[i] = keep ? x[i] : 0;
    bits |= uint32_t(keep) << i;
  }
#endif
  return bits;
}

// 32 elements, zero where the bit is.
inline void keep_word(const float* x, uint32_t bits, float* y) {
#if defined(GOSSAMER_AVX512)
  for (int i = 0; i < kWord; i += 16)
    _mm512_storeu_ps(y + i, _mm512_maskz_loadu_ps(__mmask16(bits >> i), x + i));
#elif defined(GOSSAMER_AVX2)
  for (int i = 0; i < kWord; i += 8) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i keep = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits >> i)), lane), lane);
    _mm256_storeu_ps(y + i, _mm256_and_ps(_mm256_castsi256_ps(keep), _mm256_loadu_ps(x + i)));
  }
#else
  for (int i = 0; i < kWord; ++i) y[i] = bits >> i & 1 ? x[i] : 0;
#endif
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
