// Attention of new tokens over keys and values in pages.
//
// Queries of one key head and a few tokens meet a page together, so that it is read from memory once: two dense products
// with the softmax between them, both straight from the page (keys lie transposed in it). Few queries, as in decoding, are
// divided along their pages instead. A softmax runs over chunks of pages that lie at fixed places, which are added in
// order: so bits depend neither on threads, nor on what is in the batch, nor on how a prompt is cut.
#include "page_attention.h"

#if defined(GOSSAMER_AVX512_BF16)
#include "page_weights.h"
#endif

namespace gossamer::GOSSAMER_ISA {
namespace {

// A share of the work: a block of queries with some entries of its list, or with the pages [from, to).
struct Task {
  QueryBlock block;
  int64_t from, to;
  int64_t partial, chunk, chunks;  // where the sums of this chunk go, its number, and how many there are; 0: not divided
};

struct Attend {
  const float* q;
  PageTiles pages;
  PagedRequests requests;
  const AttentionShape& shape;
  const int64_t* first_heads;
  const int64_t* list_offsets;
  const int32_t* list;
  float scale, cap;
  float *out, *lse;

  Sight sight() const { return {pages.page, shape.window, shape.sink}; }
  // Row r of a block among all rows of q.
  int64_t place_of(const QueryBlock& b, int64_t r) const {
    return (b.token + r / b.heads) * shape.query_heads + b.head + r % b.heads;
  }
  template <class F>
  void for_each_block(const F& f) const {
    const int64_t most = most_rows(pages), together = shape.group < most ? most / shape.group : 1;
    const int64_t step = least(together, shape.list_tokens);
    int64_t row = 0;
    for (int64_t r = 0; r < requests.count; ++r) {
      const int64_t n = requests.tokens_of(r);
      for (int64_t begin = 0; begin < n; begin += shape.list_tokens, row += pages.heads)
        for (int64_t at = begin; at < least(n, begin + shape.list_tokens); at += step)
          for (int64_t h = 0; h < pages.heads; ++h)
            for (int64_t g = 0; g < shape.group; g += most) {
              const int64_t tokens = least(step, least(n, begin + shape.list_tokens) - at);
              QueryBlock b = {r, requests.offsets[r] + at, tokens, h, first_heads[h] + g,
                              least(most, shape.group - g), requests.first_place(r) + at, -1, -1};
              if (list != nullptr) {
                b.list = list_offsets[row + h];
                b.list_end = list_offsets[row + h + 1];
              }
              f(b);
            }
    }
  }

  // Calls f(from, to) for the chunks of a block that it may see, in order.
  template <class F>
  void for_each_chunk(const QueryBlock& b, const F& f) const {
    if (b.list >= 0) {
      for (int64_t at = b.list; at < b.list_end;) {
        const int64_t from = at, chunk = list[at] / kChunkPages;
        while (at < b.list_end && list[at] / kChunkPages == chunk) ++at;
        f(from, at);
      }
      return;
    }
    const int64_t end = b.last_place() / pages.page + 1, sinks = least(end, ceil_div(shape.sink, pages.page));
    const int64_t oldest = b.first_place - shape.window + 1, recent = oldest > 0 ? oldest / pages.page : 0;
    for (int64_t from = 0; from < end; from = (from / kChunkPages + 1) * kChunkPages) {
      if (from >= sinks && from < recent) from = recent;
      if (from < end) f(from, least(end, (from / kChunkPages + 1) * kChunkPages));
    }
  }

  // Fills tasks, if there are any to fill; returns their number, and that of the floats that chunks need.
  int64_t plan(Task* tasks, int64_t* floats) const {
    int64_t count = 0;
    *floats = 0;
    for_each_block([&](const QueryBlock& b) {
      int64_t chunks = 0;
      if (b.rows() <= kFewRows) for_each_chunk(b, [&](int64_t, int64_t) { ++chunks; });
      if (chunks < 2) {
        if (tasks != nullptr) tasks[count] = {b, 0, 0, 0, 0, 0};
        ++count;
        return;
      }
      int64_t chunk = 0;
      for_each_chunk(b, [&](int64_t from, int64_t to) {
        if (tasks != nullptr) tasks[count] = {b, from, to, *floats, chunk, chunks};
        ++chunk;
        ++count;
        *floats += SoftmaxRows::floats(b.rows(), pages.width);
      });
    });
    return count;
  }
};

// What one thread works with: each part begins at a cache line.
struct Room {
  float *queries, *scores, *stage, *sums, *chunk, *total;
  static constexpr int64_t kStride = kRowFloats;

  static int64_t floats(const PageTiles& pages) {
    const int64_t width = pages.width, rows = most_rows(pages);
    return 2 * kMostRows * kStride + (width + 16) * pages.page + kMostRows + 2 * SoftmaxRows::floats(rows, width);
  }
  Room(float* p, const PageTiles& pages) {
    const int64_t width = pages.width, page = pages.page;
    queries = p;
    scores = queries + kMostRows * kStride;
    stage = scores + kMostRows * kStride;
    sums = stage + (width + 16) * page;  // pairs have an even number of rows of tiles
    chunk = sums + kMostRows;
    total = chunk + SoftmaxRows::floats(most_rows(pages), width);
  }
};

void load_queries(const Attend& a, const QueryBlock& b, const Room& room) {
  const int64_t width = a.pages.width;
  for (int64_t t = 0; t < b.tokens; ++t)
    for (int64_t g = 0; g < b.heads; ++g) {
      const float* const from = a.q + ((b.token + t) * a.shape.query_heads + b.head + g) * width;
      float* const to = room.queries + (t * b.heads + g) * Room::kStride;
      Lanes<float> sum = {};
      for (int64_t d = 0; d < width; d += kLanes<float>) {
        const Lanes<float> x = load_lanes(from + d) * broadcast(a.scale);
        store_lanes(to + d, x);
        sum += x;
      }
      room.sums[t * b.heads + g] = sum_lanes<float>(sum);
    }
}

// Products with codes become those with numbers, x = code * scale + zero: scores of keys ...
void decode_scores(float* scores, const BFloat16* scale, int64_t page, float query_sum) {
  for (int64_t t = 0; t < page; t += kLanes<float>)
    store_lanes(scores + t, fma(load_lanes(scores + t), load_weights(scale + t),
                                load_weights(scale + page + t) * broadcast(query_sum)));
}

// ... and weights of values, of which the first `seen` are not zero. Returns what the zeros add to each coordinate.
float decode_weights(float* weights, const BFloat16* scale, int64_t page, int64_t seen) {
  Lanes<float> sum = {};
  for (int64_t t = 0; t < seen; t += kLanes<float>) {
    const int count = int(least(kLanes<float>, seen - t));
    const Lanes<float> p = load_lanes(weights + t);
    sum = fma(p, load_weights(scale + page + t, count), sum);
    store_lanes(weights + t, p * load_weights(scale + t, count));
  }
  return sum_lanes<float>(sum);
}

// cap * tanh(score * scale / cap): 1 - 2 / (exp(2 x) + 1) is tanh(x).
void soften(float* scores, int64_t page, float scale, float cap) {
  const Lanes<float> one = broadcast(1.0f), two = broadcast(2.0f), by = broadcast(2 / cap * scale);
  for (int64_t t = 0; t < page; t += kLanes<float>) {
    const Lanes<float> e = exp_lanes(load_lanes(scores + t) * by);
    store_lanes(scores + t, broadcast(cap) * (one - two / (e + one)));
  }
}

#if defined(GOSSAMER_AVX512_BF16)
int64_t paired_width(int64_t width) { return ceil_div(width, kPairDepth) * kPairDepth; }

// The factor of scores: a sign and a zero went to the queries, which they do not round.
float paired_scale(float scale) { return scale == 0 ? 1 : __builtin_fabsf(scale); }

void load_paired_queries(const Attend& a, const QueryBlock& b, const Room& room) {
  const int64_t width = a.pages.width, stride = paired_width(width);
  const float sign = a.scale > 0 ? 1 : a.scale < 0 ? -1 : 0;
  BFloat16* const to = reinterpret_cast<BFloat16*>(room.queries);
  for (int64_t r = 0; r < b.rows(); ++r)
    round_row(a.q + a.place_of(b, r) * width, sign, width, stride, to + r * stride);
}

// The page that comes next. With few rows it takes longer to come than all else: most of it is asked for while this one is
// read, which takes no less.
Ahead page_after(const PageTiles& pages, int64_t tile, int64_t next, int64_t rows) {
  if (next == tile) return {};
  const int64_t page = pages.page, width = pages.width, stride = paired_width(width), bytes = pages.tile_bytes();
  const int64_t lines = 2 * bytes / 64, groups = ceil_div(rows, PairProducts::kRows);
  const int64_t steps = groups * (page / 32 * stride + ceil_div(width, 32) * page) / kPairDepth;
  const int64_t in_pairs = groups == 1 ? lines * 3 / 4 / ((stride + page) / 2) : 0;
  const int64_t left = lines - in_pairs * (stride + page) / 2;
  const char* const keys = pages.keys_of(next);
  return {keys, keys + bytes, pages.values_of(next), bytes, in_pairs, ceil_div(left, steps)};
}

// As attend_page, but scores are scaled in place of queries.
void attend_paired_page(const Attend& a, const QueryBlock& b, int64_t p, int64_t tile, int64_t next, const Room& room,
                        const SoftmaxRows& state, PairProducts& products) {
  const Sight sight = a.sight();
  const PageTiles& pages = a.pages;
  const int64_t page = pages.page, width = pages.width, rows = b.rows(), stride = paired_width(width);
  const bool whole = sight.all(b, p);
  const float scale = paired_scale(a.scale);
  Ahead ahead = page_after(pages, tile, next, rows);
  // Pairs of values take the place of those of keys where these are used once: that much less of L1 is.
  uint32_t* const keys = reinterpret_cast<uint32_t*>(room.stage);
  uint32_t* const values = rows <= PairProducts::kRows ? keys : keys + stride / 2 * page;
  const int64_t seen = least(page, b.last_place() + 1 - p * page);  // what lies behind was never written
  pair_rows(reinterpret_cast<const BFloat16*>(pages.keys_of(tile)), width, stride, page, ahead, keys);
  const BFloat16* const queries = reinterpret_cast<const BFloat16*>(room.queries);
  BFloat16* const weights = reinterpret_cast<BFloat16*>(room.scores + PairProducts::kRows * page);
  for (int64_t r = 0, count = 0; r < rows; r += count) {
    count = least(PairProducts::kRows, rows - r);
    products.multiply(queries + r * stride, stride, keys, stride, room.scores, page, count, page, false, ahead);
    for (int64_t i = 0; (!whole || a.cap > 0) && i < count; ++i) {
      float* const scores = room.scores + i * page;
      if (a.cap > 0) soften(scores, page, scale, a.cap);
      if (!whole) sight.hide(scores, p, b.first_place + (r + i) / b.heads);
    }
    for (int64_t i = 0; i < count; i += kWeightRows)
      take_weights(state, r + i, least(kWeightRows, count - i), room.scores + i * page, page, a.cap > 0 ? 1 : scale,
                   weights + i * page);
    if (r == 0) pair_rows(reinterpret_cast<const BFloat16*>(pages.values_of(tile)), seen, page, width, ahead, values);
    products.multiply(weights, page, values, page, state.values + r * width, width, count, width, true, ahead);
  }
}
#else
struct PairProducts {};
void load_paired_queries(const Attend&, const QueryBlock&, const Room&) {}
void attend_paired_page(const Attend&, const QueryBlock&, int64_t, int64_t, int64_t, const Room&, const SoftmaxRows&,
                        PairProducts&) {}
#endif

// A page, and the one that is looked at after it, as tiles.
void attend_page(const Attend& a, const QueryBlock& b, int64_t p, int64_t tile, int64_t next, const Room& room,
                 const SoftmaxRows& state) {
  const Sight sight = a.sight();
  const PageTiles& pages = a.pages;
  const int64_t page = pages.page, width = pages.width, rows = b.rows();
  const bool whole = sight.all(b, p), coded = has_scales(pages.stored());
  multiply_keys(room.queries, pages, tile, next, room.stage, room.scores, Room::kStride, rows);
  const int64_t seen = least(page, b.last_place() + 1 - p * page);  // what lies behind was never written
  for (int64_t r = 0; r < rows; ++r) {
    float* const scores = room.scores + r * Room::kStride;
    if (coded) decode_scores(scores, pages.scales_of(pages.key_scales, tile), page, room.sums[r]);
    if (a.cap > 0) soften(scores, page, 1, a.cap);
    if (!whole) sight.hide(scores, p, b.first_place + r / b.heads);
    state.take(r, scores, page);
    if (!coded) continue;
    const float zeros = decode_weights(scores, pages.scales_of(pages.value_scales, tile), page, seen);
    float* const to = state.values + r * width;
    for (int64_t d = 0; d < width; d += kLanes<float>) store_lanes(to + d, load_lanes(to + d) + broadcast(zeros));
  }
  const StoredMatrix values = {pages.values_of(tile), pages.values_of(next), width, seen, pages.stored()};
  multiply_stored(room.scores, values, room.stage, state.values, width, rows, width, true);
}

// One chunk of pages. False if its list does not ascend, names none of the request's, or what is no page of the pool.
bool attend_chunk(const Attend& a, const QueryBlock& b, int64_t from, int64_t to, const Room& room,
                  const SoftmaxRows& state) {
  const int64_t end = ceil_div(a.requests.lengths[b.request], a.pages.page);
  state.clear();
  PairProducts products;
  const bool paired = in_pairs(a.pages);
  const auto attend = [&](int64_t p, int64_t tile, int64_t next) {
    paired ? attend_paired_page(a, b, p, tile, next, room, state, products)
           : attend_page(a, b, p, tile, next, room, state);
  };
  int64_t page = -1, tile = -1;
  for (int64_t at = from; at < to; ++at) {
    const int64_t p = b.list < 0 ? at : int64_t(a.list[at]);
    if (p < 0 || p >= end || (b.list >= 0 && at > b.list && a.list[at] <= a.list[at - 1])) return false;
    if (!a.sight().any(b, p)) continue;
    const int64_t place = a.requests.page_of(b.request, p);
    if (place < 0 || place >= a.pages.count) return false;
    const int64_t next = place * a.pages.heads + b.pool_head;
    if (tile >= 0) attend(page, tile, next);
    page = p;
    tile = next;
  }
  if (tile >= 0) attend(page, tile, tile);
  return true;
}

void finish(const Attend& a, const QueryBlock& b, const SoftmaxRows& state) {
  const int64_t width = state.width;
  for (int64_t r = 0; r < b.rows(); ++r) {
    const int64_t place = a.place_of(b, r);
    const float by = state.sum[r] > 0 || state.sum[r] != state.sum[r] ? 1 / state.sum[r] : 0;
    const float* const from = state.values + r * width;
    for (int64_t d = 0; d < width; d += kLanes<float>)
      store_lanes(a.out + place * width + d, load_lanes(from + d) * broadcast(by));
    if (a.lse != nullptr) a.lse[place] = state.largest[r] + __builtin_logf(state.sum[r]);
  }
}

bool run(const Attend& a, const Task& task, const Room& room, float* partials) {
  const QueryBlock& b = task.block;
  in_pairs(a.pages) ? load_paired_queries(a, b, room) : load_queries(a, b, room);
  if (task.chunks > 0)
    return attend_chunk(a, b, task.from, task.to, room, SoftmaxRows(partials + task.partial, b.rows(), a.pages.width));
  const SoftmaxRows total(room.total, b.rows(), a.pages.width), chunk(room.chunk, b.rows(), a.pages.width);
  total.clear();
  bool right = true;
  a.for_each_chunk(b, [&](int64_t from, int64_t to) {
    right = right && attend_chunk(a, b, from, to, room, chunk);
    if (right) total.add(chunk);
  });
  if (right) finish(a, b, total);
  return right;
}

// Adds up the chunks of a block, of which `task` is the first.
void join(const Attend& a, const Task& task, const Room& room, float* partials) {
  const int64_t rows = task.block.rows(), width = a.pages.width;
  const SoftmaxRows total(room.total, rows, width);
  total.clear();
  for (int64_t i = 0; i < task.chunks; ++i)
    total.add(SoftmaxRows(partials + task.partial + i * SoftmaxRows::floats(rows, width), rows, width));
  finish(a, task.block, total);
}

Attend attention(const float* q, const Pages& pages, const Requests& requests, const AttentionShape& shape,
                 const int64_t* first_heads, const PageLists& lists, float scale, float cap, float* out, float* lse) {
  return {q, PageTiles(pages), PagedRequests(requests), shape, first_heads, lists.offsets,
          static_cast<const int32_t*>(lists.pages), scale, cap, out, lse};
}

// Whether what the plan is made from can be trusted.
bool plan_is_right(const Attend& a, const PageLists& lists) {
  if (!a.requests.are_right(a.pages)) return false;
  if (!are_heads(a.first_heads, a.pages.heads, a.shape.query_heads, a.shape.group)) return false;
  if (lists.pages == nullptr) return true;
  int64_t rows = 0;
  for (int64_t r = 0; r < a.requests.count; ++r)
    rows += ceil_div(a.requests.tokens_of(r), a.shape.list_tokens) * a.pages.heads;
  return rows == lists.rows && are_offsets(lists.offsets, rows, true, lists.capacity);
}

}  // namespace

int64_t page_attention_workspace(const Pages& pages, const Requests& requests, const AttentionShape& shape,
                                 const int64_t* first_heads, const PageLists& lists, int threads) {
  const Attend a = attention(nullptr, pages, requests, shape, first_heads, lists, 1, 0, nullptr, nullptr);
  if (!plan_is_right(a, lists)) return -1;
  int64_t floats;
  const int64_t tasks = a.plan(nullptr, &floats);
  return tasks * int64_t(sizeof(Task)) + 8 + 64 + (floats + threads * Room::floats(a.pages)) * int64_t(sizeof(float));
}

bool page_attention(const float* q, const Pages& pages, const Requests& requests, const AttentionShape& shape,
                    const int64_t* first_heads, const PageLists& lists, float scale, float cap, float* out, float* lse,
                    void* workspace, int threads) {
  const Attend a = attention(q, pages, requests, shape, first_heads, lists, scale, cap, out, lse);
  if (!plan_is_right(a, lists)) return false;
  int64_t* const next = static_cast<int64_t*>(workspace);
  Task* const tasks = reinterpret_cast<Task*>(next + 1);
  int64_t floats;
  const int64_t count = a.plan(tasks, &floats);
  const uintptr_t line = (reinterpret_cast<uintptr_t>(tasks + count) + 63) / 64 * 64;
  float *const partials = reinterpret_cast<float*>(line), *const rooms = partials + floats;
  const auto room_of = [&](int64_t part) {
    return Room(rooms + part * Room::floats(a.pages), a.pages);
  };
  Verdict verdict;
  // Blocks at the end of a long prompt cost more than those at its beginning: whoever is free takes the next task.
  const auto share = [&](const auto& take) {
    *next = 0;
    parallel(threads, threads, [&](int64_t part) {
      const Room room = room_of(part);
      for (int64_t at; (at = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < count;) take(tasks[count - 1 - at], room);
    });
  };
  share([&](const Task& task, const Room& room) { verdict.add(verdict.right() && run(a, task, room, partials)); });
  if (!verdict.right()) return false;
  share([&](const Task& task, const Room& room) {
    if (task.chunks > 0 && task.chunk == 0) join(a, task, room, partials);
  });
  return true;
}

}  // namespace gossamer::GOSSAMER_ISA
