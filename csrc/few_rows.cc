// A linear layer of few rows, as in decoding: its weight is read once, as it lies, and each row of x meets it on the way.
#include "few_rows.h"
#include "kernels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kColumns = 8;  // threads own multiples of so many

template <class W, class T>
void few_rows_of(const T* x, int64_t rows, int64_t k, const W* w, int64_t n, const T* bias, T* y, int threads) {
  const int team = useful_threads(n * k * int64_t(sizeof(W)), threads);
  const int64_t blocks = ceil_div(n, kColumns);
  parallel(team, team, [=](int64_t part) {
    const int64_t begin = part_begin(blocks, part, team) * kColumns;
    const int64_t end = least(n, part_begin(blocks, part + 1, team) * kColumns);
    multiply_few_by_columns(rows, k, [=](int64_t i) { return x + i * k; }, w, begin, end,
                            [=](int64_t i) { return y + i * n; });
    if (bias)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = begin; j < end; ++j) y[i * n + j] += bias[j];
  });
}

}  // namespace

void few_rows(const void* x, int64_t rows, int64_t k, const void* w, int type, int64_t n, const void* bias, void* y,
              int threads) {
  const auto run = [=]<class W>(const W* weights) {
    using T = Wide<W>;
    few_rows_of(static_cast<const T*>(x), rows, k, weights, n, static_cast<const T*>(bias), static_cast<T*>(y), threads);
  };
  if (type == 3) run(static_cast<const double*>(w));
  else if (type == 2) run(static_cast<const Float16*>(w));
  else if (type == 1) run(static_cast<const BFloat16*>(w));
  else run(static_cast<const float*>(w));
}

}  // namespace gossamer::GOSSAMER_ISA
