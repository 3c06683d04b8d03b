// The gradients of attention by queries, keys and values, from the scores made again.
//
//     P = exp(scale * Q K^T - lse)     dV = P^T dO     dS = scale * P * (dO V^T - rowsum(dO * O))     dQ = dS K     dK = dS^T Q
//
// One thread has all queries of a text that share a head of keys, and adds them up in order.
#include "attention.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Differentiate {
  HeadRows dout, q, k, v, out, lse, dq, dk, dv;
  const Texts& texts;
  const AttentionSizes& sizes;
  const SeenMask& mask;
  const Plan* plan;
  float scale;
};

struct Room {
  float *queries, *queries_along, *given, *given_along, *keys, *keys_along, *values, *scores, *weights, *by_query,
      *means, *end;
  static int64_t floats(const AttentionSizes& sizes) {
    return Room(Places{nullptr}, sizes).end - static_cast<float*>(nullptr);
  }
  Room(Places from, const AttentionSizes& sizes) {
    const int64_t width = sizes.width, value_width = sizes.value_width;
    queries = from.take(row_floats(width));
    queries_along = from.take(whole_panels(width) * kBlockRows);
    given = from.take(row_floats(value_width));
    given_along = from.take(whole_panels(value_width) * kBlockRows);
    keys = from.take(width * kChunkKeys);
    keys_along = from.take(whole_panels(width) * kChunkKeys);
    values = from.take(value_width * kChunkKeys);
    scores = from.take(kPieceFloats);
    weights = from.take(kPieceFloats);
    by_query = from.take(kBlockRows * width);
    means = from.take(kBlockRows);
    end = from.p;
  }
};

// C[rows, cols] += A^T @ B, where A is [depth][kRowStride] and B is packed; row i of C is at row_of(i).
template <class RowOf>
void add_transposed(const float* a, const float* b, int64_t rows, int64_t depth, int64_t cols, const RowOf& row_of) {
  alignas(64) float columns[kTileRows * kBlockRows];
  for (int64_t r = 0, count = 0; r < rows; r += count) {
    count = next_share(rows - r, kTileRows, 1);
    float* to[kTileRows];
    for (int64_t i = 0; i < count; ++i) to[i] = row_of(r + i);
    for (int64_t j = 0; j < depth; ++j)
      memcpy(columns + j * kTileRows, a + j * kRowStride<float> + r, size_t(count) * sizeof(float));
    for (int64_t col = 0; col < cols; col += kTileCols<float>)
      multiply_tile<float, Order::kColumns, false>(count, columns, {b + col * depth, kTileCols<float>, nullptr}, depth,
                                                   to, col, least(kTileCols<float>, cols - col), true);
  }
}

// Scores become weights, and what is in `gradients` by weights becomes that by scores.
void weigh(float* scores, float* gradients, int64_t count, float lse, float mean, float scale) {
  const Lanes<float> from = broadcast(lse == -__builtin_inff() ? 0 : lse), middle = broadcast(mean);
#pragma GCC unroll 4
  for (int64_t t = 0; t < count; t += kLanes<float>) {
    const Lanes<float> p = exp_weights(load_lanes(scores + t) - from);
    store_lanes(scores + t, p);
    store_lanes(gradients + t, p * (load_lanes(gradients + t) - middle) * broadcast(scale));
  }
}

void differentiate(const Differentiate& a, const RowBlock& block, int64_t shared, const Room& room) {
  const int64_t t = block.text, h = block.head, width = a.sizes.width, value_width = a.sizes.value_width;
  const MaskRows mask(a.mask, a.texts, t, h);
  const float *const q = a.q.of(t, h), *const k = a.k.of(t, shared), *const v = a.v.of(t, shared);
  const float *const dout = a.dout.of(t, h), *const out = a.out.of(t, h), *const lse = a.lse.of(t, h);
  float *const dk = a.dk.of(t, shared), *const dv = a.dv.of(t, shared), *const dq = a.dq.of(t, h);
  load_rows(block, q, a.q.row, width, a.scale, room.queries);
  load_rows(block, dout, a.dout.row, value_width, 1, room.given);
  pack_rows(room.queries_along, [&](int64_t i) { return q + block.row(i) * a.q.row; }, block.rows, width);
  pack_rows(room.given_along, [&](int64_t i) { return dout + block.row(i) * a.dout.row; }, block.rows, value_width);
  for (int64_t i = 0; i < block.rows; ++i) {
    const float *const x = dout + block.row(i) * a.dout.row, *const y = out + block.row(i) * a.out.row;
    Lanes<float> sum = {};
    for (int64_t d = 0; d < value_width; d += kLanes<float>) {
      const int left = int(least(kLanes<float>, value_width - d));
      sum = fma(load_first(x + d, left), load_first(y + d, left), sum);
    }
    room.means[i] = sum_lanes<float>(sum);
  }
  memset(room.by_query, 0, size_t(block.rows * width) * sizeof(float));
  Chunk chunk;
  for_each_chunk(block, chunk, [&](const Chunk& some) {
    const auto scores = [&](int64_t i) { return room.scores + i * kRowStride<float>; };
    const auto weights = [&](int64_t i) { return room.weights + i * kRowStride<float>; };
    pack_across(some, k, a.k.row, width, room.keys);
    pack_across(some, v, a.v.row, value_width, room.values);
    pack_along(some, k, a.k.row, width, room.keys_along);
    multiply_packed(room.queries, room.keys, block.rows, width, whole_vectors(some.count), false, weights);
    multiply_packed(room.given, room.values, block.rows, value_width, whole_vectors(some.count), false, scores);
    for (int64_t i = 0; i < block.rows; ++i) {
      hide(block, mask, some, i, weights(i));
      weigh(weights(i), scores(i), some.count, lse[block.row(i) * a.lse.row], room.means[i], a.scale);
    }
    add_transposed(room.weights, room.given_along, some.count, block.rows, value_width,
                   [&](int64_t j) { return dv + some.key[j] * a.dv.row; });
    add_transposed(room.scores, room.queries_along, some.count, block.rows, width,
                   [&](int64_t j) { return dk + some.key[j] * a.dk.row; });
    multiply_packed(room.scores, room.keys_along, block.rows, some.count, width, true,
                    [&](int64_t i) { return room.by_query + i * width; });
  });
  for (int64_t i = 0; i < block.rows; ++i)
    memcpy(dq + block.row(i) * a.dq.row, room.by_query + i * width, size_t(width) * sizeof(float));
}

}  // namespace

int64_t attention_backward_workspace(const AttentionSizes& sizes, int threads) {
  return 128 + threads * Room::floats(sizes) * 4;
}

bool attention_backward(const Heads& dout, const Heads& q, const Heads& k, const Heads& v, const Heads& out,
                        const Heads& lse, const Heads& dq, const Heads& dk, const Heads& dv, const Texts& texts,
                        const AttentionSizes& sizes, const SeenMask& mask, const int64_t* plan, float scale,
                        void* workspace, int threads) {
  if (!texts_are_right(texts)) return false;
  const Plan made(const_cast<int64_t*>(plan), texts, mask);
  const Differentiate a = {{dout, texts}, {q, texts}, {k, texts}, {v, texts}, {out, texts},
                           {lse, texts}, {dq, texts}, {dk, texts}, {dv, texts},
                           texts, sizes, mask, plan == nullptr ? nullptr : &made, scale};
  int64_t* const next = static_cast<int64_t*>(workspace);
  float* const rooms = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(next + 1) + 63) / 64 * 64);
  const int64_t group = sizes.heads / sizes.key_heads, tasks = texts.count * sizes.key_heads;
  int64_t work = 0;
  for (int64_t t = 0; t < texts.count; ++t) work += rows_of(texts, t) * keys_of(texts, t) * sizes.heads;
  const int team = useful_threads(work * 4, threads);
  *next = 0;
  parallel(team, team, [&](int64_t part) {
    const Room room(Places{rooms + part * Room::floats(sizes)}, sizes);
    for (int64_t at; (at = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < tasks;) {
      const int64_t t = at / sizes.key_heads, shared = at % sizes.key_heads, keys = keys_of(texts, t);
      for (int64_t j = 0; j < keys; ++j) {
        memset(a.dk.of(t, shared) + j * a.dk.row, 0, size_t(sizes.width) * sizeof(float));
        memset(a.dv.of(t, shared) + j * a.dv.row, 0, size_t(sizes.value_width) * sizeof(float));
      }
      for (int64_t h = shared * group; h < (shared + 1) * group; ++h)
        for_each_block(texts, a.plan, sizes.causal != 0, t, h,
                       [&](const RowBlock& block) { differentiate(a, block, shared, room); });
    }
  });
  return true;
}

}  // namespace gossamer::GOSSAMER_ISA
