// Sampled product of tiles of one row or one column: every product shares one operand with its neighbours in the slot
// order, and the others are rows at any distance.
#include "dots.h"
#include "sdd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kMost = 64;              // products at a time
constexpr int kHeld = kRegisters / 2;   // vectors of the shared operand in registers
constexpr int kChains = kHeld / 4;      // sums of one product: no addition waits long for another

// out[i] (+)= one . other(i) for i < count <= kMost. Each of the others is read from end to end, which the prefetcher
// sees; the additions of one product overlap those of the next.
template <class T, class Other>
inline void dots_of(int count, const T* one, const Other& other, int64_t k, T* out, bool add) {
  Lanes<T> sums[kMost];
  const int64_t whole = k / kLanes<T> * kLanes<T>;
  const int rest = int(k - whole);
  int64_t p = 0;
  for (; p + kHeld * kLanes<T> <= whole; p += kHeld * kLanes<T>) {
    Lanes<T> left[kHeld];
#pragma GCC unroll 16
    for (int v = 0; v < kHeld; ++v) left[v] = load_lanes(one + p + v * kLanes<T>);
    for (int i = 0; i < count; ++i) {
      const T* right = other(i) + p;
      asm("" : "+r"(right));  // one register and constants: else the compiler keeps a register for each of the loads
      Lanes<T> chain[kChains] = {};
      if (p > 0) chain[0] = sums[i];
#pragma GCC unroll 16
      for (int v = 0; v < kHeld; ++v)
        chain[v % kChains] = fma(left[v], load_lanes(right + v * kLanes<T>), chain[v % kChains]);
#pragma GCC unroll 4
      for (int half = kChains / 2; half > 0; half /= 2)
#pragma GCC unroll 4
        for (int c = 0; c < half; ++c) chain[c] += chain[c + half];
      sums[i] = chain[0];
    }
  }
  if (p < k) {
    for (int i = 0; i < count; ++i) {
      const T* const right = other(i);
      Lanes<T> sum = p > 0 ? sums[i] : Lanes<T>{};
      for (int64_t q = p; q < whole; q += kLanes<T>) sum = fma(load_lanes(one + q), load_lanes(right + q), sum);
      if (rest > 0) sum = fma(load_first(one + whole, rest), load_first(right + whole, rest), sum);
      sums[i] = sum;
    }
  }
  for (int i = 0; i < count; i += kLanes<T>) {
    const int inside = int(least(count - i, kLanes<T>));
    for (int j = inside; j < kLanes<T>; ++j) sums[i + j] = Lanes<T>{};
    const Lanes<T> sum = sum_each<T, kLanes<T>>(sums + i);
    store_first(out + i, add ? sum + load_first(out + i, inside) : sum, inside);
  }
}

// Products of one vector with others, collected until there are kMost of them. Their places follow one another.
template <class T>
struct Batch {
  const T* one;
  int64_t k;
  bool add;
  T* out;
  int count;
  const T* many[kMost];

  Batch(const T* one, int64_t k, bool add, T* out) : one(one), k(k), add(add), out(out), count(0) {}
  void push(const T* other) {
    many[count++] = other;
    if (count == kMost) flush();
  }
  void flush() {
    dots_of<T>(count, one, [this](int i) { return many[i]; }, k, out, add);
    out += count;
    count = 0;
  }
};

// Tiles (1, 1): a row of a with one row of b for each slot.
template <class T, class Index>
void row_elements(const Sampled<T>& s, int64_t from, int64_t k, int64_t i, int64_t slot, int64_t stop) {
  const T *const one = s.a + i * s.a_stride + from, *const b = s.b + from;
  for (; slot < stop; slot += kMost) {
    const Index* const indices = static_cast<const Index*>(s.indices) + slot;
    dots_of<T>(int(least(stop - slot, kMost)), one, [&](int e) { return b + int64_t(indices[e]) * s.b_stride; }, k,
               s.values + slot, from > 0);
  }
}

// Tiles [1, bn]: a row of a with rows of b.
template <class T>
void row_tiles(const Sampled<T>& s, int64_t from, int64_t k, int64_t i, int64_t slot, int64_t stop) {
  Batch<T> batch(s.a + i * s.a_stride + from, k, from > 0, s.values + slot * s.bn);
  for (; slot < stop; ++slot) {
    const int64_t j = s.column(slot) * s.bn, width = least(s.bn, s.cols - j);
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
  const int64_t height = least(s.bm, s.rows - i * s.bm);
  for (; slot < stop; ++slot) {
    const T* const one = s.b + s.column(slot) * s.b_stride + from;
    T* const tile = s.values + slot * s.bm;
    Batch<T> batch(one, k, from > 0, tile);
    for (int64_t r = 0; r < height; ++r) batch.push(s.a + (i * s.bm + r) * s.a_stride + from);
    batch.flush();
    memset(tile + height, 0, size_t(s.bm - height) * sizeof(T));
  }
}

// Columns of b that a part goes over at a time stay in L2.
constexpr int64_t kStayBytes = 524288;

template <class T>
bool elements(const Sampled<T>& s, int threads) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  const bool single = s.bm == 1 && s.bn == 1;
  const auto visit = single ? (s.index_size == 2 ? row_elements<T, uint16_t> : row_elements<T, int32_t>)
                     : s.bm == 1 ? row_tiles<T> : column_tiles<T>;
  Verdict verdict;
  parallel(threads, threads, [&, threads](int64_t part) {
    if (!verdict.add(s.columns_exist(part_begin(s.used(), part, threads), part_begin(s.used(), part + 1, threads)))) return;
    for_each_piece<T>(s.k, [&](int64_t from, int64_t k) {
      const int64_t width = kStayBytes / (k * s.bn * int64_t(sizeof(T))) + 1;
      for_each_visit(s, part, threads, width, [&](int64_t i, int64_t slot, int64_t stop) {
        if (s.bm == 1 && i + 1 < s.rows) {  // the next row comes from L3, and its first product would wait for all of it
          const T* const next = s.a + (i + 1) * s.a_stride + from;
          for (int64_t p = 0; p < k; p += kLine) __builtin_prefetch(next + p);
        }
        visit(s, from, k, i, slot, stop);
      });
    });
  });
  return verdict.right();
}

}  // namespace

bool sdd_elements(const Sampled<float>& s, int threads) { return elements(s, threads); }
bool sdd_elements(const Sampled<double>& s, int threads) { return elements(s, threads); }

}  // namespace gossamer::GOSSAMER_ISA
