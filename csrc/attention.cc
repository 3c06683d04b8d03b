// Attention of texts, each within itself or over the keys that a mask lets it see.
//
// Some rows of queries meet a few hundred keys at a time: a dense product, a piece of the softmax, another dense product.
// How rows and keys are divided depends on the texts and on the mask alone, so bits depend on no number of threads.
#include "attention.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Attend {
  HeadRows q, k, v, out, lse;
  const Texts& texts;
  const AttentionSizes& sizes;
  const SeenMask& mask;
  const Plan* plan;
  float scale;
};

struct Room {
  float *queries, *keys, *values, *scores, *state;
  static int64_t floats(const AttentionSizes& sizes) {
    Places none = {nullptr};
    return Room(none, sizes).state - static_cast<float*>(nullptr) +
           whole_lines(SoftmaxRows::floats(kBlockRows, whole_vectors(sizes.value_width)));
  }
  Room(Places from, const AttentionSizes& sizes)
      : queries(from.take(row_floats(sizes.width))), keys(from.take(sizes.width * kChunkKeys)),
        values(from.take(whole_panels(sizes.value_width) * kChunkKeys)), scores(from.take(kPieceFloats)), state(from.p) {}
};

// The head that comes next, of a text so short that its rows come from memory in the time of one block.
void ask_for_head_before(const Attend& a, const RowBlock& block) {
  const int64_t t = block.text, h = block.head - 1, shared = h / (a.sizes.heads / a.sizes.key_heads);
  const float *const q = a.q.of(t, h), *const k = a.k.of(t, shared), *const v = a.v.of(t, shared);
  for (int64_t i = 0; i < block.keys; ++i)
    for (int64_t d = 0; d < a.sizes.width; d += 16) {
      __builtin_prefetch(k + i * a.k.row + d);
      __builtin_prefetch(v + i * a.v.row + d);
      if (i < block.rows) __builtin_prefetch(q + block.row(i) * a.q.row + d);
    }
}

void attend(const Attend& a, const RowBlock& block, const Room& room) {
  const int64_t t = block.text, h = block.head, shared = h / (a.sizes.heads / a.sizes.key_heads);
  const int64_t width = a.sizes.width, value_width = a.sizes.value_width;
  const SoftmaxRows state(room.state, block.rows, whole_vectors(value_width));
  const MaskRows mask(a.mask, a.texts, t, h);
  const float *const keys = a.k.of(t, shared), *const values = a.v.of(t, shared);
  load_rows(block, a.q.of(t, h), a.q.row, width, a.scale, room.queries);
  state.clear();
  if (block.keys <= kBlockRows && h > 0) ask_for_head_before(a, block);
  Chunk chunk;
  for_each_chunk(block, chunk, [&](const Chunk& some) {
    pack_across(some, keys, a.k.row, width, room.keys);
    multiply_packed(room.queries, room.keys, block.rows, width, whole_vectors(some.count), false,
                    [&](int64_t i) { return room.scores + i * kRowStride<float>; });
    for (int64_t i = 0; i < block.rows; ++i) {
      float* const scores = room.scores + i * kRowStride<float>;
      hide(block, mask, some, i, scores);
      take(state, i, scores, whole_vectors(some.count));
    }
    pack_along(some, values, a.v.row, value_width, room.values);
    multiply_packed(room.scores, room.values, block.rows, some.count, value_width, true,
                    [&](int64_t i) { return state.values + i * state.width; });
  });
  float *const out = a.out.of(t, h), *const lse = a.lse.of(t, h);
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t row = block.row(i);
    const Lanes<float> by = broadcast(state.sum[i] > 0 || state.sum[i] != state.sum[i] ? 1 / state.sum[i] : 0);
    const float* const from = state.values + i * state.width;
    float* const to = out + row * a.out.row;
    int64_t d = 0;
    for (; d + kLanes<float> <= value_width; d += kLanes<float>) store_lanes(to + d, load_lanes(from + d) * by);
    if (d < value_width) store_first(to + d, load_lanes(from + d) * by, int(value_width - d));
    lse[row * a.lse.row] = state.sum[i] == 0 ? -__builtin_inff() : state.largest[i] + __builtin_logf(state.sum[i]);
  }
}

int64_t count_blocks(const Texts& texts, const Plan* plan, const AttentionSizes& sizes) {
  int64_t count = 0;
  for (int64_t t = 0; t < texts.count; ++t)
    for (int64_t h = 0; h < sizes.heads; ++h)
      for_each_block(texts, plan, sizes.causal != 0, t, h, [&](const RowBlock&) { ++count; });
  return count;
}

}  // namespace

int64_t attention_workspace(const Texts& texts, const AttentionSizes& sizes, const SeenMask& mask, const int64_t* plan,
                            int threads) {
  if (!texts_are_right(texts)) return -1;
  const Plan made(const_cast<int64_t*>(plan), texts, mask);
  const int64_t blocks = count_blocks(texts, plan == nullptr ? nullptr : &made, sizes);
  return 128 + blocks * int64_t(sizeof(RowBlock)) + threads * Room::floats(sizes) * 4;
}

bool attention(const Heads& q, const Heads& k, const Heads& v, const Heads& out, const Heads& lse, const Texts& texts,
               const AttentionSizes& sizes, const SeenMask& mask, const int64_t* plan, float scale, void* workspace,
               int threads) {
  if (!texts_are_right(texts)) return false;
  const Plan made(const_cast<int64_t*>(plan), texts, mask);
  const Attend a = {{q, texts}, {k, texts}, {v, texts}, {out, texts}, {lse, texts},
                    texts, sizes, mask, plan == nullptr ? nullptr : &made, scale};
  int64_t* const next = static_cast<int64_t*>(workspace);
  RowBlock* const blocks = reinterpret_cast<RowBlock*>(next + 1);
  int64_t count = 0, work = 0;
  for (int64_t t = 0; t < texts.count; ++t) {
    for (int64_t h = 0; h < sizes.heads; ++h)
      for_each_block(texts, a.plan, sizes.causal != 0, t, h, [&](const RowBlock& block) { blocks[count++] = block; });
    work += rows_of(texts, t) * keys_of(texts, t) * sizes.heads;
  }
  float* const rooms = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(blocks + count) + 63) / 64 * 64);
  const int team = useful_threads(work * 4, threads);
  *next = 0;
  // The last blocks are those that see most: later rows, and global tokens. Whoever is free takes the next.
  parallel(team, team, [&](int64_t part) {
    const Room room(Places{rooms + part * Room::floats(sizes)}, sizes);
    for (int64_t at; (at = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < count;)
      attend(a, blocks[count - 1 - at], room);
  });
  return true;
}

}  // namespace gossamer::GOSSAMER_ISA
