// The fan-in product: a matrix each of whose rows has the same number of elements, side by side, times a dense one.
//
// x is packed so that what a column holds for a panel of the batch is a few vectors side by side: an element of the
// matrix then costs its two loads, a broadcast and a product per vector. Rows are taken in blocks whose elements stay in
// L1 while every panel meets them, so that the matrix, the large operand, is read from memory once.
#include "fan_in_rows.h"
#include "kernels.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kBlockBytes = 24 << 10;  // of values and indices
constexpr int64_t kStreamed = 16 << 20;    // bytes of a result that goes past the caches, where it would not stay

template <class T>
struct FanIn {
  const Operand& x;
  int64_t batch, cols;
  const T* values;
  const void* indices;
  int index_size;
  int64_t rows, k;
  T* y;
  T* packed;

  Panels<T> panels() const { return {batch, cols}; }
  bool streams() const {
    const int64_t bytes = batch * int64_t(sizeof(T));
    return rows * bytes >= kStreamed && bytes % kWidth == 0 && reinterpret_cast<uintptr_t>(y) % kWidth == 0;
  }

  // False if an index of rows [begin, end) names no column.
  bool run(int64_t begin, int64_t end) const {
    const int64_t step = 1 + kBlockBytes / (k * int64_t(sizeof(T) + index_size) + 1);
    for (int64_t block = begin; block < end; block += step) {
      const int64_t stop = least(end, block + step);
      if (!all_below(indices, index_size, block * k, stop * k, cols)) return false;
      for (int64_t p = 0; p < panels().count(); ++p)
        for_panel(panels().of(packed, p).vectors, index_size,
                  [&]<int kV, class Number>() { multiply<kV, Number>(block, stop, p); });
    }
    end_stream();
    return true;
  }

  template <int kV, class Number>
  void multiply(int64_t block, int64_t stop, int64_t p) const {
    const T* const x = panels().at(packed, p);
    const int64_t left = panels().first(p), width = panels().width(p);
    const bool streamed = streams();
    for (int64_t r = block; r < stop; ++r) {
      const T* const row = values + r * k;
      const Number* const columns = static_cast<const Number*>(indices) + r * k;
      if (p == 0) fetch_row(row, k * int64_t(sizeof(T)), columns, k);
      Lanes<T> sums[kV] = {};
      dot_row<T, kV>(row, columns, k, x, sums);
      T* const out = y + r * batch + left;
      if (streamed) {
        for (int v = 0; v < kV; ++v) stream(out + v * kLanes<T>, (Vec)sums[v]);
      } else if (width == kV * kLanes<T>) {
        for (int v = 0; v < kV; ++v) store_lanes(out + v * kLanes<T>, sums[v]);
      } else {
        alignas(64) T stage[kV * kLanes<T>];
        for (int v = 0; v < kV; ++v) store_lanes(stage + v * kLanes<T>, sums[v]);
        memcpy(out, stage, size_t(width) * sizeof(T));
      }
    }
  }
};

template <class T>
bool product(const FanIn<T>& p, int threads) {
  p.panels().pack_all(p.x, p.packed, threads);
  threads = useful_threads(p.rows * (p.k + p.batch) * int64_t(sizeof(T)), threads);
  Verdict verdict;
  parallel(threads, threads, [&](int64_t part) {
    verdict.add(p.run(part_begin(p.rows, part, threads), part_begin(p.rows, part + 1, threads)));
  });
  return verdict.right();
}

}  // namespace

int64_t fan_in_mm_workspace(int element_size, int64_t batch, int64_t cols) {
  return ceil_div(batch * element_size, kWidth) * kWidth * cols;
}

bool fan_in_mm(const Operand& x, int64_t batch, int64_t cols, const void* values, int element_size,
               const void* indices, int index_size, int64_t rows, int64_t k, void* y, void* workspace, int threads) {
  if (element_size == 8)
    return product<double>({x, batch, cols, static_cast<const double*>(values), indices, index_size, rows, k,
                            static_cast<double*>(y), static_cast<double*>(workspace)}, threads);
  return product<float>({x, batch, cols, static_cast<const float*>(values), indices, index_size, rows, k,
                         static_cast<float*>(y), static_cast<float*>(workspace)}, threads);
}

}  // namespace gossamer::GOSSAMER_ISA
