// Products of bfloat16 numbers with float sums, for CPUs that multiply them in pairs: by tiles (AMX), else by vectors.
//
// Both take one operand as it is, row after row, and of the other the rows 2j and 2j + 1 as pairs. How an element of the
// result is added up depends on nothing but its own row and column.
#pragma once
#include "gemm.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kPairDepth = 32;  // what is multiplied is filled up with zeros to a multiple of this

// Two stretches of memory that are looked at next: they come into L2 a few lines at a time, all the time, for a core can
// wait for some lines only.
struct Ahead {
  const char *at = nullptr, *end = nullptr, *then = nullptr;
  int64_t bytes = 0;  // of each
  int64_t in_pairs = 0, in_products = 0;  // lines for each two rows that become pairs, and for each step of a product

  void take(int64_t lines) {
    for (; lines > 0; --lines, at += 64) {
      if (at == end) {
        if (then == nullptr) return;
        at = then;
        end = at + bytes;
        then = nullptr;
      }
      __builtin_prefetch(at, 0, 2);
    }
  }
};

// to[j][cols] = the rows 2j and 2j + 1 of from[depth][cols], zeros from `depth` to `padded`.
inline void pair_rows(const BFloat16* from, int64_t depth, int64_t padded, int64_t cols, Ahead& ahead, uint32_t* to) {
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const int64_t begin = ceil_div(depth, 2);
  memset(to + begin * cols, 0, size_t(padded / 2 - begin) * size_t(cols) * sizeof(uint32_t));
  for (int64_t j = 0; j < depth; j += 2, to += cols) {
    const BFloat16* const row = from + j * cols;
    const bool both = j + 1 < depth;
    ahead.take(ahead.in_pairs);
    int64_t i = 0;
    for (; i + 32 <= cols; i += 32) {
      const __m512i even = _mm512_loadu_si512(row + i);
      const __m512i odd = both ? _mm512_loadu_si512(row + cols + i) : _mm512_setzero_si512();
      const __m512i a = _mm512_unpacklo_epi16(even, odd), b = _mm512_unpackhi_epi16(even, odd);
      _mm512_storeu_si512(to + i, _mm512_permutex2var_epi64(a, low, b));
      _mm512_storeu_si512(to + i + 16, _mm512_permutex2var_epi64(a, high, b));
    }
    for (; i < cols; i += 16) {
      const auto wide = [](const BFloat16* p) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
      };
      const __m512i odd = both ? _mm512_slli_epi32(wide(row + cols + i), 16) : _mm512_setzero_si512();
      _mm512_storeu_si512(to + i, _mm512_or_si512(wide(row + i), odd));
    }
  }
}

// to[padded] = the n numbers times `by`, rounded, then zeros; both multiples of 16.
inline void round_row(const float* from, float by, int64_t n, int64_t padded, BFloat16* to) {
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 x = i < n ? _mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_set1_ps(by)) : _mm512_setzero_ps();
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)_mm512_cvtneps_pbh(x));
  }
}

#if defined(GOSSAMER_AVX512_AMX)
// The compilers' intrinsics do not say that they touch memory; tiles must be named by constants.
template <int kTile>
inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kSum, int kLeft, int kRight>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 pairs. They belong to a thread; this gives them back.
class PairProducts {
 public:
  static constexpr int64_t kRows = 32;  // that are multiplied together

  PairProducts() = default;
  PairProducts(const PairProducts&) = delete;
  ~PairProducts() {
    if (rows_ > 0) asm volatile("tilerelease");
  }

  // c[rows, cols] (+)= a[rows, depth] @ b, pairs [depth / 2, cols]; depth is a multiple of kPairDepth.
  void multiply(const BFloat16* a, int64_t a_stride, const uint32_t* b, int64_t depth, float* c, int64_t c_stride,
                int64_t rows, int64_t cols, bool add, Ahead& ahead) {
    const int64_t whole = rows / 32 * 32, rest = rows - whole;
    const Block block = {a, b, c, a_stride, c_stride, depth, cols, add, ahead};
    if (whole > 0) shape(32);
    for (int64_t col = 0; col < cols; col += 32)
      for (int64_t r = 0; r < whole; r += 32) col + 32 <= cols ? block.run<2, 2>(r, col) : block.run<2, 1>(r, col);
    if (rest > 0) shape(rest);
    for (int64_t col = 0; col < cols && rest > 0; col += 32)
      if (rest > 16) col + 32 <= cols ? block.run<2, 2>(whole, col) : block.run<2, 1>(whole, col);
      else col + 32 <= cols ? block.run<1, 2>(whole, col) : block.run<1, 1>(whole, col);
  }

 private:
  struct Block {
    const BFloat16* a;
    const uint32_t* b;
    float* c;
    int64_t a_stride, c_stride, depth, cols;
    bool add;
    Ahead& ahead;

    template <int kTile>
    void begin(float* from) const {
      if (add) load_tile<kTile>(from, c_stride * 4);
      else clear_tile<kTile>();
    }

    template <int kDown, int kAcross>
    void run(int64_t row, int64_t col) const {
      float *const upper = c + row * c_stride + col, *const lower = upper + 16 * c_stride;
      begin<0>(upper);
      if constexpr (kAcross == 2) begin<1>(upper + 16);
      if constexpr (kDown == 2) begin<2>(lower);
      if constexpr (kDown == 2 && kAcross == 2) begin<3>(lower + 16);
      const BFloat16* left = a + row * a_stride;
      const uint32_t* right = b + col;
      for (int64_t k = 0; k < depth; k += kPairDepth, left += kPairDepth, right += kPairDepth / 2 * cols) {
        ahead.take(ahead.in_products);
        load_tile<4>(left, a_stride * 2);
        load_tile<6>(right, cols * 4);
        multiply_tiles<0, 4, 6>();
        if constexpr (kAcross == 2) load_tile<7>(right + 16, cols * 4);
        if constexpr (kAcross == 2) multiply_tiles<1, 4, 7>();
        if constexpr (kDown == 2) load_tile<5>(left + 16 * a_stride, a_stride * 2);
        if constexpr (kDown == 2) multiply_tiles<2, 5, 6>();
        if constexpr (kDown == 2 && kAcross == 2) multiply_tiles<3, 5, 7>();
      }
      store_tile<0>(upper, c_stride * 4);
      if constexpr (kAcross == 2) store_tile<1>(upper + 16, c_stride * 4);
      if constexpr (kDown == 2) store_tile<2>(lower, c_stride * 4);
      if constexpr (kDown == 2 && kAcross == 2) store_tile<3>(lower + 16, c_stride * 4);
    }
  };

  // Makes tiles for so many rows, in one height or two.
  void shape(int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    struct {
      uint8_t palette = 1, start = 0, none[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    const int64_t upper = least(rows, 16), lower = rows - upper;
    const int64_t heights[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int i = 0; i < 8; ++i) {
      shape.rows[i] = uint8_t(heights[i]);
      shape.bytes[i] = heights[i] > 0 ? 64 : 0;
    }
    static_assert(sizeof(shape) == 64);
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }

  int64_t rows_ = 0;
};
#else
class PairProducts {
 public:
  static constexpr int64_t kRows = 30;  // that are multiplied together

  PairProducts() = default;
  PairProducts(const PairProducts&) = delete;

  // c[rows, cols] (+)= a[rows, depth] @ b, pairs [depth / 2, cols].
  void multiply(const BFloat16* a, int64_t a_stride, const uint32_t* b, int64_t depth, float* c, int64_t c_stride,
                int64_t rows, int64_t cols, bool add, Ahead& ahead) {
    for (int64_t col = 0, width = 0; col < cols; col += width) {
      width = cols - col >= 64 ? 64 : cols - col >= 32 ? 32 : 16;
      for (int64_t r = 0, height = 0; r < rows; r += height) {
        height = next_share(rows - r, kMostTogether, 1);
        const Block block = {a + r * a_stride, b + col, c + r * c_stride + col, a_stride, c_stride, depth, cols, add};
        ahead.take(ahead.in_products);
        if (width == 64) block.run<4>(height);
        else if (width == 32) block.run<2>(height);
        else block.run<1>(height);
      }
    }
  }

 private:
  static constexpr int kMostTogether = 6;  // rows: 24 sums, 4 words of b, 1 of a

  struct Block {
    const BFloat16* a;
    const uint32_t* b;
    float* c;
    int64_t a_stride, c_stride, depth, cols;
    bool add;

    template <int kVecs, int kHeight = kMostTogether>
    void run(int64_t height) const {
      if constexpr (kHeight > 1)
        if (height < kHeight) return run<kVecs, kHeight - 1>(height);
      tile<kHeight, kVecs>();
    }

    template <int kHeight, int kVecs>
    void tile() const {
      __m512 sum[kHeight][kVecs];
#pragma GCC unroll 6
      for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v)
          sum[i][v] = add ? _mm512_loadu_ps(c + i * c_stride + v * 16) : _mm512_setzero_ps();
      const uint32_t* pairs = b;
      for (int64_t k = 0; k < depth; k += 2, pairs += cols) {
        __m512i right[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) right[v] = _mm512_loadu_si512(pairs + v * 16);
#pragma GCC unroll 6
        for (int i = 0; i < kHeight; ++i) {
          int32_t pair;
          memcpy(&pair, a + i * a_stride + k, 4);
          const __m512i left = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)left, (__m512bh)right[v]);
        }
      }
#pragma GCC unroll 6
      for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) _mm512_storeu_ps(c + i * c_stride + v * 16, sum[i][v]);
    }
  };
};
#endif

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
