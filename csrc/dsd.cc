// Dense = sparse @ dense: the product of tiles named by a pattern with a dense matrix.
//
// Columns of b are taken in panels of a few vectors, packed so that a panel stays in L2. For a panel and a tile row,
// some rows x vectors of the result stay in registers over all tiles of the row. The order of additions inside an element
// is that of the slots, whatever the panel and the thread.
#include "dsd_elements.h"
#include "dsd_tiles.h"
#include "transpose_lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kStageElements = 4096;  // of the result, that wait to be copied or transposed
constexpr int64_t kMostPanels = 4;
constexpr int64_t kGroupBytes = 420 << 10;   // of panels in L2 at a time, half of a small one
constexpr int64_t kAhead = 64;          // rows of b that are asked for before they are packed
constexpr int64_t kRowCost = 4;         // of storing a row of the result, in multiplications of a row

// The segments: those of `work`, or one for each tile row.
struct Segment {
  int64_t row, slot, end;
};

struct Segments {
  const Tiles& s;
  const int64_t* work;  // null: tile rows
  int64_t count;

  Segment at(int64_t i) const {
    if (work == nullptr) return {i, s.offsets[i], s.offsets[i + 1]};
    return {work[3 * i], work[3 * i + 1], work[3 * i + 2]};
  }
  // Unused, or without tiles: rows that no segment writes are zeroed in the end.
  bool skipped(const Segment& segment) const {
    return work != nullptr && (segment.row < 0 || segment.slot >= segment.end);
  }
  // Whether it is a part of a tile row, to be added up in the end.
  bool partial(const Segment& segment) const {
    return work != nullptr && !skipped(segment) &&
           (segment.slot != s.offsets[segment.row] || segment.end != s.offsets[segment.row + 1]);
  }
  // All of them, in one pass; `ascend`: they name every slot once, in ascending order, each within its tile row.
  struct Totals {
    bool ascend;
    int64_t slots, cost, partials;
  };
  Totals totals() const {
    if (work == nullptr) return {true, s.used(), cost(0, count), 0};
    bool ascend = true;
    int64_t named = 0, filled = 0, slots = 0, partials = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Segment segment = at(i);
      if (segment.row < 0) continue;
      if (segment.row >= s.tile_rows) return {false, 0, 0, 0};
      const int64_t first = s.offsets[segment.row], last = s.offsets[segment.row + 1];
      const bool some = segment.end > segment.slot;
      ascend &= (segment.slot == named) & (segment.slot >= first) & (segment.end <= last);
      filled += some;
      slots += some ? segment.end - segment.slot : 0;
      partials += some & ((segment.slot != first) | (segment.end != last));
      named = segment.end;
    }
    // Both are so only if no segment goes backwards.
    ascend &= (named == s.used()) & (slots == s.used());
    return {ascend, slots, slots * s.bn + filled * kRowCost, partials};
  }
  // Whether what segments [i, end) name exists. Slots that follow one another are looked at together.
  bool exist(int64_t i, int64_t end) const {
    if (work == nullptr) return tiles_exist(s, s.offsets[i], s.offsets[end]);
    bool right = true;
    int64_t from = 0, to = 0;
    for (; i < end; ++i) {
      const Segment segment = at(i);
      if (skipped(segment)) continue;
      if (segment.slot != to) {
        right &= tiles_exist(s, from, to);
        from = segment.slot;
      }
      to = segment.end;
    }
    return right & tiles_exist(s, from, to);
  }
  int64_t partials_before(int64_t i) const {
    int64_t sum = 0;
    for (int64_t j = 0; j < i && work != nullptr; ++j) sum += partial(at(j));
    return sum;
  }
  int64_t cost(const Segment& segment) const {
    return skipped(segment) ? 0 : (segment.end - segment.slot) * s.bn + kRowCost;
  }
  // The cost of segments [i, end).
  int64_t cost(int64_t i, int64_t end) const {
    if (work == nullptr) return (s.offsets[end] - s.offsets[i]) * s.bn + (end - i) * kRowCost;
    int64_t sum = 0;
    for (; i < end; ++i) sum += cost(at(i));
    return sum;
  }
  // The first segment that begins at or beyond this cost.
  int64_t find(int64_t target) const {
    if (work != nullptr) {
      int64_t i = 0;
      for (int64_t sum = 0; i < count && sum < target; ++i) sum += cost(at(i));
      return i;
    }
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (cost(0, middle) < target) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};

template <class T>
struct Product {
  const Tiles& s;
  Segments segments;
  const T* b;
  int64_t n, b_stride;
  bool b_transposed;
  T* c;
  bool column_major;
  T* workspace;  // a panel for each thread, then the partial sums, each bm rows of whole vectors
  int threads;
  Verdict& verdict;
  int64_t whole;     // the cost of all segments

  // Panels, as wide as registers allow, are taken in groups that fit in L2 together, so that tiles are read less often.
  static int64_t panels(const Tiles& s, int64_t n) {
    const int vectors = most_vectors(s.bm >= kMostRows ? kMostRows : s.bm >= 4 ? 4 : 2);
    return ceil_div(ceil_div(n, kLanes<T>), vectors);
  }
  static int64_t groups(const Tiles& s, int64_t n) {
    const int64_t count = panels(s, n), bytes = ceil_div(s.cols * n * int64_t(sizeof(T)), count);
    const int64_t fit = s.bm == 1 ? 1 : least(kMostPanels, kGroupBytes / (bytes + 1));
    return ceil_div(count, fit > 0 ? fit : 1);
  }
  // Vectors before a panel, panels before a group, vectors before a group.
  int64_t panel_begin(int64_t p) const { return part_begin(ceil_div(n, kLanes<T>), p, panels(s, n)); }
  int64_t group_begin(int64_t g) const { return part_begin(panels(s, n), g, groups(s, n)); }
  int64_t vectors_before(int64_t g) const { return panel_begin(group_begin(g)); }
  static int64_t panel_elements(const Tiles& s, int64_t n) {
    const int64_t count = panels(s, n), vectors = ceil_div(ceil_div(n, kLanes<T>), count);
    return s.cols * vectors * kLanes<T> * ceil_div(count, groups(s, n));
  }
  static int64_t workspace_elements(const Tiles& s, int64_t partials, int64_t n, int threads) {
    return (n == 0 ? 0 : threads * panel_elements(s, n)) + partials * s.bm * ceil_div(n, kLanes<T>) * kLanes<T>;
  }

  // Where `part` begins: a group of panels and a segment in it. Parts have equal shares of the multiplications.
  void cut(int64_t part, int64_t* group, int64_t* segment) const {
    const int64_t count = groups(s, n);
    int64_t target = part_begin(whole * vectors_before(count), part, threads), g = 0;
    for (; g < count && target >= whole * (vectors_before(g + 1) - vectors_before(g)); ++g)
      target -= whole * (vectors_before(g + 1) - vectors_before(g));
    *group = g;
    *segment = g < count ? segments.find(ceil_div(target, vectors_before(g + 1) - vectors_before(g))) : 0;
  }

  // b's columns [left, left + width) with zeros up to `vectors` vectors.
  Panel<T> pack(T* to, int64_t left, int64_t width, int vectors) const {
    const int64_t stride = vectors * kLanes<T>;
    if (b_transposed) {
      transpose(b + left * b_stride, b_stride, to, stride, width, s.cols);
      for (int64_t i = 0; i < s.cols && width < stride; ++i)
        memset(to + i * stride + width, 0, size_t(stride - width) * sizeof(T));
    } else {
      for (int64_t i = 0; i < s.cols; ++i) {
        const T* const row = b + i * b_stride + left;
        if (i + kAhead < s.cols)
          for (int64_t j = 0; j < width; j += kLine<T>) __builtin_prefetch(row + kAhead * b_stride + j);
        for (int v = 0; v < vectors; ++v) {
          const int64_t inside = width - v * kLanes<T>;
          store_lanes(to + i * stride + v * kLanes<T>, inside >= kLanes<T> ? load_lanes(row + v * kLanes<T>)
                                                                          : load_first(row + v * kLanes<T>, int(inside)));
        }
      }
    }
    return {to, stride, vectors};
  }

  // The panels of a group, each packed where that pays; `few`: not much reads them.
  void pack_group(int64_t g, bool few, T* to, Panel<T>* panels) const {
    for (int64_t p = group_begin(g); p < group_begin(g + 1); ++p, ++panels) {
      const int64_t left = panel_begin(p) * kLanes<T>;
      const int vectors = int(panel_begin(p + 1) - panel_begin(p));
      const int64_t stride = vectors * kLanes<T>, width = least(n - left, stride);
      if (!b_transposed && width == stride && (few || b_stride == stride)) {
        *panels = {b + left, b_stride, vectors};
      } else {
        *panels = pack(to, left, width, vectors);
        to += s.cols * stride;
      }
    }
  }

  void run(int64_t part) const {
    alignas(64) T stage[kStageElements];
    int64_t g, i, last_group, last_segment;
    cut(part, &g, &i);
    cut(part + 1, &last_group, &last_segment);
    int64_t known = segments.count;  // segments from here on exist
    for (; g < last_group || (g == last_group && i < last_segment); ++g, i = 0) {
      const int64_t end = g == last_group ? last_segment : segments.count;
      if (i < known && !verdict.add(segments.exist(i, least(known, end)))) return;
      if (end == segments.count) known = least(known, i);
      const int64_t count = group_begin(g + 1) - group_begin(g), left = vectors_before(g) * kLanes<T>;
      const int64_t stride = vectors_before(g + 1) * kLanes<T> - left, width = least(n - left, stride);
      Panel<T> panels[kMostPanels];
      pack_group(g, segments.cost(i, end) < 2 * s.cols,
                 workspace + part * panel_elements(s, n), panels);
      const bool direct = !column_major && width == stride;
      const int64_t stage_rows = kStageElements / stride / 8 * 8;
      int64_t stage_top = 0, staged = 0;  // rows of the result that the stage holds
      const auto flush = [&] {
        if (column_major) {
          transpose(stage, stride, c + left * s.rows + stage_top, s.rows, staged, width);
        } else {
          for (int64_t r = 0; r < staged; ++r)
            memcpy(c + (stage_top + r) * n + left, stage + r * stride, size_t(width) * sizeof(T));
        }
        staged = 0;
      };
      int64_t partials = segments.partials_before(i);
      for (; i < end; ++i) {
        const Segment segment = segments.at(i);
        if (segments.skipped(segment)) continue;
        const int64_t bottom = least(s.rows, (segment.row + 1) * s.bm);
        T* const sum = segments.partial(segment) ? partial_sum(partials++) + left : nullptr;
        for (int64_t top = segment.row * s.bm; top < bottom;) {
          const int64_t height = least(bottom - top, stage_rows), inside = top - segment.row * s.bm;
          T* out = sum != nullptr ? sum + inside * padded() : c + top * n + left;
          int64_t out_stride = sum != nullptr ? padded() : n;
          if (sum == nullptr && !direct) {
            if (staged + height > stage_rows || top != stage_top + staged) flush();
            if (staged == 0) stage_top = top;
            out = stage + staged * stride;
            out_stride = stride;
            staged += height;
          }
          for (int64_t p = 0; p < count; out += panels[p++].vectors * kLanes<T>)
            multiply_piece(segment, inside, height, panels[p], out, out_stride);
          top += height;
        }
      }
      flush();
    }
  }

  int64_t padded() const { return ceil_div(n, kLanes<T>) * kLanes<T>; }
  T* partial_sum(int64_t i) const { return workspace + threads * panel_elements(s, n) + i * s.bm * padded(); }

  // Zeroes the rows that no segment wrote, and adds up those that several did, in order of the segments.
  void finish(int64_t part) const {
    const int64_t from = part_begin(n, part, threads), to = part_begin(n, part + 1, threads);
    const int64_t row_step = column_major ? 1 : n, col_step = column_major ? s.rows : 1;
    const auto each = [&](int64_t row, auto change) {
      const int64_t top = row * s.bm, height = least(s.bm, s.rows - top);
      for (int64_t r = 0; r < height; ++r)
        for (int64_t j = from; j < to; ++j) change(c[(top + r) * row_step + j * col_step], r, j);
    };
    const auto zero = [](T& element, int64_t, int64_t) { element = T(0); };
    for (int64_t row = 0; row * s.bm < s.rows; ++row)
      if (s.offsets[row] == s.offsets[row + 1]) each(row, zero);
    for (int64_t i = 0; i < segments.count; ++i)
      if (segments.partial(segments.at(i))) each(segments.at(i).row, zero);
    for (int64_t i = 0, partials = 0; i < segments.count; ++i) {
      if (!segments.partial(segments.at(i))) continue;
      const T* const sum = partial_sum(partials++);
      each(segments.at(i).row, [&](T& element, int64_t r, int64_t j) { element += sum[r * padded() + j]; });
    }
  }

  void multiply_piece(const Segment& segment, int64_t top, int64_t height, const Panel<T>& panel, T* out,
                      int64_t out_stride) const {
    if (s.bm > 1 && !as_is(s))
      return multiply_converted(s, segment.slot, segment.end, top, height, panel, out, out_stride);
    const int64_t row = s.transposed ? 1 : s.bn, col = s.transposed ? s.bm : 1;
    Run<T> run = {static_cast<const T*>(s.values) + top * row, s.bm * s.bn, row, col, 0, s.order != nullptr,
                        segment.slot, segment.end, 0, s.bn, false};
    if (s.bm == 1) return multiply_row_of<T>(panel.vectors, s.index_size)(s, run, panel, out, out_stride);
    multiply_rows(s, run, height, panel, out, out_stride);
  }
};

// Elements of tiles that are copied into the order of slots first; a whole number of vectors.
int64_t copied_elements(const Tiles& s, bool in_place) {
  return s.bm > 1 || in_place ? 0 : ceil_div(s.used() * s.bn, 64) * 64;
}

template <class T>
bool product(Tiles s, const Operand& b, int64_t n, T* c, bool column_major, const int64_t* work, int64_t count,
             T* workspace, int threads) {
  const int64_t used = s.used();
  threads = useful_threads((s.rows * n + used * s.bm * s.bn * n / 16) * int64_t(sizeof(T)), threads);
  Verdict verdict;
  const bool copies = s.bm == 1 && !(as_is(s) && s.order == nullptr);
  if (copies) {
    T* const copy = workspace;
    workspace += copied_elements(s, false);
    parallel(threads, threads, [&, threads](int64_t part) {
      const int64_t slot = part_begin(used, part, threads), end = part_begin(used, part + 1, threads);
      verdict.add(in_order(s, slot, end, copy));
    });
    if (!verdict.right()) return false;
    s.values = copy;
    s.storage = sizeof(T) == 8 ? Storage::kDouble : Storage::kFloat;
    s.scale = nullptr;
    s.order = nullptr;
  }
  const Segments segments = {s, work, work == nullptr ? s.tile_rows : count};
  const Segments::Totals totals = segments.totals();
  if (totals.slots != used)  // tiles were dropped, perhaps whole rows of them
    for (int64_t i = 0; i < s.rows * n; ++i) c[i] = T(0);
  const Product<T> p = {s, segments, static_cast<const T*>(b.address), n, b.stride, b.transposed != 0, c, column_major,
                        workspace, threads, verdict, totals.cost};
  parallel(threads, threads, [&p](int64_t part) { p.run(part); });
  if (!verdict.right()) return false;
  if (work != nullptr) parallel(threads, threads, [&p](int64_t part) { p.finish(part); });
  return true;
}

}  // namespace

int64_t dsd_workspace(int storage, bool in_place, const Index& index, int64_t n, const int64_t* work, int64_t segments,
                      bool work_checked, int threads) {
  const Tiles s = {Slots(index), nullptr, Storage(storage), nullptr, nullptr, 4, false};
  if (!s.offsets_are_right()) return -1;
  const Segments all = {s, work, work == nullptr ? s.tile_rows : segments};
  const Segments::Totals totals = all.totals();
  if (!totals.ascend && !work_checked) return -2;
  if (s.storage == Storage::kDouble)
    return 8 * (copied_elements(s, in_place) + Product<double>::workspace_elements(s, totals.partials, n, threads));
  return 4 * (copied_elements(s, in_place) + Product<float>::workspace_elements(s, totals.partials, n, threads));
}

bool dsd(const void* values, int storage, const float* scale, const Index& index, const void* order, int order_size,
         bool transposed, const Operand& b, int64_t n, void* c, bool column_major, const int64_t* work, int64_t segments,
         void* workspace, int threads) {
  const Tiles s = {Slots(index), values, Storage(storage), scale, order, order_size, transposed};
  if (s.rows == 0 || n == 0) return tiles_exist(s, 0, s.used());
  const auto run = [&]<class T>(T* out) {
    return product(s, b, n, out, column_major, work, segments, static_cast<T*>(workspace), threads);
  };
  return s.storage == Storage::kDouble ? run(static_cast<double*>(c)) : run(static_cast<float*>(c));
}

}  // namespace gossamer::GOSSAMER_ISA
