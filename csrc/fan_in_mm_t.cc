// The gradient of the fan-in product by x: dy times the matrix whose rows have k elements each, read as they lie.
#include "fan_in_parts.h"
#include "fan_in_rows.h"
#include "fan_in_signals.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

int64_t parts_of_rows(int64_t rows, int64_t k, int64_t batch) { return parts_of(rows, k * (batch + 1)); }

template <class T>
bool product(const Operand& dy, int64_t rows, const T* values, const void* indices, int index_size, int64_t k, T* dx,
             const Panels<T>& panels, T* workspace, int threads) {
  const int64_t elements = panels.elements(), parts = parts_of_rows(rows, k, panels.batch);
  const int64_t places = parts_at_once(parts, elements * int64_t(sizeof(T)), threads);
  T* const partial = workspace + elements;
  Verdict verdict;
  sum_parts(parts, places, elements, workspace, partial, threads, [&](int64_t part, T* sums, int64_t) {
    alignas(64) T signals[kSignalRows * kMostVectors * kLanes<T>];
    const int64_t end = part_begin(rows, part + 1, parts);
    for (int64_t row = part_begin(rows, part, parts); row < end; row += kSignalRows) {
      const int64_t some = least(kSignalRows, end - row);
      if (!verdict.add(all_below(indices, index_size, row * k, (row + some) * k, panels.cols))) return;
      for (int64_t p = 0; p < panels.count(); ++p) {
        take_rows(dy, panels, p, row, some, signals);
        for_panel(int(panels.stride(p) / kLanes<T>), index_size, [&]<int kV, class Number>() {
          for (int64_t i = 0; i < some; ++i) {
            Lanes<T> g[kV];
            load_row<T, kV>(signals + i * kV * kLanes<T>, g);
            const int64_t slot = (row + i) * k;
            spread_row<T, kV>(values + slot, static_cast<const Number*>(indices) + slot, k, g, panels.at(sums, p));
          }
        });
      }
    }
  });
  if (!verdict.right()) return false;
  panels.unpack_all(workspace, dx, threads);
  return true;
}

}  // namespace

int64_t fan_in_mm_t_workspace(int element_size, int64_t batch, int64_t rows, int64_t cols, int64_t k, int threads) {
  const int64_t bytes = ceil_div(batch * element_size, kWidth) * kWidth * cols;
  return bytes * (1 + parts_at_once(parts_of_rows(rows, k, batch), bytes, threads));
}

bool fan_in_mm_t(const Operand& dy, int64_t batch, int64_t rows, const void* values, int element_size,
                 const void* indices, int index_size, int64_t k, void* dx, int64_t cols, void* workspace, int threads) {
  if (element_size == 8)
    return product<double>(dy, rows, static_cast<const double*>(values), indices, index_size, k,
                           static_cast<double*>(dx), {batch, cols}, static_cast<double*>(workspace), threads);
  return product<float>(dy, rows, static_cast<const float*>(values), indices, index_size, k, static_cast<float*>(dx),
                        {batch, cols}, static_cast<float*>(workspace), threads);
}

}  // namespace gossamer::GOSSAMER_ISA
