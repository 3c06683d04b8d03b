// Products of a few rows with what lies in a page, widened in registers: a page is read once, and nothing is staged.
//
// An element of the result is the same chain of multiply-adds as in the dense products of many rows, so it has the same
// bits. Codes stay codes here: scales and zeros of tokens are applied to scores and to weights, which are fewer.
#pragma once
#include "gemm.h"
#include "page_codes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kFewTogether = 4;               // rows
constexpr int kFewVecs = kRegisters / 8;      // vectors of columns
constexpr int64_t kRowFloats = kRowStride<float>;  // from row to row of what is multiplied

inline Lanes<float> load_stored(const float* p) { return load_lanes(p); }
inline Lanes<float> load_stored(const BFloat16* p) { return load_weights(p); }
inline Lanes<float> load_stored(const uint16_t* p) { return load_halves(p); }
inline Lanes<float> load_stored(const uint8_t* p) { return load_codes<0, 255>(p); }

// c[rows, cols] (+)= a[rows, depth] @ b[depth, cols], b stored; what lies `ahead` elements further comes into L2.
template <class B>
struct FewRows {
  const float* a;
  const B* b;
  int64_t b_stride, depth, cols;
  float* c;
  int64_t c_stride;
  bool add;
  int64_t ahead;

  template <int kRows, int kVecs>
  void tile(int64_t r, int64_t col) const {
    constexpr int kStep = kLanes<float>;
    Lanes<float> sum[kRows][kVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v)
        sum[i][v] = add ? load_lanes(c + (r + i) * c_stride + col + v * kStep) : Lanes<float>{};
    const B* row = b + col;
    const float* left = a + r * kRowFloats;
#pragma GCC unroll 2
    for (int64_t j = 0; j < depth; ++j, row += b_stride, ++left) {
      Lanes<float> right[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) right[v] = load_stored(row + v * kStep);
      for (int64_t byte = 0; byte < int64_t(kVecs * kStep * sizeof(B)); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(row + ahead) + byte, 0, 2);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const Lanes<float> x = broadcast(left[i * kRowFloats]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[i][v] = fma(x, right[v], sum[i][v]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) store_lanes(c + (r + i) * c_stride + col + v * kStep, sum[i][v]);
  }

  template <int kRows>
  void strip(int64_t r) const {
    constexpr int kStep = kLanes<float>;
    int64_t col = 0;
    for (; col + kFewVecs * kStep <= cols; col += kFewVecs * kStep) tile<kRows, kFewVecs>(r, col);
    for (; col < cols; col += kStep) tile<kRows, 1>(r, col);
  }
};

// The same of keys as codes: c[rows, page] = a[rows, width] @ codes.
template <int kPlanes>
struct FewKeys {
  const float* a;
  const uint8_t* keys;
  int64_t plane, page, width;
  float* c;
  int64_t c_stride;
  int64_t ahead;

  template <int kRows, int kVecs>
  void tile(int64_t r, int64_t t) const {
    constexpr int kStep = kLanes<float>;
    Lanes<float> sum[kRows][kVecs] = {};
    const float* left = a + r * kRowFloats;
    const uint8_t* from = keys + 4 * t;
    const auto add = [&]<int kHalf>() {
      Codes four[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) four[v] = load_four<kPlanes, kHalf>(from + v * 4 * kStep, plane);
      const auto coordinate = [&]<int kByte>() {
        Lanes<float> right[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) right[v] = floats_of<kByte>(four[v]);
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          const Lanes<float> x = broadcast(left[i * kRowFloats + 4 * kHalf + kByte]);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) sum[i][v] = fma(x, right[v], sum[i][v]);
        }
      };
      coordinate.template operator()<0>();
      coordinate.template operator()<1>();
      coordinate.template operator()<2>();
      coordinate.template operator()<3>();
    };
    for (int64_t d = 0; d < width; d += 8, left += 8, from += 4 * page) {
      for (int64_t byte = 0; byte < 4 * kStep * kVecs; byte += 64)
        for (int i = 0; i < kPlanes; ++i) __builtin_prefetch(from + ahead + i * plane + byte, 0, 2);
      add.template operator()<0>();
      add.template operator()<1>();
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) store_lanes(c + (r + i) * c_stride + t + v * kStep, sum[i][v]);
  }

  template <int kRows>
  void strip(int64_t r) const {
    constexpr int kStep = kLanes<float>;
    int64_t t = 0;
    for (; t + kFewVecs * kStep <= page; t += kFewVecs * kStep) tile<kRows, kFewVecs>(r, t);
    for (; t < page; t += kStep) tile<kRows, 1>(r, t);
  }
};

template <class Product>
inline void in_few_rows(const Product& product, int64_t rows) {
  for (int64_t r = 0; r < rows;) {
    const int64_t height = next_share(rows - r, kFewTogether, 1);
    if (height == 4) product.template strip<4>(r);
    else if (height == 3) product.template strip<3>(r);
    else if (height == 2) product.template strip<2>(r);
    else product.template strip<1>(r);
    r += height;
  }
}

// The dense product of many rows, b of floats. Meanwhile `bytes` at `next` come into L2, a share with each few rows.
inline void multiply_rows(const float* a, const float* b, int64_t b_stride, int64_t depth, float* c, int64_t c_stride,
                          int64_t rows, int64_t cols, bool add, const char* next, int64_t bytes) {
  for (int64_t r = 0; r < rows;) {
    const int64_t height = next_share(rows - r, kTileRows, 1);
    for (int64_t byte = r * bytes / rows / 64 * 64; byte < (r + height) * bytes / rows; byte += 64)
      __builtin_prefetch(next + byte, 0, 2);
    float* to[kTileRows];
    for (int64_t i = 0; i < height; ++i) to[i] = c + (r + i) * c_stride;
    for (int64_t col = 0; col < cols; col += kTileCols<float>)
      multiply_tile<float, Order::kRows, false>(height, a + r * kRowFloats, {b + col, b_stride, nullptr}, depth, to, col,
                                                least(kTileCols<float>, cols - col), add);
    r += height;
  }
}

// A matrix of a page, [depth, stride] numbers as they are stored; `next` is the one that comes after it, or itself.
struct StoredMatrix {
  const void *at, *next;
  int64_t stride, depth;
  Stored stored;
};

constexpr int64_t kStageRows = 8;  // with more, numbers are widened once for all of them

// c[rows, cols] (+)= a[rows, depth] @ the first `cols` columns; `stage` has room for the matrix as floats.
inline void multiply_stored(const float* a, const StoredMatrix& b, float* stage, float* c, int64_t c_stride, int64_t rows,
                            int64_t cols, bool add) {
  const auto few = [&]<class B>(const B* at) {
    const int64_t ahead = static_cast<const B*>(b.next) - at;
    in_few_rows(FewRows<B>{a, at, b.stride, b.depth, cols, c, c_stride, add, ahead}, rows);
  };
  if (rows <= kStageRows) {
    if (b.stored == Stored::kFloat) return few(static_cast<const float*>(b.at));
    if (b.stored == Stored::kBFloat16) return few(static_cast<const BFloat16*>(b.at));
    if (b.stored == Stored::kHalf) return few(static_cast<const uint16_t*>(b.at));
    if (b.stored == Stored::kBytes) return few(static_cast<const uint8_t*>(b.at));
  }
  const float* wide = static_cast<const float*>(b.at);
  if (b.stored != Stored::kFloat) {
    const int64_t row = bytes_of(b.stored, b.stride);
    for (int64_t j = 0; j < b.depth; ++j)
      for_each_vector(static_cast<const char*>(b.at) + j * row, b.stride, b.stored,
                      [&](int64_t i, Lanes<float> x) { store_lanes(stage + j * b.stride + i, x); });
    wide = stage;
  }
  multiply_rows(a, wide, b.stride, b.depth, c, c_stride, rows, cols, add, static_cast<const char*>(b.next),
                b.next == b.at ? 0 : bytes_of(b.stored, b.stride) * b.depth);
}

// c[rows, page] = a[rows, width] @ the keys of a tile; codes stay codes. `next` is the tile that comes after it, or itself.
inline void multiply_keys(const float* a, const PageTiles& pages, int64_t tile, int64_t next, float* stage, float* c,
                          int64_t c_stride, int64_t rows) {
  const int64_t page = pages.page, width = pages.width;
  if (!has_scales(pages.stored())) {
    const StoredMatrix keys = {pages.keys_of(tile), pages.keys_of(next), page, width, pages.stored()};
    return multiply_stored(a, keys, stage, c, c_stride, rows, page, false);
  }
  const KeyPlanes keys(pages);
  const auto multiply = [&]<int kPlanes>() {
    const uint8_t *const here = keys.plane(tile, 0), *const then = keys.plane(next, 0);
    if (rows <= kStageRows)
      return in_few_rows(FewKeys<kPlanes>{a, here, keys.plane_bytes(), page, width, c, c_stride, then - here}, rows);
    widen_keys<kPlanes>(keys, tile, stage);
    multiply_rows(a, stage, page, width, c, c_stride, rows, page, false, reinterpret_cast<const char*>(then),
                  next == tile ? 0 : kPlanes * keys.plane_bytes());
  };
  keys.planes == 2 ? multiply.template operator()<2>() : multiply.template operator()<1>();
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
