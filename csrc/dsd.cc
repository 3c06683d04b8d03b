// Dense = sparse @ dense: the product of tiles named by a pattern with a dense matrix.
//
// Columns of b are taken in panels of a few vectors, packed so that a panel stays in L2. For a panel and a tile row,
// kR rows x kV vectors of the result stay in registers over all tiles of the row. The order of additions inside an element
// is that of the slots, whatever the panel and the thread.
#include "dsd.h"
#include "kernels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Rows of the result held in registers, and vectors of each: accumulators, a row of b and a broadcast must fit.
#if defined(GOSSAMER_AVX512)
constexpr int kMostRows = 8;
#else
constexpr int kMostRows = 4;
#endif
constexpr int kMostVectors = 4;
constexpr int most_vectors(int rows) {
  constexpr int kFree = kRegisters - (kWidth == 16 ? 2 : 1);  // without a fused instruction a product needs one too
  return kFree / (rows + 1) < kMostVectors ? kFree / (rows + 1) : kMostVectors;
}

constexpr int64_t kStageRows = 64;      // rows of the result that wait to be copied or transposed
constexpr int64_t kConverted = 4096;    // elements of tiles converted at once
constexpr int64_t kRowCost = 4;         // of storing a row of the result, in multiplications of a row

template <class T, int kR, int kV, bool kFlip>
void multiply(const Tiles& s, const Run<T>& run, Panel<T> panel, T* out, int64_t out_stride) {
  Lanes<T> sum[kR][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v)
      sum[r][v] = run.more ? load_lanes(out + r * out_stride + v * kLanes<T>) : Lanes<T>{};
  const int64_t step = kFlip ? run.col : run.row;
  for (int64_t slot = run.slot; slot < run.end; ++slot) {
    const int64_t left = index_of(s, slot) * s.bk;
    const T* a = run.a + (run.ordered ? source_of(s, slot) : slot - run.first) * run.tile;
    const T* b = panel.b + (left + run.from) * panel.stride;
    const T* const end = b + (least(run.to, s.k - left) - run.from) * panel.stride;
    for (; b < end; b += panel.stride, a += kFlip ? step : 1) {
      Lanes<T> x[kV];
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) x[v] = load_lanes(b + v * kLanes<T>);
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        const Lanes<T> w = broadcast(a[kFlip ? r : r * step]);
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) store_lanes(out + r * out_stride + v * kLanes<T>, sum[r][v]);
}

template <class T>
using Multiply = void (*)(const Tiles&, const Run<T>&, Panel<T>, T*, int64_t);

template <class T, int kR, int kV>
Multiply<T> multiply_of(int vectors, bool flip) {
  if constexpr (kV > 1) {
    if (vectors < kV) return multiply_of<T, kR, kV - 1>(vectors, flip);
  }
  return flip ? multiply<T, kR, kV, true> : multiply<T, kR, kV, false>;
}

// `height` rows of a tile row, a few at a time.
template <class T>
void multiply_rows(const Tiles& s, Run<T> run, int64_t height, int vectors, Panel<T> panel, T* out,
                   int64_t out_stride) {
  int64_t r = 0;
  const auto rows = [&](auto count, Multiply<T> kernel) {
    for (; r + count <= height; r += count, run.a += count * run.row, out += count * out_stride)
      kernel(s, run, panel, out, out_stride);
  };
#if defined(GOSSAMER_AVX512)
  if (vectors <= most_vectors(8)) rows(8, multiply_of<T, 8, most_vectors(8)>(vectors, s.flip));
#endif
  if (vectors <= most_vectors(4)) rows(4, multiply_of<T, 4, most_vectors(4)>(vectors, s.flip));
  rows(2, multiply_of<T, 2, kMostVectors>(vectors, s.flip));
  rows(1, multiply_of<T, 1, kMostVectors>(vectors, s.flip));
}

// Rows of a tile as T, times its scale.
template <class T, class Stored>
void convert(const Stored* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows, int64_t cols, T scale) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) out[i * out_stride + j] = T(widen(in[i * in_stride + j])) * scale;
}

// multiply_rows of tiles that are stored in another way: some at a time are converted to T in L1.
template <class T>
void multiply_converted(const Tiles& s, int64_t slot, int64_t end, int64_t top, int64_t height, int vectors,
                        Panel<T> panel, T* out, int64_t out_stride) {
  alignas(64) T tiles[kConverted];
  const int64_t cols = least(s.bk, kConverted / height), batch = kConverted / (height * cols);
  Run<T> run = {tiles, height * cols, s.flip ? 1 : cols, s.flip ? height : 1, slot, false, slot, slot, 0, 0, false};
  if (slot == end) return multiply_rows(s, run, height, vectors, panel, out, out_stride);
  for (; slot < end; slot = run.end) {
    run.first = run.slot = slot;
    run.end = least(end, slot + batch);
    for (run.from = 0; run.from < s.bk; run.from = run.to) {
      run.to = least(s.bk, run.from + cols);
      for (int64_t i = slot; i < run.end; ++i) {
        const int64_t source = source_of(s, i), width = run.to - run.from;
        const int64_t at = source * s.bm * s.bk + (s.flip ? run.from * s.bm + top : top * s.bk + run.from);
        const T scale = s.scale != nullptr ? T(s.scale[source]) : T(1);
        T* const tile = tiles + (i - slot) * run.tile;
        const auto from = [&](auto* stored) {
          if (s.flip) convert(stored + at, s.bm, tile, run.col, width, height, scale);
          else convert(stored + at, s.bk, tile, run.row, height, width, scale);
        };
        if constexpr (sizeof(T) == 8) {
          from(static_cast<const double*>(s.values));
        } else {
          if (s.storage == Storage::kFloat) from(static_cast<const float*>(s.values));
          if (s.storage == Storage::kBFloat16) from(static_cast<const BFloat16*>(s.values));
          if (s.storage == Storage::kInt8) from(static_cast<const int8_t*>(s.values));
        }
      }
      multiply_rows(s, run, height, vectors, panel, out, out_stride);
      run.more = true;
    }
  }
}

// The segments: those of `work`, or one for each tile row.
struct Segment {
  int64_t row, slot, end;
};

struct Segments {
  const Tiles& s;
  const int64_t* work;  // null: tile rows
  int64_t count;

  Segment at(int64_t i) const {
    if (work == nullptr) return {i, least(s.offsets[i], s.capacity), least(s.offsets[i + 1], s.capacity)};
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
  int64_t partials_before(int64_t i) const {
    int64_t sum = 0;
    for (int64_t j = 0; j < i && work != nullptr; ++j) sum += partial(at(j));
    return sum;
  }
  int64_t cost(const Segment& segment) const {
    return skipped(segment) ? 0 : (segment.end - segment.slot) * s.bk + kRowCost;
  }
  // The cost of the first i segments.
  int64_t cost_before(int64_t i) const {
    if (work == nullptr) return least(s.offsets[i], s.capacity) * s.bk + i * kRowCost;
    int64_t sum = 0;
    for (int64_t j = 0; j < i; ++j) sum += cost(at(j));
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
      if (cost_before(middle) < target) low = middle + 1;
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
  T* scratch;  // a panel for each thread, then the partial sums, each bm rows of whole vectors
  int threads;

  static int vectors(const Tiles& s) { return most_vectors(s.bm >= kMostRows ? kMostRows : s.bm >= 4 ? 4 : 2); }
  static int64_t panels(const Tiles& s, int64_t n) { return ceil_div(ceil_div(n, kLanes<T>), vectors(s)); }
  static int64_t panel_elements(const Tiles& s) { return s.k * vectors(s) * kLanes<T>; }

  int64_t panel_begin(int64_t p) const { return part_begin(ceil_div(n, kLanes<T>), p, panels(s, n)); }

  // Where `part` begins: a panel and a segment in it. Parts have equal shares of the multiplications.
  void cut(int64_t part, int64_t* panel, int64_t* segment) const {
    const int64_t whole = segments.cost_before(segments.count), count = panels(s, n);
    int64_t target = part_begin(whole * panel_begin(count), part, threads), p = 0;
    for (; p < count && target >= whole * (panel_begin(p + 1) - panel_begin(p)); ++p)
      target -= whole * (panel_begin(p + 1) - panel_begin(p));
    *panel = p;
    *segment = p < count ? segments.find(ceil_div(target, panel_begin(p + 1) - panel_begin(p))) : 0;
  }

  // b's columns [left, left + width) with zeros up to `vectors` vectors.
  Panel<T> pack(T* to, int64_t left, int64_t width, int vectors) const {
    const int64_t stride = vectors * kLanes<T>;
    if (b_transposed) {
      transpose(b + left * b_stride, b_stride, to, stride, width, s.k);
      for (int64_t i = 0; i < s.k && width < stride; ++i)
        memset(to + i * stride + width, 0, size_t(stride - width) * sizeof(T));
    } else {
      for (int64_t i = 0; i < s.k; ++i) {
        const T* const row = b + i * b_stride + left;
        for (int v = 0; v < vectors; ++v) {
          const int64_t inside = width - v * kLanes<T>;
          store_lanes(to + i * stride + v * kLanes<T>, inside >= kLanes<T> ? load_lanes(row + v * kLanes<T>)
                                                                          : load_first(row + v * kLanes<T>, int(inside)));
        }
      }
    }
    return {to, stride};
  }

  void run(int64_t part) const {
    alignas(64) T stage[kStageRows * kMostVectors * kLanes<T>];
    int64_t p, i, last_panel, last_segment;
    cut(part, &p, &i);
    cut(part + 1, &last_panel, &last_segment);
    for (; p < last_panel || (p == last_panel && i < last_segment); ++p, i = 0) {
      const int64_t end = p == last_panel ? last_segment : segments.count;
      const int64_t left = panel_begin(p) * kLanes<T>;
      const int vectors = int(panel_begin(p + 1) - panel_begin(p));
      const int64_t stride = vectors * kLanes<T>, width = least(n - left, stride);
      // A panel that few tiles read is not worth a copy.
      const bool few = (segments.cost_before(end) - segments.cost_before(i)) < 2 * s.k;
      Panel<T> panel = {b + left, b_stride};
      if (b_transposed || width < stride || !(few || b_stride == stride))
        panel = pack(scratch + part * panel_elements(s), left, width, vectors);
      const bool direct = !column_major && width == stride;
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
      for (int64_t partials = segments.partials_before(i); i < end; ++i) {
        const Segment segment = segments.at(i);
        if (segments.skipped(segment)) continue;
        const int64_t bottom = least(s.rows, (segment.row + 1) * s.bm);
        T* const sum = segments.partial(segment) ? partial_sum(partials++) + left : nullptr;
        for (int64_t top = segment.row * s.bm; top < bottom;) {
          const int64_t height = least(bottom - top, kStageRows), inside = top - segment.row * s.bm;
          T* out = sum != nullptr ? sum + inside * padded() : c + top * n + left;
          int64_t out_stride = sum != nullptr ? padded() : n;
          if (sum == nullptr && !direct) {
            if (staged + height > kStageRows || top != stage_top + staged) flush();
            if (staged == 0) stage_top = top;
            out = stage + staged * stride;
            out_stride = stride;
            staged += height;
          }
          multiply_piece(segment, inside, height, vectors, panel, out, out_stride);
          top += height;
        }
      }
      flush();
    }
  }

  int64_t padded() const { return ceil_div(n, kLanes<T>) * kLanes<T>; }
  T* partial_sum(int64_t i) const { return scratch + threads * panel_elements(s) + i * s.bm * padded(); }

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

  void multiply_piece(const Segment& segment, int64_t top, int64_t height, int vectors, Panel<T> panel, T* out,
                      int64_t out_stride) const {
    const bool plain = s.scale == nullptr && s.storage == (sizeof(T) == 8 ? Storage::kDouble : Storage::kFloat);
    if (!plain) return multiply_converted(s, segment.slot, segment.end, top, height, vectors, panel, out, out_stride);
    const int64_t row = s.flip ? 1 : s.bk, col = s.flip ? s.bm : 1;
    const Run<T> run = {static_cast<const T*>(s.values) + top * row, s.bm * s.bk, row, col, 0, s.order != nullptr,
                        segment.slot, segment.end, 0, s.bk, false};
    multiply_rows(s, run, height, vectors, panel, out, out_stride);
  }
};

}  // namespace

int64_t dsd_scratch(int storage, const int64_t* offsets, int64_t bm, int64_t bk, int64_t rows, int64_t k, int64_t n,
                    const int64_t* work, int64_t segments, int threads) {
  const Tiles s = {nullptr, Storage(storage), nullptr, offsets, nullptr, 2, nullptr, 4, 0, bm, bk, false, rows, k};
  const int64_t partials = Segments{s, work, segments}.partials_before(segments);
  const bool wide = s.storage == Storage::kDouble;
  const int64_t panel = wide ? Product<double>::panel_elements(s) : Product<float>::panel_elements(s);
  const int64_t lanes = wide ? kLanes<double> : kLanes<float>;
  return (threads * panel + partials * bm * ceil_div(n, lanes) * lanes) * (wide ? 8 : 4);
}

void dsd(const void* values, int storage, const float* scale, const int64_t* offsets, const void* indices,
         int index_size, const void* order, int order_size, int64_t capacity, int64_t bm, int64_t bk, bool flip,
         int64_t rows, int64_t k, const void* b, int64_t n, int64_t b_stride, bool b_transposed, void* c,
         bool column_major, const int64_t* work, int64_t segments, void* scratch, int threads) {
  if (rows == 0 || n == 0) return;
  const Tiles s = {values, Storage(storage), scale, offsets, indices, index_size, order, order_size, capacity, bm, bk,
                   flip, rows, k};
  const auto product = [&](auto zero) {
    using T = decltype(zero);
    const Segments all = {s, work, work == nullptr ? ceil_div(rows, bm) : segments};
    const int64_t used = least(offsets[ceil_div(rows, bm)], capacity);
    const int team = useful_threads((rows * n + used * bm * bk * n / 16) * int64_t(sizeof(T)), threads);
    const Product<T> p = {s, all, static_cast<const T*>(b), n, b_stride, b_transposed, static_cast<T*>(c),
                          column_major, static_cast<T*>(scratch), team};
    parallel(team, team, [&p](int64_t part) { p.run(part); });
    if (work != nullptr) parallel(team, team, [&p](int64_t part) { p.finish(part); });
  };
  if (s.storage == Storage::kDouble) product(double());
  else product(float());
}

}  // namespace gossamer::GOSSAMER_ISA
