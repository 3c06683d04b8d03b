// The parts of attention over texts: whose rows meet which keys, and the state of the products between them.
//
// A plan lists, for each plane of a mask, blocks of query rows that look alike, and the keys that any of a block sees. Rows
// and keys of a block lie anywhere: both are packed for the products all the same, so gathering them costs nothing more.
#pragma once
#include "exponential.h"
#include "gemm.h"
#include "softmax_rows.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kPlanRows = 56;    // of a block with a plan: whole tiles of registers, and few keys that only some see
constexpr int64_t kBlockRows = 112;  // of one without
constexpr int64_t kChunkKeys = 256;  // keys whose scores are made at once: the depth of the product with the values

inline int64_t whole_panels(int64_t cols) { return ceil_div(cols, kTileCols<float>) * kTileCols<float>; }
inline int64_t whole_vectors(int64_t cols) { return ceil_div(cols, kLanes<float>) * kLanes<float>; }

// Where text t, head h, row r of an operand lies.
struct HeadRows {
  float* p;
  int64_t text, row, head;
  const int64_t* offsets;
  HeadRows(const Heads& x, const Texts& texts)
      : p(static_cast<float*>(x.address)), text(x.text), row(x.row), head(x.head), offsets(texts.offsets) {}
  float* of(int64_t t, int64_t h) const { return p + (offsets != nullptr ? offsets[t] * row : t * text) + h * head; }
};

inline int64_t rows_of(const Texts& texts, int64_t t) {
  return texts.offsets != nullptr ? texts.offsets[t + 1] - texts.offsets[t] : texts.rows;
}
inline int64_t keys_of(const Texts& texts, int64_t t) {
  return texts.offsets != nullptr ? rows_of(texts, t) : texts.cols;
}

// The plan of one plane, `rows` x `cols`: words of 64 bits, in one piece of memory.
struct Plane {
  int64_t rows, cols, words, most;
  int64_t* count;   // blocks
  int64_t* biased;  // [most] whether numbers are to be added to scores of a block
  int64_t* ends;    // [most + 1] where the rows of each begin among ...
  int64_t* listed;  // [rows]
  uint64_t* bits;   // [rows][words] the keys that a row sees,
  uint64_t* any;    // [most][words] that some row of a block sees,
  uint64_t* all;    // [most][words] and that all of them see

  static int64_t blocks(int64_t rows) { return 2 * ceil_div(rows, kPlanRows); }
  static int64_t size(int64_t rows, int64_t cols) {
    const int64_t most = blocks(rows), words = ceil_div(cols, 64);
    return 2 + 2 * most + rows + words * (rows + 2 * most);
  }
  Plane(int64_t* p, int64_t rows, int64_t cols)
      : rows(rows), cols(cols), words(ceil_div(cols, 64)), most(blocks(rows)), count(p), biased(p + 1),
        ends(biased + most), listed(ends + most + 1), bits(reinterpret_cast<uint64_t*>(listed + rows)),
        any(bits + rows * words), all(any + most * words) {}
};

// Planes lie one behind the other, after a list of where each begins: [texts or 1][heads or 1].
struct Plan {
  int64_t* p;
  const Texts& texts;
  int64_t text_planes, head_planes;
  Plan(int64_t* p, const Texts& texts, const SeenMask& mask)
      : p(p), texts(texts), text_planes(mask.text_planes), head_planes(mask.head_planes) {}
  int64_t planes() const { return text_planes * head_planes; }
  Plane plane(int64_t at) const {
    const int64_t t = at / head_planes;
    return Plane(p + p[at], rows_of(texts, t), keys_of(texts, t));
  }
  int64_t place_of(int64_t t, int64_t h) const {
    return (text_planes > 1 ? t : 0) * head_planes + (head_planes > 1 ? h : 0);
  }
  Plane of(int64_t t, int64_t h) const { return plane(place_of(t, h)); }
};

// The numbers of a mask for text t and head h: that of row i and column j is at i * row + j * col.
struct MaskRows {
  const char* p;
  int64_t row, col;
  const int64_t* places;  // of the text's tokens; null: the tokens' own numbers
  MaskRows(const SeenMask& mask, const Texts& texts, int64_t t, int64_t h)
      : p(static_cast<const char*>(mask.address) + (t * mask.text + h * mask.head) * (mask.is_float ? 4 : 1)),
        row(mask.row), col(mask.col), places(mask.places == nullptr ? nullptr : mask.places + texts.offsets[t]) {}
  int64_t place(int64_t i) const { return places == nullptr ? i : places[i]; }
};

// Some rows of queries, and what they look at.
struct RowBlock {
  int64_t text, head, rows;
  int64_t first;            // row, where rows follow one another: listed is null then
  const int64_t* listed;
  int64_t keys;             // of the text; with `causal` row i sees those up to i
  bool causal, biased;
  const uint64_t *any, *all, *bits;  // see Plane; null: everything is seen
  int64_t words;
  int64_t row(int64_t i) const { return listed != nullptr ? listed[i] : first + i; }
  int64_t last() const { return row(rows - 1); }
};

// Up to kChunkKeys keys that some row of a block sees.
struct Chunk {
  int64_t count;
  bool whole;               // every row sees every key
  int64_t words;
  int32_t key[kChunkKeys];
  int32_t word[kChunkKeys];  // those that the keys come from, of which `taken` are used
  uint64_t taken[kChunkKeys];
  bool in_a_row(int64_t from, int64_t to) const { return key[to - 1] - key[from] == to - 1 - from; }
};

// Calls f(chunk) for the keys of a block, ascending.
template <class F>
void for_each_chunk(const RowBlock& block, Chunk& chunk, const F& f) {
  chunk.words = 0;
  if (block.any == nullptr) {
    const int64_t end = block.causal ? least(block.keys, block.last() + 1) : block.keys;
    for (int64_t from = 0; from < end; from += chunk.count) {
      chunk.count = next_share(end - from, kChunkKeys, kTileCols<float>);
      for (int64_t i = 0; i < chunk.count; ++i) chunk.key[i] = int32_t(from + i);
      chunk.whole = !block.causal || from + chunk.count - 1 <= block.row(0);
      f(chunk);
    }
    return;
  }
  int64_t total = 0;
  for (int64_t w = 0; w < block.words; ++w) total += __builtin_popcountll(block.any[w]);
  int64_t w = 0;
  uint64_t left = block.words > 0 ? block.any[0] : 0;
  while (total > 0) {
    const int64_t wanted = next_share(total, kChunkKeys, kTileCols<float>);
    chunk.count = chunk.words = 0;
    chunk.whole = true;
    while (chunk.count < wanted) {
      while (left == 0) left = block.any[++w];
      uint64_t taken = 0;
      for (; left != 0 && chunk.count < wanted; left &= left - 1) {
        taken |= left & -left;
        chunk.key[chunk.count++] = int32_t(w * 64 + __builtin_ctzll(left));
      }
      chunk.word[chunk.words] = int32_t(w);
      chunk.taken[chunk.words++] = taken;
      chunk.whole &= (taken & ~block.all[w]) == 0;
    }
    total -= wanted;
    f(chunk);
  }
}

inline uint64_t bits_at(uint64_t from, uint64_t taken) {
  if (taken == ~uint64_t(0)) return from;
  if constexpr (kExtracts) return extract_bits(from, taken);
  uint64_t found = 0;
  for (int i = 0; taken != 0; taken &= taken - 1, ++i) found |= (from >> __builtin_ctzll(taken) & 1) << i;
  return found;
}

// Scores of row i of a block with a chunk, in whole vectors: adds what a mask adds, and makes those of keys that it does not see, and what
// lies behind the last, minus infinity.
inline void hide(const RowBlock& block, const MaskRows& mask, const Chunk& chunk, int64_t i, float* scores) {
  constexpr int kStep = kLanes<float>;
  const float hidden = -__builtin_inff();
  const int64_t row = block.row(i), room = whole_vectors(chunk.count);
  Lanes<int32_t> place;
  for (int t = 0; t < kStep; ++t) place[t] = t;
  if (chunk.count < room) {  // a whole vector: to write a part of one that is read next takes longer than the rest
    float* const last = scores + room - kStep;
    const int32_t left = int32_t(chunk.count - (room - kStep));
    store_lanes(last, place < left ? load_lanes(last) : broadcast(hidden));
  }
  if (block.biased) {
    const float* const bias = reinterpret_cast<const float*>(mask.p) + mask.place(row) * mask.row;
    if (mask.places == nullptr && mask.col == 1 && chunk.in_a_row(0, chunk.count))
      for (int64_t t = 0; t < chunk.count; ++t) scores[t] += bias[chunk.key[0] + t];
    else
      for (int64_t t = 0; t < chunk.count; ++t) scores[t] += bias[mask.place(chunk.key[t]) * mask.col];
  }
  if (chunk.whole) return;
  if (block.any == nullptr) {
    const int64_t seen = row + 1 > chunk.key[0] ? row + 1 - chunk.key[0] : 0;
    for (int64_t t = seen / kStep * kStep; t < room; t += kStep)
      store_lanes(scores + t, place < int32_t(seen - t) ? load_lanes(scores + t) : broadcast(hidden));
    return;
  }
  const uint64_t* const bits = block.bits + row * block.words;
  uint64_t seen[kChunkKeys / 64 + 1] = {};
  for (int64_t j = 0, at = 0; j < chunk.words; ++j) {
    const uint64_t some = bits_at(bits[chunk.word[j]], chunk.taken[j]);
    seen[at / 64] |= some << at % 64;
    if (at % 64 != 0) seen[at / 64 + 1] |= some >> (64 - at % 64);
    at += __builtin_popcountll(chunk.taken[j]);
  }
  const Lanes<int32_t> bit = (Lanes<int32_t>{} + 1) << place;
  for (int64_t t = 0; t < room; t += kStep) {
    const int32_t here = int32_t(seen[t / 64] >> t % 64);
    const Lanes<int32_t> sees = (Lanes<int32_t>{} + here) & bit;
    store_lanes(scores + t, sees != 0 ? load_lanes(scores + t) : broadcast(hidden));
  }
}

inline Lanes<float> larger(Lanes<float> a, Lanes<float> b) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<float>)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a < b ? b : a;
#endif
}

// The largest of scores[room], of which NaN are left out or not.
inline float largest_of(const float* scores, int64_t room) {
  Lanes<float> most = load_lanes(scores);
  for (int64_t t = kLanes<float>; t < room; t += kLanes<float>) most = larger(most, load_lanes(scores + t));
#if defined(GOSSAMER_AVX512)
  return _mm512_reduce_max_ps((__m512)most);
#else
  return max_lanes(most);
#endif
}

// Turns scores[room] of row r into weights, and counts them in.
inline void take(const SoftmaxRows& state, int64_t r, float* scores, int64_t room) {
  const float here = largest_of(scores, room), before = state.largest[r];
  float top = here < before ? before : here;
  if (top == -__builtin_inff()) {
    for (int64_t t = 0; t < room; ++t) top += scores[t];  // a NaN among them shows now
    if (top == top) {
      memset(scores, 0, size_t(room) * sizeof(float));
      return;
    }
  }
  if (top != before) {
    if (state.sum[r] != 0) state.scale(r, exp_of(before - top));
    state.largest[r] = top;
  }
  Lanes<float> total = {};
  const Lanes<float> from = broadcast(top);
#pragma GCC unroll 4
  for (int64_t t = 0; t < room; t += kLanes<float>) {
    const Lanes<float> p = exp_weights(load_lanes(scores + t) - from);
    store_lanes(scores + t, p);
    total += p;
  }
  state.sum[r] += sum_lanes<float>(total);
}

// A[rows, width] for products: rows of `from` (see RowBlock), times `by`, in pieces of kDepth columns, each of
// kBlockRows rows of kRowStride floats.
constexpr int64_t kPieceFloats = kBlockRows * kRowStride<float>;
inline int64_t row_floats(int64_t width) { return ceil_div(width, kDepth) * kPieceFloats; }

inline void load_rows(const RowBlock& block, const float* from, int64_t stride, int64_t width, float by, float* to) {
  for (int64_t i = 0; i < block.rows; ++i) {
    const float* const row = from + block.row(i) * stride;
    for (int64_t first = 0; first < width; first += kDepth) {
      float* const out = to + first / kDepth * kPieceFloats + i * kRowStride<float>;
      const int64_t end = least(kDepth, width - first), step = kLanes<float>;
      int64_t d = 0;
      for (; d + step <= end; d += step) store_lanes(out + d, load_lanes(row + first + d) * broadcast(by));
      if (d < end) store_first(out + d, load_first(row + first + d, int(end - d)) * broadcast(by), int(end - d));
    }
  }
}

// The rows of a chunk of keys (or values), transposed: B[width, count] in panels, in pieces of kDepth rows.
inline void pack_across(const Chunk& chunk, const float* from, int64_t stride, int64_t width, float* to) {
  constexpr int64_t kCols = kTileCols<float>, kStep = kLanes<float>;
  const int64_t cols = whole_panels(chunk.count);
  for (int64_t col = 0; col < cols; col += kStep) {
    const float* rows[kStep];
    const int64_t there = least(kStep, chunk.count - col);
    for (int64_t i = 0; i < there; ++i) rows[i] = from + chunk.key[col + i] * stride;
    for (int64_t first = 0; first < width; first += kDepth) {
      const int64_t depth = least(kDepth, width - first);
      float* const panel = to + first * cols + col / kCols * kCols * depth + col % kCols;
      for (int64_t d = 0; d < depth; d += kStep) {
        const int left = int(least(kStep, depth - d));
        Lanes<float> r[kStep];
#pragma GCC unroll 16
        for (int i = 0; i < kStep; ++i) r[i] = i < there ? load_first(rows[i] + first + d, left) : Lanes<float>{};
        transpose_square(r);
#pragma GCC unroll 16
        for (int i = 0; i < kStep; ++i)
          if (i < left) store_lanes(panel + (d + i) * kCols, r[i]);
      }
    }
  }
}

// The same, not transposed: B[count, width].
inline void pack_along(const Chunk& chunk, const float* from, int64_t stride, int64_t width, float* to) {
  pack_rows(to, [&](int64_t j) { return from + chunk.key[j] * stride; }, chunk.count, width);
}

// C[rows, cols] (+)= A[rows, depth] @ B[depth, cols] of packed operands; row i of C is at row_of(i).
template <class RowOf>
void multiply_packed(const float* a, const float* b, int64_t rows, int64_t depth, int64_t cols, bool add,
                     const RowOf& row_of) {
  constexpr int64_t kCols = kTileCols<float>;
  for (int64_t first = 0; first < depth; first += kDepth) {
    const int64_t deep = least(kDepth, depth - first);
    const float* const right = b + first * whole_panels(cols);
    for (int64_t r = 0, count = 0; r < rows; r += count) {
      count = next_share(rows - r, kTileRows, 1);
      float* to[kTileRows];
      for (int64_t i = 0; i < count; ++i) to[i] = row_of(r + i);
      const float* const left = a + first / kDepth * kPieceFloats + r * kRowStride<float>;
      for (int64_t col = 0; col < cols; col += kCols)
        multiply_tile<float, Order::kRows, false>(count, left, {right + col * deep, kCols, nullptr}, deep, to, col,
                                                  least(kCols, cols - col), add || first > 0);
    }
  }
}

// Calls f(block) for the blocks of a text and a head.
template <class F>
void for_each_block(const Texts& texts, const Plan* plan, bool causal, int64_t t, int64_t h, const F& f) {
  const int64_t rows = rows_of(texts, t), keys = keys_of(texts, t);
  if (plan == nullptr) {
    for (int64_t first = 0, count = 0; first < rows; first += count) {
      count = next_share(rows - first, kBlockRows, kTileRows);
      f(RowBlock{t, h, count, first, nullptr, keys, causal, false, nullptr, nullptr, nullptr, 0});
    }
    return;
  }
  const Plane plane = plan->of(t, h);
  for (int64_t i = 0; i < *plane.count; ++i)
    f(RowBlock{t, h, plane.ends[i + 1] - plane.ends[i], 0, plane.listed + plane.ends[i], keys, false,
               plane.biased[i] != 0, plane.any + i * plane.words, plane.all + i * plane.words, plane.bits,
               plane.words});
}

inline bool texts_are_right(const Texts& texts) {
  return texts.offsets == nullptr ||
         (are_offsets(texts.offsets, texts.count, true, texts.rows) && texts.offsets[texts.count] == texts.rows);
}

// What a thread works with.
struct Places {
  float* p;
  float* take(int64_t floats) {
    float* const here = p;
    p += whole_lines(floats);
    return here;
  }
};

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
