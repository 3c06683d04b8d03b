// The gradient of the fan-in product by its values: dy^T x at the k elements of each row.
#include "fan_in_rows.h"
#include "fan_in_signals.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kBlockSlots = 1 << 13;  // whose values stay in the cache while the panels of the batch pass

template <class T>
struct Sample {
  const Operand& dy;
  Panels<T> panels;
  const void* indices;
  int index_size;
  int64_t k;
  T* values;
  T* packed;

  bool run(int64_t begin, int64_t end) const {
    const int64_t step = ceil_div(kBlockSlots / (k + 1) + 1, kSignalRows) * kSignalRows;
    for (int64_t block = begin; block < end; block += step) {
      const int64_t stop = least(end, block + step);
      if (!all_below(indices, index_size, block * k, stop * k, panels.cols)) return false;
      if (panels.count() == 0) memset(values + block * k, 0, size_t((stop - block) * k) * sizeof(T));
      for (int64_t p = 0; p < panels.count(); ++p) run_panel(block, stop, p);
    }
    return true;
  }

  void run_panel(int64_t block, int64_t stop, int64_t p) const {
    alignas(64) T signals[kSignalRows * kMostVectors * kLanes<T>];
    for (int64_t row = block; row < stop; row += kSignalRows) {
      const int64_t some = least(kSignalRows, stop - row);
      take_rows(dy, panels, p, row, some, signals);
      for_panel(int(panels.stride(p) / kLanes<T>), index_size, [&]<int kV, class Number>() {
        for (int64_t i = 0; i < some; ++i) {
          Lanes<T> g[kV];
          load_row<T, kV>(signals + i * kV * kLanes<T>, g);
          const int64_t slot = (row + i) * k;
          sample_row<T, kV>(static_cast<const Number*>(indices) + slot, k, g, panels.at(packed, p), p > 0,
                            values + slot);
        }
      });
    }
  }
};

template <class T>
bool sample(const Sample<T>& s, const Operand& x, int64_t rows, int threads) {
  s.panels.pack_all(x, s.packed, threads);
  threads = useful_threads(rows * (s.k + s.panels.batch) * int64_t(sizeof(T)), threads);
  Verdict verdict;
  parallel(threads, threads, [&](int64_t part) {
    verdict.add(s.run(part_begin(rows, part, threads), part_begin(rows, part + 1, threads)));
  });
  return verdict.right();
}

}  // namespace

int64_t fan_in_sdd_workspace(int element_size, int64_t batch, int64_t cols) {
  return ceil_div(batch * element_size, kWidth) * kWidth * cols;
}

bool fan_in_sdd(const Operand& dy, const Operand& x, int64_t batch, int64_t rows, int64_t cols, int element_size,
                const void* indices, int index_size, int64_t k, void* values, void* workspace, int threads) {
  if (element_size == 8)
    return sample<double>({dy, {batch, cols}, indices, index_size, k, static_cast<double*>(values),
                           static_cast<double*>(workspace)}, x, rows, threads);
  return sample<float>({dy, {batch, cols}, indices, index_size, k, static_cast<float*>(values),
                        static_cast<float*>(workspace)}, x, rows, threads);
}

}  // namespace gossamer::GOSSAMER_ISA
