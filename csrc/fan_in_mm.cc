// The fan-in product: a matrix each of whose rows has the same number of elements, side by side, times a dense one.
//
// x is packed so that what a column holds for a panel of the batch is a few vectors side by side: an element of the
// matrix then costs its two loads, a broadcast and a product per vector. Rows are taken in blocks whose elements stay in
// L1 while every panel meets them, so that the matrix, the large operand, is read from memory once.
#include "dsd_elements.h"
#include "fan_in_panels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kBlockBytes = 24 << 10;  // of values and indices

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

  // False if an index of rows [begin, end) names no column.
  bool run(int64_t begin, int64_t end) const {
    const int64_t step = 1 + kBlockBytes / (k * int64_t(sizeof(T) + index_size) + 1);
    const Tiles s = tiles();
    for (int64_t block = begin; block < end; block += step) {
      const int64_t stop = least(end, block + step);
      if (!all_below(indices, index_size, block * k, stop * k, cols)) return false;
      for (int64_t p = 0; p < panels().count(); ++p) multiply(s, block, stop, panels().of(packed, p), panels().first(p));
    }
    return true;
  }

  void multiply(const Tiles& s, int64_t block, int64_t stop, Panel<T> panel, int64_t left) const {
    alignas(64) T stage[kMostVectors * kLanes<T>];
    const Multiply<T> row_times_panel = multiply_row_of<T>(panel.vectors, index_size);
    const int64_t width = least(batch - left, panel.stride);
    for (int64_t r = block; r < stop; ++r) {
      const Run<T> run = {values, 1, 1, 1, 0, false, r * k, (r + 1) * k, 0, 1, false};
      T* const out = y + r * batch + left;
      row_times_panel(s, run, panel, width == panel.stride ? out : stage, 0);
      if (width < panel.stride) memcpy(out, stage, size_t(width) * sizeof(T));
    }
  }

  // What the loop over one row's elements looks at: single elements, in the order in which they lie.
  Tiles tiles() const {
    const Index index = {nullptr, indices, index_size, rows * k, rows, cols, 1, 1};
    return {Slots(index), values, sizeof(T) == 8 ? Storage::kDouble : Storage::kFloat, nullptr, nullptr, 4, false};
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
