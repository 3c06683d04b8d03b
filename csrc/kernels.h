// The verbs: one list, from which every instruction set's functions and the dispatch table are declared.
#pragma once
#include <stdint.h>

// Matrices are contiguous, row-major, `rows` x `cols` elements; a tile is `bm` x `bn` elements; row i of tiles owns
// indices[offsets[i] .. offsets[i + 1]) (tile columns). Edge tiles may be ragged. Nothing here allocates.
//
// detect   Which tiles of x hold an element with a bit set, the sign of floats apart: -0.0 is zero, NaN is not.
//          flags is scratch: tile_rows * (ceil(tile_cols / 64) + 1) words, one bit a tile and a count. offsets[tile_rows
//          + 1] gets the true counts, indices[capacity] the first `capacity` tile columns, then zeros, unless the
//          caller has cleared what lies behind them, or will.
// gather   values[capacity, bm, bn] = the present tiles of x; slots past the pattern and ragged padding are zero.
// scatter  dense[rows, cols] = the tiles of values[capacity, bm, bn] in their places, zero elsewhere.
// gather_mm  c[rows, n] = (a[rows, k] at the tiles (bm, bk) of a pattern, zero elsewhere) @ b[batch, k, n], whose strides
//          are given in elements, one of b_row and b_col being 1. Matrix i of b meets rows [i, i + 1) * rows / batch, and
//          no tile row straddles two. transposed, if not null, gets [n, rows]; c is needed all the same. scratch has
//          gather_mm_scratch bytes.
// grouped_mm  y[target[p]] = x[source[p]] @ weights[g] for p in [offsets[g], offsets[g + 1]), zero in other rows of
//          y[out_rows, n]; weights are [groups, k, n], with flip [groups, n, k]. source, target: entries of 4 or 8
//          bytes, or null, which is p itself. scratch has grouped_scratch bytes.
// grouped_outer  dw[g][k, n] = the sum over p of x[source[p]]^T dy[target[p]].
// in_range  Whether offsets[count + 1] are not negative (start at 0, where from_zero), never fall and end at most at n, and
//          numbers[n] of 2, 4 or 8 bytes (null: each its place) are in [0, bound) where the offsets use them.
// named_once  Whether numbers in [0, bound), of 4 or 8 bytes, do not repeat where the offsets use them. `bits` has one for
//          each number, and so below for each tile column and each slot.
// repeated  The first tile row that lists a column twice, or -1.
// work_in_range  How many slots a division of labour names; -1 if a row does not exist, a slot is not in the row that it
//          is said to be in, or is named twice.
// mask     Zeroes, by bits, every element of x[n] where mask[n] is false.
// select   mask[n] = the k highest (or lowest) of scores[n] among those allowed (null: all); equal scores are taken in
//          order of index. Returns how many were taken, or -1 if an allowed score is NaN. scratch has select_scratch
//          bytes.
// dsd      c[rows, n] = S @ b[k, n] where S[rows, k] has the tile values[order[slot]] (null order: values[slot]; flip: its
//          transpose, stored as bk x bm) times scale (null: 1) at each slot; what lies outside S, in slack or in padding is
//          never read as a number. storage is 0 float, 1 double, 2 bfloat16, 3 int8; b and c are double with double tiles,
//          else float. A row of b is b_stride elements, or a column is if b_transposed; column_major: c is [n, rows].
//          work[segments, 3], or null, holds (tile row, slot, end): the sums of a tile row's segments are added in their
//          order; tile row -1 is none. scratch has dsd_scratch bytes; in_place there: no order, no scale, and b's type.
// sdd      values[capacity, bm, bn] = the present tiles of a[m, k] @ b[k, n], float or double; slots past the pattern and
//          ragged padding are zero. A transposed matrix is given by its rows: b_transposed means that b is [n, k] in
//          memory. packed is scratch: k * m elements if a is transposed and k * n more if b is not. next is scratch:
//          tile_rows + 1 + threads entries.
// skip_conv_weight  dw[outputs, channels, taps down, taps along], or with channels_last [outputs, taps down, taps along,
//          channels], of a convolution of x[images, in down, in along, channels] by dy[images, out down, out along,
//          outputs], skipping the zeros of x or of dy. bits, or null: [images, out down, out along, ceil(outputs / 32)], an
//          element of dy whose bit is 0 counts as zero. counts[0]: nonzeros of the one skipped, where no stride steps over
//          them; counts[1]: products of numbers made with them; counts[2]: elements among which counts[0] are not zero.
//          scratch has skip_conv_weight_scratch bytes.
// transpose  The index of the transposed pattern. Rows ascend inside each row of offsets_t[tile_cols + 1]; order[s] is the
//          slot that slot s of the transposed pattern has in this one, s itself in the slack. counts is scratch:
//          threads * tile_cols entries.
// skip_mv  y[batch, k] = bias (null: 0) + x[batch, c] @ w[c, k], without the elements of x within threshold of zero. A row
//          of w that none of eight rows of x needs is not read. w is float, or bfloat16; counts[1] gets the elements of x
//          that were used. scratch has skip_mv_scratch bytes.
// gated_mv  y[batch, k] = gate * (x[batch, c] @ w[k, c]^T + bias), 0 where the gate is 0. A row of w whose gates are 0 for
//          eight rows of x is not read. scratch has gated_mv_scratch bytes.
// skip_pack  The weights of a convolution, [out, in, r, s] with strides in elements, as skip_conv reads them: [groups][
//          ceil(in / lanes)][r][lanes][s][skip_pack_outs(out)] floats, groups of outputs, zero where there is no weight;
//          lanes are skip_pack_lanes(in, r).
// skip_conv  y[n, oh, ow, out] of x[n, h, w, c], all channels last: the convolution, or with `transposed` the gradient by
//          the input of one whose output is x (then `packed` has its input channels as outputs). A zero of x, or an element
//          whose bit is not set in bits[n, h, w, ceil(c / 32)] words (null: all are), meets no weight. relu: y is cut at
//          zero, and y_bits gets the bits of what is not. counts[2]: nonzeros of x, multiply-adds made. scratch has
//          skip_conv_scratch bytes.
// relu_bits  y[rows, cols] = x cut at zero, bits[rows, ceil(cols / 32)] words where it is not: NaN stays.
// keep_bits  y[rows, cols] = x where the bit is set, else zero.
// read     Sums x[bytes] as words: the fastest way to touch memory once, the yardstick of the other verbs.
#define GOSSAMER_FOR_EACH_VERB(VERB)                                                                                \
  VERB(detect, void, const void* x, int64_t rows, int64_t cols, int element_size, bool is_float, int64_t bm,        \
       int64_t bn, int64_t capacity, uint64_t* flags, int64_t* offsets, void* indices, int index_size, bool cleared,  \
       int threads)                                                                                                 \
  VERB(gather, void, const void* x, int64_t rows, int64_t cols, int element_size, const int64_t* offsets,           \
       const void* indices, int index_size, int64_t bm, int64_t bn, int64_t capacity, void* values, int threads)    \
  VERB(gather_mm_scratch, int64_t, int element_size, int64_t rows, int64_t k, int64_t capacity, int64_t bk,         \
       int64_t batch, int64_t n, int threads)                                                                       \
  VERB(gather_mm, void, const void* a, int element_size, int64_t rows, int64_t k, const int64_t* offsets,            \
       const void* indices, int index_size, int64_t bm, int64_t bk, int64_t capacity, const void* b, int64_t batch,  \
       int64_t b_batch, int64_t b_row, int64_t b_col, int64_t n, void* c, void* transposed, void* scratch,           \
       int threads)                                                                                                  \
  VERB(grouped_scratch, int64_t, int element_size, int threads)                                                     \
  VERB(grouped_mm, void, const void* x, int element_size, int64_t k, const void* source, int source_size,           \
       const void* target, int target_size, const int64_t* offsets, int64_t groups, const void* weights, bool flip, \
       int64_t n, void* y, int64_t out_rows, void* scratch, int threads)                                            \
  VERB(grouped_outer, void, const void* x, int element_size, int64_t k, const void* dy, int64_t n,                  \
       const void* source, int source_size, const void* target, int target_size, const int64_t* offsets,            \
       int64_t groups, void* dw, void* scratch, int threads)                                                        \
  VERB(scatter, void, const void* values, int64_t rows, int64_t cols, int element_size, const int64_t* offsets,     \
       const void* indices, int index_size, int64_t bm, int64_t bn, int64_t capacity, void* dense, int threads)     \
  VERB(in_range, bool, const int64_t* offsets, int64_t count, bool from_zero, const void* numbers, int size,        \
       int64_t n, int64_t bound, int threads)                                                                       \
  VERB(named_once, bool, const int64_t* offsets, int64_t count, const void* numbers, int size, int64_t bound,       \
       uint64_t* bits)                                                                                              \
  VERB(repeated, int64_t, const int64_t* offsets, int64_t tile_rows, const void* indices, int index_size,           \
       int64_t tile_cols, uint64_t* bits, int threads)                                                              \
  VERB(work_in_range, int64_t, const int64_t* offsets, int64_t tile_rows, const int64_t* work, int64_t segments,    \
       uint64_t* bits)                                                                                              \
  VERB(mask, void, void* x, const uint8_t* mask, int64_t n, int element_size, int threads)                          \
  VERB(select_scratch, int64_t, int64_t n, int threads)                                                             \
  VERB(select, int64_t, const float* scores, const uint8_t* allowed, int64_t n, int64_t k, bool largest,            \
       uint8_t* mask, void* scratch, int threads)                                                                   \
  VERB(dsd_scratch, int64_t, int storage, bool in_place, const int64_t* offsets, int64_t capacity, int64_t bm,      \
       int64_t bk, int64_t rows, int64_t k, int64_t n, const int64_t* work, int64_t segments, int threads)          \
  VERB(dsd, void, const void* values, int storage, const float* scale, const int64_t* offsets, const void* indices, \
       int index_size, const void* order, int order_size, int64_t capacity, int64_t bm, int64_t bk, bool flip,      \
       int64_t rows, int64_t k, const void* b, int64_t n, int64_t b_stride, bool b_transposed, void* c,             \
       bool column_major, const int64_t* work, int64_t segments, void* scratch, int threads)                        \
  VERB(sdd, void, const void* a, int64_t a_stride, bool a_transposed, const void* b, int64_t b_stride,               \
       bool b_transposed, int64_t m, int64_t k, int64_t n, int element_size, const int64_t* offsets,                \
       const void* indices, int index_size, int64_t bm, int64_t bn, int64_t capacity, void* values, void* packed,   \
       int64_t* next, int threads)                                                                                  \
  VERB(skip_conv_weight_scratch, int64_t, const Convolution& conv, int threads)                                      \
  VERB(skip_conv_weight, void, const float* x, const float* dy, const uint32_t* bits, const Convolution& conv,       \
       float* dw, bool channels_last, int64_t* counts, void* scratch, int threads)                                   \
  VERB(transpose, void, const int64_t* offsets, const void* indices, int index_size, int64_t tile_rows,              \
       int64_t tile_cols, int64_t capacity, uint32_t* counts, int64_t* offsets_t, void* indices_t, int index_size_t, \
       int32_t* order, int threads)                                                                                 \
  VERB(skip_mv_scratch, int64_t, int64_t c)                                                                         \
  VERB(skip_mv, void, const float* x, int64_t batch, int64_t c, const void* w, bool bfloat16, int64_t k,            \
       const float* bias, float threshold, float* y, int64_t* counts, void* scratch, int threads)                   \
  VERB(gated_mv_scratch, int64_t, int64_t k)                                                                        \
  VERB(gated_mv, void, const float* x, int64_t batch, int64_t c, const void* w, bool bfloat16, int64_t k,           \
       const float* bias, const float* gate, float* y, void* scratch, int threads)                                  \
  VERB(skip_pack_outs, int64_t, int64_t out)                                                                        \
  VERB(skip_pack_lanes, int64_t, int64_t in, int64_t r)                                                             \
  VERB(skip_pack, void, const float* weight, int64_t out, int64_t in, int64_t r, int64_t s, int64_t out_stride,     \
       int64_t in_stride, int64_t r_stride, int64_t s_stride, float* packed, int threads)                           \
  VERB(skip_conv_scratch, int64_t, int64_t n, int64_t h, int64_t w, int64_t c, int64_t out, int64_t r, int64_t s,   \
       int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dil_h, int64_t dil_w,              \
       bool transposed, int64_t oh, int64_t ow, int threads)                                                        \
  VERB(skip_conv, void, const float* x, int64_t n, int64_t h, int64_t w, int64_t c, const float* packed,            \
       const float* bias, const void* bits, int64_t out, int64_t r, int64_t s, int64_t stride_h, int64_t stride_w,  \
       int64_t pad_h, int64_t pad_w, int64_t dil_h, int64_t dil_w, bool transposed, int64_t oh, int64_t ow,         \
       bool relu, float* y, void* y_bits, int64_t* counts, void* scratch, int threads)                              \
  VERB(relu_bits, void, const float* x, int64_t rows, int64_t cols, float* y, void* bits, int threads)              \
  VERB(keep_bits, void, const float* x, const void* bits, int64_t rows, int64_t cols, float* y, int threads)        \
  VERB(read, uint64_t, const void* x, int64_t bytes, int threads)

namespace gossamer {
struct Convolution {
  int64_t images, channels, outputs;
  int64_t down[6], along[6];  // size of x, size of y, taps, stride, padding, dilation
  bool skip_dy;
};
}  // namespace gossamer

#define GOSSAMER_DECLARE(name, result, ...) result name(__VA_ARGS__);
namespace gossamer {
namespace scalar {
GOSSAMER_FOR_EACH_VERB(GOSSAMER_DECLARE)
}
namespace avx2 {
GOSSAMER_FOR_EACH_VERB(GOSSAMER_DECLARE)
}
namespace avx512 {
GOSSAMER_FOR_EACH_VERB(GOSSAMER_DECLARE)
}

#define GOSSAMER_POINTER(name, result, ...) result (*name)(__VA_ARGS__);
struct Kernels {
  GOSSAMER_FOR_EACH_VERB(GOSSAMER_POINTER)
};
}  // namespace gossamer
