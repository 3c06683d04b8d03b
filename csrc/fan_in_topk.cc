// The best labels of each row of x, without their logits: those of a block of labels stay in L1 and are compared with
// the worst score that a row has kept so far. What passes goes into a heap.
//
// Each thread has its own labels and heaps; the heaps are merged by score, then label, which is a total order, so the
// result depends on neither threads nor blocks. Filters are asked about what passes only.
#include "fan_in_rows.h"
#include "kernels.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kBlockBytes = 24 << 10;  // of values and indices that every panel meets in L1
constexpr int64_t kRight = -1, kBroken = -2;

struct Entry {
  int64_t label;
  float score;
};

// The order of the result: higher scores, then lower labels.
inline bool ranks_before(Entry a, Entry b) {
  return a.score > b.score || (a.score == b.score && a.label < b.label);
}

// The best `room` entries; the root is the worst of them.
struct Heap {
  Entry* entries;
  int64_t* count;
  int64_t room;

  bool full() const { return *count == room; }
  void add(Entry e) {
    if (!full()) {
      int64_t at = (*count)++;
      for (; at > 0 && ranks_before(entries[(at - 1) / 2], e); at = (at - 1) / 2) entries[at] = entries[(at - 1) / 2];
      entries[at] = e;
    } else if (ranks_before(e, entries[0])) {
      sink(e, room);
    }
  }
  // Puts e in place of the root of the first n.
  void sink(Entry e, int64_t n) {
    int64_t at = 0, child;
    for (; (child = 2 * at + 1) < n; at = child) {
      if (child + 1 < n && ranks_before(entries[child], entries[child + 1])) ++child;
      if (!ranks_before(e, entries[child])) break;
      entries[at] = entries[child];
    }
    entries[at] = e;
  }
  // Best first.
  void sort() {
    for (int64_t n = *count - 1; n > 0; --n) {
      const Entry last = entries[n];
      entries[n] = entries[0];
      sink(last, n);
    }
  }
};

inline bool lists(const int64_t* ascending, int64_t count, int64_t label) {
  const int64_t place = place_of(ascending, count, label);
  return place < count && ascending[place] == label;
}

// What a thread has: for each row of x the heap, how many are in it, and what a score must exceed (NaN: nothing yet).
struct Kept {
  float* thresholds;
  int64_t* counts;
  Entry* entries;
  float* values;  // of a block, widened
};

// As the vectors' own, to the last bit.
inline float fma(float a, float b, float c) {
#if defined(GOSSAMER_AVX2)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// z += the sum over j of w[j] * x[columns[j]]: as dot_row, to the last bit, of a batch of one, whose x is short enough for
// L1 if nothing lies between its elements. Words are loaded at a higher rate than vectors; two rows at a time, so that
// four sums are under way.
template <class Number>
inline void dot_two(const float* w, const float* next, const Number* columns, const Number* next_columns, int64_t k,
                    const float* x, float (&z)[2]) {
  float odd[2] = {};
  const auto add = [&](float(&sum)[2], int64_t j) __attribute__((always_inline)) {
    sum[0] = fma(w[j], x[columns[j]], sum[0]);
    sum[1] = fma(next[j], x[next_columns[j]], sum[1]);
  };
  int64_t j = 0;
  for (; j + 2 <= k; j += 2) {
    add(z, j);
    add(odd, j + 1);
  }
  if (j < k) add(z, j);
  z[0] += odd[0];
  z[1] += odd[1];
}

int64_t whole_lines(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// One search; `packed` is x in panels or, of a batch of one, as it is.
struct Search {
  const Classifier& c;
  const Parameters& at;
  Panels<float> panels;
  const float* packed;
  int64_t first;
  const Excluded& excluded;
  int64_t best;

  int64_t lanes() const { return panels.vectors() * kLanes<float>; }
  // Labels that go through the caches together: a multiple of those that share a row of indices.
  int64_t block() const {
    return (1 + kBlockBytes / ((4 + c.index_size) * (c.k + 1)) / c.group) * c.group;
  }
  int64_t packed_bytes() const { return whole_lines(panels.elements() * 4); }
  int64_t float_bytes() const { return whole_lines((lanes() + (c.value_size == 2 ? block() * c.k : 0)) * 4); }
  int64_t workspace() const {
    return whole_lines(float_bytes() + lanes() * 8 + c.batch * best * int64_t(sizeof(Entry)));
  }
  Kept kept(char* memory) const {
    float* const floats = reinterpret_cast<float*>(memory);
    int64_t* const counts = reinterpret_cast<int64_t*>(memory + float_bytes());
    return {floats, counts, reinterpret_cast<Entry*>(counts + lanes()), floats + lanes()};
  }
  Heap heap(const Kept& kept, int64_t row) const { return {kept.entries + row * best, kept.counts + row, best}; }

  template <class Number>
  const Number* columns(int64_t label) const {
    return static_cast<const Number*>(at.indices) + (c.group == 1 ? label : label / c.group) * c.k;
  }
  template <class Number>
  __attribute__((always_inline)) void ask_ahead(int64_t label) const {
    const char* const stored = static_cast<const char*>(at.values) + label * c.k * c.value_size;
    fetch_row(stored, c.k * c.value_size, columns<Number>(label), c.k);
  }
  float bias(int64_t label) const { return at.bias == nullptr ? 0.0f : at.bias[label]; }
  bool is_excluded(int64_t row, int64_t label) const {
    if (excluded.always_count > 0 && lists(excluded.always, excluded.always_count, label)) return true;
    if (excluded.offsets == nullptr) return false;
    const int64_t begin = excluded.offsets[row], count = excluded.offsets[row + 1] - begin;
    return count > 0 && lists(excluded.ids + begin, count, label);
  }

  // Labels [begin, end): kRight, kBroken, or the first label that has NaN.
  int64_t run(const Kept& kept, int64_t begin, int64_t end) const {
    for (int64_t i = 0; i < lanes(); ++i) kept.thresholds[i] = i < c.batch ? __builtin_nanf("") : __builtin_inff();
    memset(kept.counts, 0, size_t(lanes()) * 8);
    const int64_t step = block();
    for (int64_t from = begin; from < end;) {
      const int64_t to = least(end, (from / step + 1) * step);
      const int64_t first_row = from / c.group, last_row = (to - 1) / c.group;
      if (!all_below(at.indices, int(c.index_size), first_row * c.k, (last_row + 1) * c.k, c.cols))
        return kBroken;
      const float* values = static_cast<const float*>(at.values) + from * c.k;
      if (c.value_size == 2) {
        const BFloat16* const stored = static_cast<const BFloat16*>(at.values) + from * c.k;
        for (int64_t i = 0; i < (to - from) * c.k; ++i) kept.values[i] = widen(stored[i]);
        values = kept.values;
      }
      int64_t wrong = kRight;
      for (int64_t p = 0; p < panels.count(); ++p) {
        const int64_t found = for_panel(panels.of(packed, p).vectors, c.index_size, [&]<int kV, class Number>() {
          return c.batch == 1 ? scan_one<Number>(kept, values, from, to) : scan<kV, Number>(kept, values, from, to, p);
        });
        if (found != kRight && (wrong == kRight || found < wrong)) wrong = found;
      }
      if (wrong != kRight) return wrong;
      from = to;
    }
    return kRight;
  }

  template <int kV, class Number>
  int64_t scan(const Kept& kept, const float* values, int64_t from, int64_t to, int64_t p) const {
    const float* const x = panels.at(packed, p);
    const float* const thresholds = kept.thresholds + panels.first(p);
    for (int64_t label = from; label < to; ++label) {
      Lanes<float> z[kV];
      for (int v = 0; v < kV; ++v) z[v] = broadcast(bias(label));
      if (p == 0) ask_ahead<Number>(label);
      dot_row<float, kV>(values + (label - from) * c.k, columns<Number>(label), c.k, x, z);
      Lanes<int32_t> passes = {};
      for (int v = 0; v < kV; ++v) passes |= ~(z[v] <= load_lanes(thresholds + v * kLanes<float>));  // so NaN passes
      if (!any_bit((Vec)passes)) continue;
      float scores[kV * kLanes<float>];
      for (int v = 0; v < kV; ++v) store_lanes(scores + v * kLanes<float>, z[v]);
      for (int64_t i = 0; i < panels.width(p); ++i)
        if (!(scores[i] <= thresholds[i]) && !offer(kept, panels.first(p) + i, label, scores[i])) return label;
    }
    return kRight;
  }

  template <class Number>
  int64_t scan_one(const Kept& kept, const float* values, int64_t from, int64_t to) const {
    for (int64_t label = from; label < to; label += 2) {
      const int64_t next = least(label + 1, to - 1);  // the last of an odd number is looked at twice, and offered once
      float z[2] = {bias(label), bias(next)};
      ask_ahead<Number>(label);
      ask_ahead<Number>(next);
      dot_two(values + (label - from) * c.k, values + (next - from) * c.k, columns<Number>(label),
              columns<Number>(next), c.k, packed, z);
      if (!(z[0] <= kept.thresholds[0]) && !offer(kept, 0, label, z[0])) return label;
      if (next > label && !(z[1] <= kept.thresholds[0]) && !offer(kept, 0, next, z[1])) return next;
    }
    return kRight;
  }

  // A score that exceeds the threshold of its row goes in, unless it is excluded; false if it is NaN.
  bool offer(const Kept& kept, int64_t row, int64_t label, float score) const {
    if (is_excluded(row, first + label)) return true;
    if (score != score) return false;
    Heap mine = heap(kept, row);
    mine.add({first + label, score});
    if (mine.full()) kept.thresholds[row] = mine.entries[0].score;
    return true;
  }

  // The best of all parts, best first; what is missing has the score of nothing and the label -1.
  void merge(char* memory, int64_t parts, int64_t row, float* scores, int64_t* ids) const {
    Heap all = heap(kept(memory), row);
    for (int64_t part = 1; part < parts; ++part) {
      const Heap other = heap(kept(memory + part * workspace()), row);
      for (int64_t i = 0; i < *other.count; ++i) all.add(other.entries[i]);
    }
    all.sort();
    for (int64_t i = 0; i < best; ++i) {
      const Entry e = i < *all.count ? all.entries[i] : Entry{-1, -__builtin_inff()};
      scores[row * best + i] = e.score;
      ids[row * best + i] = e.label;
    }
  }
};

}  // namespace

int64_t fan_in_topk_workspace(const Classifier& c, int64_t best, int threads) {
  const Search search = {c, {}, {c.batch, c.cols}, nullptr, 0, {}, best};
  return search.packed_bytes() + threads * (search.workspace() + 8);
}

int64_t fan_in_topk(const Operand& x, const Classifier& c, const Parameters& at, int64_t first, const Excluded& excluded,
                    int64_t best, float* scores, int64_t* ids, void* workspace, int threads) {
  const int64_t batch = c.batch, cols = c.cols;
  if (excluded.offsets != nullptr && !are_offsets(excluded.offsets, batch, true, excluded.count)) return kBroken;
  float* const packed = static_cast<float*>(workspace);
  const Search search = {c, at, {batch, cols}, packed, first, excluded, best};
  char* const memory = static_cast<char*>(workspace) + search.packed_bytes();
  if (batch == 1)
    for (int64_t c = 0; c < cols; ++c) packed[c] = static_cast<const float*>(x.address)[x.transposed ? c * x.stride : c];
  else
    search.panels.pack_all(x, packed, threads);
  const int parts = useful_threads(c.labels * (c.k + batch) * 4, threads);
  int64_t* const found = reinterpret_cast<int64_t*>(memory + threads * search.workspace());
  parallel(parts, parts, [&](int64_t part) {
    found[part] = search.run(search.kept(memory + part * search.workspace()), part_begin(c.labels, part, parts),
                             part_begin(c.labels, part + 1, parts));
  });
  for (int part = 0; part < parts; ++part)
    if (found[part] == kBroken) return kBroken;
  for (int part = 0; part < parts; ++part)  // the parts ascend, so this is the first label of all that has NaN
    if (found[part] != kRight) return found[part];
  const int mergers = useful_threads(batch * best * parts * int64_t(sizeof(Entry)), threads);
  parallel(mergers, mergers, [&](int64_t part) {
    for (int64_t row = part_begin(batch, part, mergers); row < part_begin(batch, part + 1, mergers); ++row)
      search.merge(memory, parts, row, scores, ids);
  });
  return kRight;
}

}  // namespace gossamer::GOSSAMER_ISA
