// Which elements of x @ w^T + bias may be above zero, for few rows of x, from an eighth to a quarter of the bytes of w.
//
// w is known by whole numbers of 8 bits, q * scale, and by how far a product with them may be off for each unit of |x|. The
// rows of q follow one another, so eight of them are one stretch of memory; the next eight are asked for meanwhile.
#include "kernels.h"
#include "mv.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int kRows = 8;  // of q side by side: as many chains of additions as hide their latency

inline Lanes<float> load_whole(const int8_t* p) {
#if defined(GOSSAMER_AVX512)
  return (Lanes<float>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(GOSSAMER_AVX2)
  return (Lanes<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return Lanes<float>{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
#endif
}

inline Lanes<float> load_whole(const int8_t* p, int count) {
  int8_t few[kLanes<float>] = {};
  memcpy(few, p, size_t(count));
  return load_whole(few);
}

// dot[r] = x . q[r], for r < kCount rows of c that follow one another; `ahead` bytes behind each there may be more of q.
template <int kCount>
void dots(const int8_t* q, int64_t c, const float* x, int64_t ahead, float* dot) {
  Lanes<float> sum[kCount] = {};
  int64_t j = 0;
  for (; j + kLanes<float> <= c; j += kLanes<float>) {
    const Lanes<float> factor = load_lanes(x + j);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) sum[r] = fma(load_whole(q + r * c + j), factor, sum[r]);
    if (ahead != 0 && j % 64 == 0)
      for (int r = 0; r < kCount; ++r) __builtin_prefetch(q + r * c + j + ahead);
  }
  if (j < c) {
    const int rest = int(c - j);
    const Lanes<float> factor = load_first(x + j, rest);
    for (int r = 0; r < kCount; ++r) sum[r] = fma(load_whole(q + r * c + j, rest), factor, sum[r]);
  }
  for (int r = 0; r < kCount; ++r) dot[r] = sum_lanes<float>(sum[r]);
}

// |x|, not below what it is; NaN where products with x could overflow.
float length(const float* x, int64_t c) {
  double sum = 0.0;
  for (int64_t i = 0; i < c; ++i) sum += double(x[i]) * double(x[i]);
  const double norm = __builtin_sqrt(sum) * (1.0 + 1e-6);
  return norm < 1e30 ? float(norm) : __builtin_nanf("");
}

}  // namespace

void open_mv(const float* x, int64_t batch, int64_t c, const int8_t* q, const float* scale, const float* slack, int64_t k,
             const float* bias, float* gate, float* norms, int threads) {
  for (int64_t b = 0; b < batch; ++b) norms[b] = length(x + b * c, c);
  const int team = useful_threads(k * c, threads);
  const int64_t groups = ceil_div(k, kRows);
  parallel(team, team, [=](int64_t part) {
    const int64_t end = part_begin(groups, part + 1, team);
    for (int64_t group = part_begin(groups, part, team); group < end; ++group) {
      const int64_t first = group * kRows, rows = least(kRows, k - first);
      const int8_t* const mine = q + first * c;
      for (int64_t b = 0; b < batch; ++b) {
        float dot[kRows];
        if (rows == kRows) dots<kRows>(mine, c, x + b * c, b == 0 && group + 1 < end ? kRows * c : 0, dot);
        else
          for (int64_t r = 0; r < rows; ++r) dots<1>(mine + r * c, c, x + b * c, 0, dot + r);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t row = first + r;
          // Rounding keeps the order of numbers: if this sum is below -bias, so is what it was rounded from.
          const float upper = scale[row] * dot[r] + slack[row] * norms[b];
          gate[b * k + row] = upper < (bias ? -bias[row] : 0.0f) ? 0.0f : 1.0f;
        }
      }
    }
  });
}

}  // namespace gossamer::GOSSAMER_ISA
