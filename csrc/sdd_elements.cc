// Sampled product of tiles of one row or one column: every product shares one operand with its neighbours in the slot
// order, and the others are rows at any distance.
#include "dots.h"
#include "sdd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kMost = kRegisters / 2;  // products at a time
constexpr int kTogether = 8;           // of them in one loop: there are 16 registers for addresses

template <int kFrom, int kEnd, class T>
inline void accumulate(const T* one, const T* const* many, int64_t k, Lanes<T>* sums) {
  const int64_t whole = k / kLanes<T> * kLanes<T>;
  for (int64_t p = 0; p < whole; p += kLanes<T>) {
    const Lanes<T> left = load_lanes(one + p);
#pragma GCC unroll 8
    for (int i = kFrom; i < kEnd; ++i) sums[i] = fma(left, load_lanes(many[i] + p), sums[i]);
  }
  const int rest = int(k - whole);
  if (rest == 0) return;
  const Lanes<T> left = load_first(one + whole, rest);
#pragma GCC unroll 8
  for (int i = kFrom; i < kEnd; ++i) sums[i] = fma(left, load_first(many[i] + whole, rest), sums[i]);
}

// out[i] (+)= one . many[i]
template <int kCount, class T>
void dots_of(const T* one, const T* const* many, int64_t k, T* out, bool add) {
  Lanes<T> sums[kCount] = {};
  accumulate<0, (kCount < kTogether ? kCount : kTogether)>(one, many, k, sums);
  if constexpr (kCount > kTogether) accumulate<kTogether, kCount>(one, many, k, sums);
  T old[kCount];
  if (add) memcpy(old, out, sizeof(old));
  store_sums<T, kCount>(sums, out);
  if (!add) return;
  for (int i = 0; i < kCount; ++i) out[i] += old[i];
}

template <class T, int kCount = kMost>
void dots_of(int count, const T* one, const T* const* many, int64_t k, T* out, bool add) {
  if constexpr (kCount > 0) {
    if (count == kCount) return dots_of<kCount>(one, many, k, out, add);
    return dots_of<T, kCount - 1>(count, one, many, k, out, add);
  }
}

// Products of one vector with others, collected until there are kMost of them. Their places follow one another.
template <class T>
struct Batch {
  const T* one;
  int64_t k;
  bool add;
  T* out;
  int count = 0;
  const T* many[kMost];

  void push(const T* other) {
    many[count++] = other;
    if (count == kMost) flush();
  }
  void flush() {
    dots_of<T>(count, one, many, k, out, add);
    out += count;
    count = 0;
  }
};

// Tiles [1, bn]: a row of a with rows of b.
template <class T>
void row_tiles(const Sampled<T>& s, int64_t from, int64_t k, int64_t i, int64_t slot, int64_t stop) {
  Batch<T> batch = {s.a + i * s.a_stride + from, k, from > 0, s.values + slot * s.bn, 0, {}};
  for (; slot < stop; ++slot) {
    const int64_t j = index_at(s.indices, s.index_size, slot) * s.bn, width = least(s.bn, s.n - j);
    for (int64_t c = 0; c < width; ++c) batch.push(s.b + (j + c) * s.b_stride + from);
    if (width == s.bn) continue;
    batch.flush();
    memset(batch.out, 0, size_t(s.bn - width) * sizeof(T));
    batch.out += s.bn - width;
  }
  batch.flush();
}

// Tiles [bm, 1]: a row of b with rows of a.
template <class T>
void column_tiles(const Sampled<T>& s, int64_t from, int64_t k, int64_t i, int64_t slot, int64_t stop) {
  const int64_t height = least(s.bm, s.m - i * s.bm);
  for (; slot < stop; ++slot) {
    const T* const one = s.b + index_at(s.indices, s.index_size, slot) * s.b_stride + from;
    T* const tile = s.values + slot * s.bm;
    Batch<T> batch = {one, k, from > 0, tile, 0, {}};
    for (int64_t r = 0; r < height; ++r) batch.push(s.a + (i * s.bm + r) * s.a_stride + from);
    batch.flush();
    memset(tile + height, 0, size_t(s.bm - height) * sizeof(T));
  }
}

// Columns of b that a part goes over at a time stay in L2.
constexpr int64_t kStayBytes = 262144;

template <class T>
void elements(const Sampled<T>& s, int threads) {
  parallel(threads, threads, [&](int64_t part) {
    for_each_piece<T>(s.k, [&](int64_t from, int64_t k) {
      const int64_t width = kStayBytes / (k * s.bn * int64_t(sizeof(T))) + 1;
      for_each_visit(s, part, threads, width, [&](int64_t i, int64_t slot, int64_t stop) {
        (s.bm == 1 ? row_tiles<T> : column_tiles<T>)(s, from, k, i, slot, stop);
      });
    });
  });
}

}  // namespace

void sdd_elements(const Sampled<float>& s, int threads) { elements(s, threads); }
void sdd_elements(const Sampled<double>& s, int threads) { elements(s, threads); }

}  // namespace gossamer::GOSSAMER_ISA
