// How much each page of a request may matter to its query: the largest product with its keys in four bits.
//
// Codes of four bits meet queries that are rounded to eight, in pairs: a sum of eight pairs fits 16 bits. So all sums are
// exact, the same for each instruction set, and a scale and a zero for each key make numbers of them. Where codes have
// eight bits, the upper four stand for the middle of what they may be.
#include "page_codes.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kTogether = 4;    // query heads that meet a vector of codes together ...
constexpr int64_t kAtOnce = 16;     // ... and a page, before the next one is read
constexpr int64_t kMostWidth = 256;
constexpr int64_t kStep = kLanes<float>;  // tokens

// sum + the products of four codes of each token with four numbers of a query, two and two in 16 bits.
#if defined(GOSSAMER_AVX512)
inline Codes add_pairs(Codes sum, Codes codes, int32_t four) {
  return _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, _mm512_set1_epi32(four)));
}
inline Codes add_tokens(Codes sum, Codes pairs) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
inline Lanes<float> to_floats(Codes sum) { return (Lanes<float>)_mm512_cvtepi32_ps(sum); }
#elif defined(GOSSAMER_AVX2)
inline Codes add_pairs(Codes sum, Codes codes, int32_t four) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four)));
}
inline Codes add_tokens(Codes sum, Codes pairs) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Lanes<float> to_floats(Codes sum) { return (Lanes<float>)_mm256_cvtepi32_ps(sum); }
#else
// Sums have theirs in the first of the four numbers of a token.
inline Codes add_pairs(Codes sum, const Codes& codes, int32_t four) {
  int8_t q[4];
  memcpy(q, &four, 4);
  for (int t = 0; t < kStep; ++t)
    for (int i = 0; i < 4; ++i) sum.x[4 * t] += codes.x[4 * t + i] * q[i];
  return sum;
}
inline Codes add_tokens(Codes sum, const Codes& pairs) {
  for (int t = 0; t < kStep; ++t) sum.x[4 * t] += pairs.x[4 * t];
  return sum;
}
inline Lanes<float> to_floats(const Codes& sum) {
  Lanes<float> y;
  for (int t = 0; t < kStep; ++t) y[t] = float(sum.x[4 * t]);
  return y;
}
#endif
// a * b + c, rounded once on every machine.
inline Lanes<float> multiply_add(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
#if defined(GOSSAMER_AVX2) || defined(GOSSAMER_AVX512)
  return fma(a, b, c);
#else
  for (int t = 0; t < kStep; ++t) c[t] = float(double(a[t]) * double(b[t]) + double(c[t]));
  return c;
#endif
}
constexpr int64_t kPairBlocks = 4;  // of 8 coordinates, whose pairs fit 16 bits: 8 * 2 * 15 * 127 is below 2^15

// A query in 8 bits: coordinate d is about scale * codes[d]. NaN makes all NaN.
struct RoundedQuery {
  int8_t codes[kMostWidth];
  float scale, sum;  // of the codes

  void round(const float* q, int64_t width) {
    float most = 0, nothing = 0;
    for (int64_t d = 0; d < width; ++d) {
      const float size = q[d] < 0 ? -q[d] : q[d];
      most = size > most ? size : most;
      nothing += q[d] - q[d];
    }
    scale = most / 127.0f + nothing;
    int32_t all = 0;
    for (int64_t d = 0; d < width; ++d) {
      const float c = scale > 0 ? __builtin_rintf(q[d] / scale) : 0;
      codes[d] = int8_t(c > 127 ? 127 : c > -127 ? c : c == c ? -127 : 0);
      all += codes[d];
    }
    sum = float(all);
  }
  int32_t four(int64_t d) const {
    int32_t x;
    memcpy(&x, codes + d, 4);
    return x;
  }
};

// The products of kStep keys from token t on with each of the queries; what lies `ahead` bytes further comes into L2.
template <int kHeads>
void multiply(const uint8_t* codes, int64_t ahead, int64_t page, int64_t width, int64_t t, const RoundedQuery* q,
              Codes* sums) {
#pragma GCC unroll 4
  for (int i = 0; i < kHeads; ++i) sums[i] = Codes{};
  for (int64_t j = 0; j < width / 8;) {
    Codes pairs[kHeads] = {};
    for (const int64_t end = least(j + kPairBlocks, width / 8); j < end; ++j) {
      const uint8_t* const at = codes + (j * page + t) * 4;
      const Codes both = load_bytes(at), low = low_half(both), high = high_half(both);
      if (kWidth == 64 || t % 16 == 0) __builtin_prefetch(at + ahead, 0, 2);
#pragma GCC unroll 4
      for (int i = 0; i < kHeads; ++i)
        pairs[i] = add_pairs(add_pairs(pairs[i], low, q[i].four(8 * j)), high, q[i].four(8 * j + 4));
    }
#pragma GCC unroll 4
    for (int i = 0; i < kHeads; ++i) sums[i] = add_tokens(sums[i], pairs[i]);
  }
}

// The largest product of the first `filled` keys of a tile with each of the queries. Tile `next` is looked at then.
template <int kHeads>
void score_tile(const KeyPlanes& keys, int64_t tile, int64_t next, int64_t filled, const RoundedQuery* q,
                float* best) {
  const uint8_t* const codes = keys.plane(tile, 0);
  const BFloat16 *const scales = keys.scales_of(tile), *const scales_then = keys.scales_of(next);
  const int64_t ahead = keys.plane(next, 0) - codes;
  const float unit = keys.planes == 2 ? 16.0f : 1.0f, middle = (unit - 1) / 2;  // of what has the same upper bits
  for (int64_t t = 0; t < 2 * keys.page; t += 32) __builtin_prefetch(scales_then + t, 0, 2);
  Lanes<float> most[kHeads];
  for (int i = 0; i < kHeads; ++i) {
    most[i] = broadcast(-__builtin_inff());
    best[i] = -__builtin_inff();
  }
  for (int64_t t = 0; t < filled; t += kStep) {
    Codes sums[kHeads];
    multiply<kHeads>(codes, ahead, keys.page, keys.width, t, q, sums);
    const Lanes<float> scale = load_weights(scales + t), zero = load_weights(scales + keys.page + t);
#pragma GCC unroll 4
    for (int i = 0; i < kHeads; ++i) {
      // Twice this sum is an integer below 2^24, and so is the product of a zero with one: neither is rounded.
      const Lanes<float> whole = fma(broadcast(unit), to_floats(sums[i]), broadcast(middle * q[i].sum));
      const Lanes<float> s = multiply_add(scale, whole, zero * broadcast(q[i].sum)) * broadcast(q[i].scale);
      if (filled - t >= kStep) {
        most[i] = s > most[i] ? s : most[i];
        continue;
      }
      for (int64_t k = 0; k < filled - t; ++k) best[i] = s[k] > best[i] ? s[k] : best[i];
    }
  }
  for (int i = 0; i < kHeads; ++i)
    for (int64_t k = 0; k < kStep; ++k) best[i] = most[i][k] > best[i] ? most[i][k] : best[i];
}

}  // namespace

bool page_key_scores(const float* q, int64_t query_heads, int64_t group, const int64_t* first_heads, const Pages& pages,
                     const Requests& requests, const KeyCodes& codes, float* scores, int threads) {
  const KeyPlanes keys(codes, pages);
  const PagedRequests all(requests);
  if (!all.are_right(pages) || !are_heads(first_heads, pages.heads, query_heads, group)) return false;
  const int64_t cols = requests.table_cols, width = pages.width;
  for (int64_t i = 0; i < requests.count * query_heads * cols; ++i) scores[i] = -__builtin_inff();
  threads = useful_threads(requests.count * cols * pages.heads * pages.page * width / 2, threads);
  Verdict verdict;
  parallel(threads, threads, [&](int64_t part) {
    RoundedQuery rounded[kAtOnce];
    for (int64_t r = 0; r < requests.count; ++r) {
      const int64_t used = ceil_div(requests.lengths[r], pages.page);
      const int64_t begin = part_begin(used, part, threads), end = part_begin(used, part + 1, threads);
      for (int64_t p = begin; p < end; ++p)
        if (const int64_t place = all.page_of(r, p); place < 0 || place >= pages.count) return void(verdict.add(false));
      for (int64_t h = 0; h < pages.heads; ++h)
        for (int64_t g = 0; g < group; g += kAtOnce) {
          const int64_t head = first_heads[h] + g, count = least(kAtOnce, group - g);
          for (int64_t i = 0; i < count; ++i) rounded[i].round(q + (r * query_heads + head + i) * width, width);
          for (int64_t p = begin; p < end; ++p) {
            const int64_t tile = all.page_of(r, p) * pages.heads + h;
            const int64_t next = p + 1 < end ? all.page_of(r, p + 1) * pages.heads + h : tile;
            const int64_t filled = least(pages.page, requests.lengths[r] - p * pages.page);
            for (int64_t i = 0; i < count; i += kTogether) {
              float best[kTogether];
              const int64_t some = least(kTogether, count - i);
              if (some == 4) score_tile<4>(keys, tile, next, filled, rounded + i, best);
              else if (some == 3) score_tile<3>(keys, tile, next, filled, rounded + i, best);
              else if (some == 2) score_tile<2>(keys, tile, next, filled, rounded + i, best);
              else score_tile<1>(keys, tile, next, filled, rounded + i, best);
              for (int64_t k = 0; k < some; ++k) scores[(r * query_heads + head + i + k) * cols + p] = best[k];
            }
          }
        }
    }
  });
  return verdict.right();
}

}  // namespace gossamer::GOSSAMER_ISA
