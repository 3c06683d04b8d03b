// The ops: one list, from which their declarations, the dispatch tables and Python's bindings are expanded.
#pragma once
#include <stdint.h>

// The ops of page_attention.cc: an instruction set may have its own code for these and that of its base for all others.
#define GOSSAMER_PAGE_ATTENTION(OP)                                                                                   \
  OP(page_attention_workspace, int64_t, const Pages& pages, const Requests& requests, const AttentionShape& shape,    \
     const int64_t* first_heads, const PageLists& lists, int threads)                                                 \
  OP(page_attention, bool, const float* q, const Pages& pages, const Requests& requests, const AttentionShape& shape, \
     const int64_t* first_heads, const PageLists& lists, float scale, float cap, float* out, float* lse,              \
     void* workspace, int threads)

// Matrices are contiguous, row-major, `rows` x `cols` elements. Edge tiles may be ragged. Nothing here allocates: a
// `workspace` has as many bytes as the function X_workspace says. What is bool is false, and what it wrote is worthless,
// where structure was broken: each number of an index is compared with its bound before it becomes an address.
//
// detect   Which tiles of x hold an element with a bit set, the sign of floats apart: -0.0 is zero, NaN is not.
//          flags is workspace: tile_rows * (ceil(tile_cols / 64) + 1) words, one bit a tile and a count. offsets[tile_rows
//          + 1] gets the true counts, indices[capacity] the first `capacity` tile columns, then zeros, unless the
//          caller has cleared what lies behind them, or will.
// gather   values[capacity, bm, bn] = the present tiles of x; slots past the pattern and ragged padding are zero.
// scatter  dense[rows, cols] = the tiles of values[capacity, bm, bn] in their places, zero elsewhere.
// gather_mm  c[rows, n] = (a[rows, k] at the tiles of an index, zero elsewhere) @ b[batch, k, n]: matrix i of b begins
//          i * b_batch elements after the first, meets rows [i, i + 1) * rows / batch, and no tile row straddles two.
//          transposed, if not null, gets [n, rows]; c is needed all the same. False also if a tile is named twice.
// grouped_mm  y[target[p]] = x[source[p]] @ weights[g] for p in [offsets[g], offsets[g + 1]), zero in other rows of
//          y[out_rows, n]; weights are [groups, k, n], with transposed [groups, n, k]. source, target: entries of 4 or 8
//          bytes, or null, which is p itself; there are `positions` of both. False also if a row of y is named twice.
// grouped_outer  dw[g][k, n] = the sum over p of x[source[p]]^T dy[target[p]].
// repeated  The first tile row of a checked index that lists a column twice, or -1. bits: one for each tile column.
// work_in_range  How many slots a work partition names; -1 if a row does not exist, a slot is not in the row that it
//          is said to be in, or is named twice. bits: one for each slot.
// mask     Zeroes, by bits, every element of x[n] where mask[n] is false.
// select   mask[n] = the k highest (or lowest) of scores[n] among those allowed (null: all); equal scores are taken in
//          order of index. Returns how many were taken, or -1 if an allowed score is NaN.
// dsd      c[rows, n] = S @ b[k, n] where S[rows, k] has the tile values[order[slot]] (null order: values[slot];
//          transposed: stored as bk x bm) times scale (null: 1) at each slot; what lies outside S, in slack or in padding
//          is never read as a number. storage is 0 float, 1 double, 2 bfloat16, 3 int8; b and c are double with double
//          tiles, else float. column_major: c is [n, rows]. work[segments, 3], or null, holds (tile row, slot, end): the
//          sums of a tile row's segments are added in their order; tile row -1 is none.
// dsd_workspace  -1 if the offsets are broken; -2 if work does not name every slot once, in ascending order, and nobody
//          has checked it otherwise (work_checked). in_place: no order, no scale, and b's type.
// fan_in_mm  y[rows, batch]: y[r, b] = the sum over j of values[r, k] * x[b, indices[r, k]], of a matrix rows x cols each of
//          whose rows has k elements; x is [batch, cols].
// fan_in_mm_t  dx[batch, cols] = dy[batch, rows] times that matrix: the gradient of fan_in_mm by x. Every row's share is added
//          in order of rows, in parts that depend on their number only.
// fan_in_sdd  values[rows, k]: values[r, j] = the sum over b of dy[b, r] * x[b, indices[r, j]]: the gradient by the values.
// fan_in_step  One step of training, in place, of a classifier whose label l has the logits bias[l] (null: 0) + the sum over j
//          of values[l, j] * x[b, indices[l / group, j]]. positives[count] ascend: label * batch + row. loss: 0 BCE, 1 squared
//          hinge. optimizer: 0 SGD, 1 momentum, 2 Adam, whose states may not be null. Writes grad_x[batch, cols] and the
//          loss; where it returns false it has written nothing.
// fan_in_topk  scores[batch, best], ids: of each row of x[batch, cols] the best labels, first + 0, first + 1, ..., by score
//          (x's product with the label's row, plus its bias), equal ones in order of label, without the excluded ones;
//          -inf and -1 where there are too few. Returns -1, or -2 if structure was broken, or a label whose score is NaN.
// fan_in_rewire  Takes the weakest connections of the labels away and gives as many others: drop of each row of indices, or
//          with `everywhere` of all; if drop < 0 all whose magnitude is below the threshold. Rows stay ascending. New values
//          are within init of 0, new states 0. Returns how many went, or -1 if a row of indices or candidates does not
//          ascend, names no column, or both name one: then nothing was written.
// fan_in_draw  out[rows, k]: k of cols columns, ascending, for the rows first + 0, first + 1, ..., none of those in
//          taken[rows, count] (null: count is 0), which ascend or the answer is false; k + count <= cols.
// sdd      values[capacity, bm, bn] = the present tiles of a[m, k] @ b[k, n], float or double; slots past the pattern and
//          ragged padding are zero. packed is workspace: k * m elements if a is transposed and k * n more if b is not.
//          next is workspace: tile_rows + 1 + threads entries.
// skip_conv_weight  dw[outputs, channels, taps down, taps along], or with channels_last [outputs, taps down, taps along,
//          channels], of a convolution of x[images, in down, in along, channels] by dy[images, out down, out along,
//          outputs], skipping the zeros of x or of dy. bits, or null: [images, out down, out along, ceil(outputs / 32)], an
//          element of dy whose bit is 0 counts as zero. counts[0]: nonzeros of the one skipped, where no stride steps over
//          them; counts[1]: products of numbers made with them; counts[2]: elements among which counts[0] are not zero.
// transpose  The index of the transposed pattern. Rows ascend inside each row of offsets_t[tile_cols + 1]; order[s] is the
//          slot that slot s of the transposed pattern has in this one, s itself in the slack. counts is workspace:
//          threads * tile_cols entries.
// skip_mv  y[batch, k] = bias (null: 0) + x[batch, c] @ w[c, k], without the elements of x within threshold of zero. A row
//          of w that none of eight rows of x needs is not read. type of w: 0 float, 1 bfloat16, 2 float16; counts[1]
//          gets the elements of x that were used.
// gated_mv  y[batch, k] = gate * (x[batch, c] @ w[k, c]^T + bias), 0 where the gate is 0. A row of w whose gates are 0 for
//          eight rows of x is not read.
// few_rows  y[rows, n] = x[rows, k] @ w[n, k]^T + bias (null: 0), for rows so few that reading w takes the time. type of w: 0
//          float, 1 bfloat16, 2 float16, 3 double; the others are double with doubles, else float.
// open_mv  gate[batch, k] = 0 where scale * (x[batch, c] . q[k, c]) + slack * |x| < -bias (null: 0), 1 elsewhere and where
//          that is no number. norms is workspace: batch entries.
// skip_pack  The weights of a convolution, [outputs, channels, r, s] with strides in elements, as skip_conv reads them:
//          [groups][ceil(channels / lanes)][r][lanes][s][skip_pack_outs(outputs)] floats, groups of outputs, zero where
//          there is no weight; lanes are skip_pack_lanes(channels, r).
// skip_conv  y[images, out down, out along, outputs] of x[images, in down, in along, channels]: the convolution, or with
//          `transposed` the gradient by the input of one whose output is x (then `packed` has its input channels as
//          outputs). A zero of x, or an element whose bit is not set in bits[images, in down, in along, ceil(channels /
//          32)] words (null: all are), meets no weight. relu: y is cut at zero, and y_bits gets the bits of what is not.
//          counts[2]: nonzeros of x, multiply-adds made.
// page_append  Writes the keys and values of new tokens, [tokens, key_heads, width], of the heads sources[pages.heads] into
//          the pages of their requests, their sketches, and then the summaries of the stretches of keys that they are in.
//          Where it returns false it has written nothing.
// page_attention  out[tokens, query_heads, width]: softmax(scale * q @ keys^T) @ values of each new token over the keys that
//          it sees: of the pages that the list of its block names (null: all) those at its own place and before, of which
//          the first `sink` and the last `window`, itself among these. Head h of the pages serves query heads
//          first_heads[h] + [0, group); the others of out are left alone. cap > 0: scores are cap * tanh(score / cap). lse
//          [tokens, query_heads], or null: the logarithm of the sum of exp(score).
// attention  out = softmax(scale * q @ k^T) @ v of each text and head, and lse, the logarithm of the sum of exp(score); rows
//          that see nothing are 0 and minus infinity. plan, or null: the keys that rows see, made by attention_plan, which
//          returns rows * keys of all its blocks, or -1 if a place is none of the mask.
// attention_backward  The gradients by q, k and v.
// page_scores  scores[requests, query_heads, table_cols]: for each page of a request the largest product of a query's
//          form[requests, query_heads, 2 * width] with the summaries of that page; -inf where there is none.
// page_key_scores  The same of q[requests, query_heads, width] with the sketches of single keys. q is rounded to 8 bits, so
//          the sums are of integers, and exact.
// page_choose  chosen[requests, heads, count], or with `together` false [requests, heads * group, count]: of each request the
//          pages of the highest scores[requests, query_heads, cols], ascending; of equal ones the earlier. Together, what
//          counts is the highest of a group. The first page and the newest are always among them; NaN is as -inf.
// relu_bits  y[rows, cols] = x cut at zero, bits[rows, ceil(cols / 32)] words where it is not: NaN stays.
// keep_bits  y[rows, cols] = x where the bit is set, else zero.
// reorder  y[batch][cols, rows] = x[batch][rows, cols]: each matrix of a batch is transposed.
// read     Sums x[bytes] as words: the fastest way to touch memory once, the yardstick of the other ops.
#define GOSSAMER_FOR_EACH_OP(OP)                                                                                      \
  OP(detect, void, const void* x, int64_t rows, int64_t cols, int element_size, bool is_float, int64_t bm,            \
     int64_t bn, int64_t capacity, uint64_t* flags, int64_t* offsets, void* indices, int index_size, bool cleared,    \
     int threads)                                                                                                     \
  OP(gather, bool, const void* x, int element_size, const Index& index, void* values, int threads)                    \
  OP(scatter, bool, const void* values, int element_size, const Index& index, void* dense, int threads)               \
  OP(gather_mm_workspace, int64_t, int element_size, const Index& index, int64_t batch, int64_t n, int threads)       \
  OP(gather_mm, bool, const void* a, int element_size, const Index& index, const Operand& b, int64_t batch,           \
     int64_t b_batch, int64_t n, void* c, void* transposed, void* workspace, int threads)                             \
  OP(grouped_workspace, int64_t, int element_size, int64_t out_rows, int threads)                                     \
  OP(grouped_mm, bool, const void* x, int element_size, int64_t x_rows, int64_t k, const void* source,                \
     int source_size, const void* target, int target_size, int64_t positions, const int64_t* offsets, int64_t groups, \
     const void* weights, bool transposed, int64_t n, void* y, int64_t out_rows, void* workspace, int threads)        \
  OP(grouped_outer, bool, const void* x, int element_size, int64_t x_rows, int64_t k, const void* dy,                 \
     int64_t dy_rows, int64_t n, const void* source, int source_size, const void* target, int target_size,            \
     int64_t positions, const int64_t* offsets, int64_t groups, void* dw, void* workspace, int threads)               \
  OP(repeated, int64_t, const Index& index, uint64_t* bits, int threads)                                              \
  OP(work_in_range, int64_t, const Index& index, const int64_t* work, int64_t segments, uint64_t* bits)               \
  OP(mask, void, void* x, const uint8_t* mask, int64_t n, int element_size, int threads)                              \
  OP(select_workspace, int64_t, int64_t n, int threads)                                                               \
  OP(select, int64_t, const float* scores, const uint8_t* allowed, int64_t n, int64_t k, bool largest, uint8_t* mask, \
     void* workspace, int threads)                                                                                    \
  OP(dsd_workspace, int64_t, int storage, bool in_place, const Index& index, int64_t n, const int64_t* work,          \
     int64_t segments, bool work_checked, int threads)                                                                \
  OP(dsd, bool, const void* values, int storage, const float* scale, const Index& index, const void* order,           \
     int order_size, bool transposed, const Operand& b, int64_t n, void* c, bool column_major, const int64_t* work,   \
     int64_t segments, void* workspace, int threads)                                                                  \
  OP(fan_in_mm_workspace, int64_t, int element_size, int64_t batch, int64_t cols)                                     \
  OP(fan_in_mm, bool, const Operand& x, int64_t batch, int64_t cols, const void* values, int element_size,            \
     const void* indices, int index_size, int64_t rows, int64_t k, void* y, void* workspace, int threads)             \
  OP(fan_in_mm_t_workspace, int64_t, int element_size, int64_t batch, int64_t rows, int64_t cols, int64_t k,          \
     int threads)                                                                                                     \
  OP(fan_in_mm_t, bool, const Operand& dy, int64_t batch, int64_t rows, const void* values, int element_size,         \
     const void* indices, int index_size, int64_t k, void* dx, int64_t cols, void* workspace, int threads)            \
  OP(fan_in_sdd_workspace, int64_t, int element_size, int64_t batch, int64_t cols)                                    \
  OP(fan_in_sdd, bool, const Operand& dy, const Operand& x, int64_t batch, int64_t rows, int64_t cols,                \
     int element_size, const void* indices, int index_size, int64_t k, void* values, void* workspace, int threads)    \
  OP(fan_in_step_workspace, int64_t, const Classifier& c, int threads)                                                \
  OP(fan_in_step, bool, const Operand& x, const Classifier& c, const Parameters& at, const int64_t* positives,        \
     int64_t count, int loss, int optimizer, float scale, float rate, float decay, float beta1, float gain1,          \
     float beta2, float gain2, float root, float eps, int64_t seed, int64_t step, float* grad_x, double* total,       \
     void* workspace, int threads)                                                                                    \
  OP(fan_in_topk_workspace, int64_t, const Classifier& c, int64_t best, int threads)                                  \
  OP(fan_in_topk, int64_t, const Operand& x, const Classifier& c, const Parameters& at, int64_t first,                \
     const Excluded& excluded, int64_t best, float* scores, int64_t* ids, void* workspace, int threads)               \
  OP(fan_in_rewire_workspace, int64_t, const Classifier& c, const Rewiring& how, int threads)                         \
  OP(fan_in_rewire, int64_t, const Classifier& c, const Parameters& at, const Rewiring& how, float threshold,         \
     float init, void* workspace, int threads)                                                                        \
  OP(fan_in_draw, bool, void* out, int index_size, int64_t rows, int64_t k, int64_t cols, const void* taken,          \
     int64_t count, int64_t seed, int64_t step, int64_t first, int threads)                                           \
  OP(sdd, bool, const Operand& a, const Operand& b, int64_t k, int element_size, const Index& index, void* values,    \
     void* packed, int64_t* next, int threads)                                                                        \
  OP(skip_conv_weight_workspace, int64_t, const Convolution& conv, bool skip_dy, int threads)                         \
  OP(skip_conv_weight, void, const float* x, const float* dy, const uint32_t* bits, const Convolution& conv,          \
     bool skip_dy, float* dw, bool channels_last, int64_t* counts, void* workspace, int threads)                      \
  OP(transpose, bool, const Index& index, uint32_t* counts, int64_t* offsets_t, void* indices_t, int index_size_t,    \
     int32_t* order, int threads)                                                                                     \
  OP(skip_mv_workspace, int64_t, int64_t c)                                                                           \
  OP(skip_mv, void, const float* x, int64_t batch, int64_t c, const void* w, int type, int64_t k,                     \
     const float* bias, float threshold, float* y, int64_t* counts, void* workspace, int threads)                     \
  OP(gated_mv_workspace, int64_t, int64_t k)                                                                          \
  OP(gated_mv, void, const float* x, int64_t batch, int64_t c, const void* w, int type, int64_t k,                    \
     const float* bias, const float* gate, float* y, void* workspace, int threads)                                    \
  OP(few_rows, void, const void* x, int64_t rows, int64_t k, const void* w, int type, int64_t n, const void* bias,    \
     void* y, int threads)                                                                                            \
  OP(open_mv, void, const float* x, int64_t batch, int64_t c, const int8_t* q, const float* scale,                    \
     const float* slack, int64_t k, const float* bias, float* gate, float* norms, int threads)                        \
  OP(skip_pack_outs, int64_t, int64_t outputs)                                                                        \
  OP(skip_pack_lanes, int64_t, int64_t channels, int64_t r)                                                           \
  OP(skip_pack, void, const float* weight, int64_t outputs, int64_t channels, int64_t r, int64_t s,                   \
     int64_t out_stride, int64_t in_stride, int64_t r_stride, int64_t s_stride, float* packed, int threads)           \
  OP(skip_conv_workspace, int64_t, const Convolution& conv, bool transposed, int threads)                             \
  OP(skip_conv, void, const float* x, const float* packed, const float* bias, const void* bits,                       \
     const Convolution& conv, bool transposed, bool relu, float* y, void* y_bits, int64_t* counts, void* workspace,   \
     int threads)                                                                                                     \
  OP(page_append, bool, const float* keys, const float* values, int64_t key_heads, const int64_t* sources,             \
     const Pages& pages, const Requests& requests, const Summaries& extremes, const Summaries& moments,               \
     const KeyCodes& sketches, int threads)                                                                           \
  GOSSAMER_PAGE_ATTENTION(OP)                                                                                         \
  OP(attention_plan_size, int64_t, const Texts& texts, const SeenMask& mask)                                         \
  OP(attention_plan, int64_t, const Texts& texts, const SeenMask& mask, int64_t* plan, int threads)                  \
  OP(attention_workspace, int64_t, const Texts& texts, const AttentionSizes& sizes, const SeenMask& mask,             \
     const int64_t* plan, int threads)                                                                                \
  OP(attention, bool, const Heads& q, const Heads& k, const Heads& v, const Heads& out, const Heads& lse,             \
     const Texts& texts, const AttentionSizes& sizes, const SeenMask& mask, const int64_t* plan, float scale,         \
     void* workspace, int threads)                                                                                    \
  OP(attention_backward_workspace, int64_t, const AttentionSizes& sizes, int threads)                                 \
  OP(attention_backward, bool, const Heads& dout, const Heads& q, const Heads& k, const Heads& v, const Heads& out,   \
     const Heads& lse, const Heads& dq, const Heads& dk, const Heads& dv, const Texts& texts,                         \
     const AttentionSizes& sizes, const SeenMask& mask, const int64_t* plan, float scale, void* workspace,            \
     int threads)                                                                                                     \
  OP(page_scores, bool, const float* form, int64_t query_heads, int64_t group, const int64_t* first_heads,            \
     const Pages& pages, const Requests& requests, const Summaries& summaries, float* scores, int threads)            \
  OP(page_key_scores, bool, const float* q, int64_t query_heads, int64_t group, const int64_t* first_heads,           \
     const Pages& pages, const Requests& requests, const KeyCodes& codes, float* scores, int threads)                 \
  OP(page_choose, bool, const float* scores, int64_t query_heads, int64_t group, const int64_t* first_heads,          \
     int64_t heads, bool together, const int64_t* lengths, int64_t requests, int64_t cols, int64_t page,              \
     int64_t count, int32_t* chosen, int threads)                                                                     \
  OP(relu_bits, void, const float* x, int64_t rows, int64_t cols, float* y, void* bits, int threads)                  \
  OP(keep_bits, void, const float* x, const void* bits, int64_t rows, int64_t cols, float* y, int threads)            \
  OP(reorder, void, const float* x, int64_t batch, int64_t rows, int64_t cols, float* y, int threads)                 \
  OP(read, uint64_t, const void* x, int64_t bytes, int threads)

namespace gossamer {

// What several numbers say together. Every field has the size of an int64_t: Python passes a tuple of integers.

// The tiles bm x bn that are present in a matrix rows x cols: row i of tiles owns the slots [offsets[i], offsets[i + 1]),
// and a slot names its tile column. There are `capacity` slots, of which those past the last offset are slack.
struct Index {
  const int64_t* offsets;
  const void* indices;
  int64_t index_size, capacity, rows, cols, bm, bn;
};

// A matrix with a unit stride: `stride` elements from a row to the next or, if transposed, from a column to the next.
struct Operand {
  const void* address;
  int64_t stride, transposed;
};

// One axis of a convolution, and a convolution: of x[images, down.in, along.in, channels] to y[.., down.out, along.out,
// outputs].
struct Axis {
  int64_t in, out, taps, stride, padding, dilation;
};
struct Convolution {
  int64_t images, channels, outputs;
  Axis down, along;
};

// A classifier with k inputs for each label, `group` labels sharing them; value_size is 4 (float) or 2 (bfloat16).
struct Classifier {
  int64_t batch, cols, labels, k, group, index_size, value_size;
};
// What a step of training reads and writes; null where there is none.
struct Parameters {
  void* values;
  const void* indices;
  float *bias, *first, *second, *bias_first, *bias_second;
};

// Labels that must not be found: ids[offsets[b], offsets[b + 1]) by row b (`count` of them; null offsets: none), and
// always[always_count] by any. Each list ascends.
struct Excluded {
  const int64_t* offsets;
  const int64_t* ids;
  int64_t count;
  const int64_t* always;
  int64_t always_count;
};

// Which connections go and what comes. What belongs to a connection moves with it, also ages[rows of indices, k] or null,
// which count how often it stayed, and protect it below min_age. Of
// candidates[rows, candidate_count] those with the largest |scores| are grown; a negative count: any free input, without
// avoid_dropped also one that has just gone. seed, step and the number of the first label choose the random numbers.
struct Rewiring {
  int64_t drop, everywhere, avoid_dropped;
  uint8_t* ages;
  int64_t min_age;
  const void* candidates;
  const float* scores;
  int64_t candidate_count;
  int64_t seed, step, first;
};

// Keys and values of many requests, in `count` pages of `page` tokens for each of `heads` heads: head h of page i is the tile
// t = i * heads + h, keys[t][width][page] and values[t][page][width]. storage: 0 float, 2 bfloat16, 4 half; or codes of a
// byte (3) or four bits (5) with scales[t][2][page] in bfloat16: x = code * scale + zero. Keys are `KeyCodes` then.
struct Pages {
  void *keys, *values, *key_scales, *value_scales;
  int64_t count, heads, width, page, storage;
};

// Request r has the new tokens [offsets[r], offsets[r + 1]), which are the last of the lengths[r] that it has then. Its
// tokens [i * page, (i + 1) * page) are in the page table[r, i].
struct Requests {
  const int64_t *offsets, *lengths;
  const int32_t* table;
  int64_t count, tokens, table_cols;
};

// What is kept of each stretch of keys in a page: bfloat16 [tile][page / stretch][2][width], the largest and the least of
// each coordinate, or its mean and variance. No summaries: the address is null.
struct Summaries {
  void* address;
  int64_t stretch;
};

// Keys as codes, [tile][plane][width / 8][page][4] bytes: byte i of a token has the bits of coordinate 8 j + i in its lower
// half and those of 8 j + 4 + i in its upper. One plane has codes of four bits; of two the first has the upper bits of
// codes of eight, so that it can be read alone. Scales as those of a page. None: the addresses are null.
struct KeyCodes {
  void *codes, *scales;
  int64_t planes;
};

// Pages that each `list_tokens` tokens of a request and each head look at: row (block of tokens, head) owns
// pages[offsets[row], offsets[row + 1]), int32, which ascend.
struct PageLists {
  const int64_t* offsets;
  const void* pages;
  int64_t rows, capacity;
};
struct AttentionShape {
  int64_t query_heads, group, list_tokens, window, sink;
};

// Texts whose tokens lie one behind the other, text t in rows [offsets[t], offsets[t + 1]) of `rows`, each with as many keys;
// or, without offsets, texts of `rows` queries and `cols` keys each.
struct Texts {
  const int64_t* offsets;
  int64_t count, rows, cols;
};
// Floats [text][row][head][width], whose last dimension is contiguous; strides in elements. That of texts is not looked at
// where they are packed.
struct Heads {
  void* address;
  int64_t text, row, head;
};
// `heads` of queries, of which heads / key_heads in a row share one of keys and values. causal: a row sees those up to it.
struct AttentionSizes {
  int64_t heads, key_heads, width, value_width, causal;
};
// What is seen, [texts or 1][heads or 1][rows or 1][cols] by strides in elements (0 for one): bytes that are not 0, or
// floats to be added to scores. places, or null: the row and column, below `size`, of each packed token.
struct SeenMask {
  const void* address;
  int64_t is_float, text_planes, head_planes, text, head, row, col;
  const int64_t* places;
  int64_t size;
};

#define GOSSAMER_DECLARE(name, result, ...) result name(__VA_ARGS__);
#ifdef GOSSAMER_ISA
namespace GOSSAMER_ISA {
GOSSAMER_FOR_EACH_OP(GOSSAMER_DECLARE)
}
#endif

}  // namespace gossamer
