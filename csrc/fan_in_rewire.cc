// Dropping the weakest connections of rows of fixed fan-in, and growing others: no dense mask, no rejection.
//
// Each row is rewired for itself. Free inputs are numbered by rank: m distinct ranks are drawn (Floyd's algorithm keeps
// them sorted), and rank r is input r plus how many connected inputs lie below it. A row's random numbers come from its
// number, so neither threads nor blocks change a bit.
#include "counter.h"
#include "kernels.h"
#include "structure.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kBroken = -1;
constexpr uint32_t kProtected = ~uint32_t(0);  // above every magnitude
constexpr int kDigits = 3, kShift[kDigits] = {20, 9, 0}, kBits[kDigits] = {11, 11, 9};
constexpr int kBuckets = 1 << 11;
constexpr int64_t kFew = 2048;  // numbers of which bits are looked through for those that are set
// Keep the streams of one seed apart.
constexpr uint64_t kDrawing = 0x6472617764726177, kGrowing = 0x67726f7767726f77, kStarting = 0x7374617274737461;

inline uint64_t draw(uint64_t key, int64_t number) { return mixed(key + uint64_t(number) * 0x9E3779B97F4A7C15); }
inline int64_t draw_below(uint64_t key, int64_t number, int64_t n) {
  return int64_t((unsigned __int128)(draw(key, number)) * uint64_t(n) >> 64);
}

// m of the numbers below n, ascending, every set as likely as any other.
template <class Number>
inline void draw_ranks(uint64_t key, int64_t n, int64_t m, Number* out) {
  if (n <= kFew) {  // a bit for each: sorted without moving any
    uint64_t words[kFew / 64];
    memset(words, 0, size_t(ceil_div(n, 64)) * 8);
    Set drawn = {words};
    for (int64_t j = 0; j < m; ++j)
      if (!drawn.add(draw_below(key, j, n - m + j + 1))) drawn.add(n - m + j);
    for (int64_t w = 0; w < ceil_div(n, 64); ++w)
      for (uint64_t bits = words[w]; bits != 0; bits &= bits - 1) *out++ = Number(w * 64 + __builtin_ctzll(bits));
    return;
  }
  for (int64_t j = 0; j < m; ++j) {
    const int64_t most = n - m + j, x = draw_below(key, j, most + 1), at = place_of(out, j, x);
    if (at < j && int64_t(out[at]) == x) {
      out[j] = Number(most);  // not drawn before, and above what was
    } else {
      memmove(out + at + 1, out + at, size_t(j - at) * sizeof(Number));
      out[at] = Number(x);
    }
  }
}

// Ranks among the numbers that `taken`, ascending, does not have: to the numbers themselves.
template <class Number>
inline void ranks_to_numbers(Number* ranks, int64_t m, const Number* taken, int64_t count) {
  int64_t below = 0;
  for (int64_t j = 0; j < m; ++j) {
    while (below < count && int64_t(taken[below]) - below <= int64_t(ranks[j])) ++below;
    ranks[j] = Number(int64_t(ranks[j]) + below);
  }
}

template <class Number>
inline bool ascends_below(const Number* row, int64_t count, int64_t bound) {
  if (count == 0) return true;
  bool right = row[0] >= 0 && int64_t(row[count - 1]) < bound;
  for (int64_t j = 1; j < count; ++j) right &= row[j - 1] < row[j];
  return right;
}

template <class Number>
inline bool share_none(const Number* a, int64_t a_count, const Number* b, int64_t b_count) {
  for (int64_t i = 0, j = 0; i < a_count && j < b_count;) {
    if (a[i] == b[j]) return false;
    if (a[i] < b[j]) ++i; else ++j;
  }
  return true;
}

inline int64_t count_below(const uint32_t* keys, int64_t n, uint32_t limit) {
  uint32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] < limit;
  return count;
}
inline int64_t count_equal(const uint32_t* keys, int64_t n, uint32_t limit) {
  uint32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] == limit;
  return count;
}

// What goes: keys below the limit, and so many that equal it, in order of slot.
struct Cut {
  uint32_t limit;
  int64_t equals;
};

// The m smallest of n keys, bit by bit from the top; 0 < m <= n.
inline Cut cut_of(const uint32_t* keys, int64_t n, int64_t m) {
  uint32_t limit = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const int64_t below = count_below(keys, n, limit | 1u << bit);
    if (below == m) return {limit | 1u << bit, 0};  // nothing lies between the last that goes and this
    if (below < m) limit |= 1u << bit;
  }
  return {limit, m - count_below(keys, n, limit)};
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float stored_as(float x, float*) { return x; }
inline BFloat16 stored_as(float x, BFloat16*) {
  const uint32_t bits = bits_of(x);
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// A thread's memory for one row.
template <class Number>
struct Scratch {
  uint32_t *keys, *magnitudes;
  int32_t* sources;  // of each new slot the old one, or -1
  void* row;
  Number *columns, *fresh, *kept;
};

inline int64_t scratch_bytes(int64_t k, int64_t candidates) {
  const int64_t most = k > candidates ? k : candidates;
  return ceil_div(most * 4 * 7 + 64, 64) * 64;
}

inline int64_t part_bytes(const Classifier& c, const Rewiring& how) {
  return scratch_bytes(c.k, how.candidate_count) + kBuckets * int64_t(sizeof(int64_t));
}

template <class Value, class Number>
struct Rewire {
  const Classifier& c;
  const Parameters& at;
  const Rewiring& how;
  float init;

  int64_t rows() const { return ceil_div(c.labels, c.group); }
  const Number* row(int64_t r) const { return static_cast<const Number*>(at.indices) + r * c.k; }
  const Number* candidates(int64_t r) const {
    return static_cast<const Number*>(how.candidates) + r * how.candidate_count;
  }
  int64_t first_label(int64_t r) const { return r * c.group; }
  int64_t last_label(int64_t r) const { return least(c.labels, (r + 1) * c.group); }

  Scratch<Number> scratch(char* memory) const {
    const int64_t n = c.k > how.candidate_count ? c.k : how.candidate_count;
    uint32_t* const words = reinterpret_cast<uint32_t*>(memory);
    Number* const numbers = reinterpret_cast<Number*>(words + 4 * n);
    return {words, words + n, reinterpret_cast<int32_t*>(words + 2 * n), words + 3 * n,
            numbers, numbers + n, numbers + 2 * n};
  }

  bool is_right(int64_t r) const {
    const int64_t count = how.candidate_count;
    return ascends_below(row(r), c.k, c.cols) &&
           (count <= 0 || (ascends_below(candidates(r), count, c.cols) &&
                           share_none(row(r), c.k, candidates(r), count)));
  }

  // The magnitude of each slot as bits, which order as it does; of a group the mean.
  void keys_of(int64_t r, const Scratch<Number>& s) const {
    const Value* const values = static_cast<const Value*>(at.values);
    const int64_t from = first_label(r), to = last_label(r), k = c.k;
    if (to == from + 1) {
      for (int64_t j = 0; j < k; ++j) s.keys[j] = bits_of(widen(values[from * k + j])) & 0x7fffffff;
    } else {
      float* const sums = reinterpret_cast<float*>(s.magnitudes);
      memset(sums, 0, size_t(k) * 4);
      for (int64_t label = from; label < to; ++label)
        for (int64_t j = 0; j < k; ++j) sums[j] += __builtin_fabsf(widen(values[label * k + j]));
      for (int64_t j = 0; j < k; ++j) s.keys[j] = bits_of(sums[j] / float(to - from));
    }
    if (how.ages != nullptr)
      for (int64_t j = 0; j < k; ++j)
        if (how.ages[r * k + j] < how.min_age) s.keys[j] = kProtected;
  }

  void count_digit(int64_t begin, int64_t end, int d, uint32_t prefix, const Scratch<Number>& s, int64_t* counts) const {
    memset(counts, 0, kBuckets * sizeof(int64_t));
    const int shift = kShift[d], above = shift + kBits[d];
    for (int64_t r = begin; r < end; ++r) {
      keys_of(r, s);
      for (int64_t j = 0; j < c.k; ++j)
        if (s.keys[j] >> above == prefix >> above && s.keys[j] != kProtected)
          ++counts[s.keys[j] >> shift & ((1u << kBits[d]) - 1)];
    }
  }

  // How many of this row go, and which. `equals` is what other rows have left of those at the limit of all.
  int64_t cut_row(const Scratch<Number>& s, Cut all, int64_t* equals, Cut* cut) const {
    const int64_t k = c.k, free = k - count_equal(s.keys, k, kProtected);
    int64_t m = least(how.drop, free);
    *cut = {0, 0};
    if (how.everywhere || how.drop < 0) {
      const int64_t mine = least(*equals, count_equal(s.keys, k, all.limit));
      *equals -= mine;
      *cut = {all.limit, mine};
      m = mine + count_below(s.keys, k, all.limit);
    }
    int64_t most = how.avoid_dropped ? c.cols - k : k;
    if (how.candidate_count >= 0) most = least(most, how.candidate_count);
    if (m > most || !(how.everywhere || how.drop < 0)) {
      m = least(m, most);
      if (m > 0) *cut = cut_of(s.keys, k, m);
    }
    return m;
  }

  // The columns that row r gets for those that it loses.
  void grow(int64_t r, int64_t m, int64_t kept, const Scratch<Number>& s, uint64_t key) const {
    if (how.candidate_count < 0) {
      const Number* const taken = how.avoid_dropped ? row(r) : s.kept;
      const int64_t count = how.avoid_dropped ? c.k : kept;
      draw_ranks(key, c.cols - count, m, s.fresh);
      ranks_to_numbers(s.fresh, m, taken, count);
      return;
    }
    const int64_t n = how.candidate_count;
    for (int64_t j = 0; j < n; ++j) {
      const uint32_t bits = bits_of(how.scores[r * n + j]) & 0x7fffffff;
      s.magnitudes[j] = bits > 0x7f800000 ? kProtected : 0x7fffffff - bits;  // NaN last
    }
    Cut cut = cut_of(s.magnitudes, n, m);
    for (int64_t j = 0, at = 0; j < n; ++j)
      if (s.magnitudes[j] < cut.limit || (s.magnitudes[j] == cut.limit && cut.equals-- > 0))
        s.fresh[at++] = candidates(r)[j];
  }

  template <class T, class New>
  void move(T* numbers, const Scratch<Number>& s, const New& fresh) const {
    T* const old = static_cast<T*>(s.row);
    memcpy(old, numbers, size_t(c.k) * sizeof(T));
    for (int64_t j = 0; j < c.k; ++j) numbers[j] = s.sources[j] < 0 ? fresh(j) : old[s.sources[j]];
  }

  int64_t rewire_row(int64_t r, const Scratch<Number>& s, Cut all, int64_t* equals) const {
    const int64_t k = c.k;
    keys_of(r, s);
    Cut cut;
    const int64_t m = cut_row(s, all, equals, &cut);
    uint8_t* const ages = how.ages == nullptr ? nullptr : how.ages + r * k;
    for (int64_t j = 0; ages != nullptr && j < k; ++j) ages[j] += ages[j] < 255;
    if (m == 0) return 0;

    int32_t* const slots = reinterpret_cast<int32_t*>(s.magnitudes);
    Number* const columns = const_cast<Number*>(row(r));
    int64_t kept = 0;
    for (int64_t j = 0; j < k; ++j) {
      const bool goes = s.keys[j] < cut.limit || (s.keys[j] == cut.limit && cut.equals-- > 0);
      s.kept[kept] = columns[j];
      s.sources[kept] = int32_t(j);
      kept += !goes;
    }
    grow(r, m, kept, s, row_key(step_key(int64_t(uint64_t(how.seed) ^ kGrowing), how.step), how.first / c.group + r));
    memcpy(slots, s.sources, size_t(kept) * 4);
    for (int64_t j = 0, old = 0, fresh = 0; j < k; ++j) {
      const bool from_old = fresh == m || (old < kept && s.kept[old] < s.fresh[fresh]);
      s.columns[j] = from_old ? s.kept[old] : s.fresh[fresh];
      s.sources[j] = from_old ? slots[old] : -1;
      from_old ? ++old : ++fresh;
    }
    memcpy(columns, s.columns, size_t(k) * sizeof(Number));
    for (int64_t label = first_label(r); label < last_label(r); ++label) {
      const uint64_t key = row_key(step_key(int64_t(uint64_t(how.seed) ^ kStarting), how.step), how.first + label);
      move(static_cast<Value*>(at.values) + label * k, s, [&](int64_t j) {
        const float share = float(int64_t(draw(key, j) >> 40) - (1 << 23)) * 0x1p-23f;  // in [-1, 1), exactly
        return stored_as(init == 0 ? 0.0f : share * init, static_cast<Value*>(nullptr));
      });
      const auto zero = [](int64_t) { return 0.0f; };
      if (at.first != nullptr) move(at.first + label * k, s, zero);
      if (at.second != nullptr) move(at.second + label * k, s, zero);
    }
    if (ages != nullptr) move(ages, s, [](int64_t) { return uint8_t(0); });
    return m;
  }

  // The cut of all rows, and how many of its equals each part takes: those that come first.
  Cut cut_all(char* memory, int64_t parts, int64_t* equals, int threads) const {
    uint32_t prefix = 0;
    int64_t before = 0, left = 0;
    for (int d = 0; d < kDigits; ++d) {
      parallel(parts, threads, [&](int64_t part) {
        char* const mine = memory + part * part_bytes(c, how);
        count_digit(part_begin(rows(), part, parts), part_begin(rows(), part + 1, parts), d, prefix, scratch(mine),
                    counts_of(mine));
      });
      const auto counted = [&](int64_t part, uint32_t bucket) {
        return counts_of(memory + part * part_bytes(c, how))[bucket];
      };
      if (d == 0) {
        int64_t total = 0;
        for (int64_t part = 0; part < parts; ++part)
          for (int b = 0; b < kBuckets; ++b) total += counted(part, b);
        left = least(how.drop, total);
        if (left == 0) return {0, 0};
      }
      for (uint32_t b = 0;; ++b) {
        int64_t here = 0;
        for (int64_t part = 0; part < parts; ++part) here += counted(part, b);
        if (before + here >= left) {
          prefix |= b << kShift[d];
          break;
        }
        before += here;
      }
    }
    left -= before;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t here = counts_of(memory + part * part_bytes(c, how))[prefix & ((1u << kBits[2]) - 1)];
      equals[part] = least(left, here);
      left -= equals[part];
    }
    return {prefix, 0};
  }

  // Of the counts of a part, the first holds its result.
  int64_t* counts_of(char* part) const {
    return reinterpret_cast<int64_t*>(part + scratch_bytes(c.k, how.candidate_count));
  }

  int64_t run(float threshold, char* memory, int threads) const {
    const int parts = useful_threads(c.labels * c.k * 8, threads);
    Verdict verdict;
    parallel(parts, parts, [&](int64_t part) {
      bool right = true;
      for (int64_t r = part_begin(rows(), part, parts); right && r < part_begin(rows(), part + 1, parts); ++r)
        right = is_right(r);
      verdict.add(right);
    });
    if (!verdict.right()) return kBroken;
    int64_t* const equals = reinterpret_cast<int64_t*>(memory + threads * part_bytes(c, how));
    memset(equals, 0, size_t(parts) * 8);
    Cut all = {threshold > 0 ? bits_of(threshold) : 0, 0};
    if (how.everywhere && how.drop >= 0) all = cut_all(memory, parts, equals, parts);
    parallel(parts, parts, [&](int64_t part) {
      char* const mine = memory + part * part_bytes(c, how);
      int64_t rewired = 0;
      for (int64_t r = part_begin(rows(), part, parts); r < part_begin(rows(), part + 1, parts); ++r)
        rewired += rewire_row(r, scratch(mine), all, equals + part);
      counts_of(mine)[0] = rewired;
    });
    int64_t rewired = 0;
    for (int part = 0; part < parts; ++part) rewired += counts_of(memory + part * part_bytes(c, how))[0];
    return rewired;
  }
};

// What a row draws from: all columns but `taken`, of which it has count.
template <class Number>
bool draw_rows(Number* out, int64_t rows, int64_t k, int64_t cols, const Number* taken, int64_t count, int64_t seed,
               int64_t step, int64_t first, int threads) {
  const uint64_t key = step_key(int64_t(uint64_t(seed) ^ kDrawing), step);
  threads = useful_threads(rows * (k + count) * 8, threads);
  Verdict verdict;
  parallel(threads, threads, [&, threads](int64_t part) {
    for (int64_t r = part_begin(rows, part, threads); r < part_begin(rows, part + 1, threads); ++r) {
      if (!verdict.add(ascends_below(taken + r * count, count, cols))) return;
      draw_ranks(row_key(key, first + r), cols - count, k, out + r * k);
      ranks_to_numbers(out + r * k, k, taken + r * count, count);
    }
  });
  return verdict.right();
}

template <class Value>
int64_t rewire(const Classifier& c, const Parameters& at, const Rewiring& how, float threshold, float init,
               void* workspace, int threads) {
  char* const memory = static_cast<char*>(workspace);
  if (c.index_size == 2) return Rewire<Value, uint16_t>{c, at, how, init}.run(threshold, memory, threads);
  return Rewire<Value, int32_t>{c, at, how, init}.run(threshold, memory, threads);
}

}  // namespace

int64_t fan_in_rewire_workspace(const Classifier& c, const Rewiring& how, int threads) {
  return threads * (part_bytes(c, how) + 8);
}

int64_t fan_in_rewire(const Classifier& c, const Parameters& at, const Rewiring& how, float threshold, float init,
                      void* workspace, int threads) {
  return c.value_size == 2 ? rewire<BFloat16>(c, at, how, threshold, init, workspace, threads)
                           : rewire<float>(c, at, how, threshold, init, workspace, threads);
}

bool fan_in_draw(void* out, int index_size, int64_t rows, int64_t k, int64_t cols, const void* taken, int64_t count,
                 int64_t seed, int64_t step, int64_t first, int threads) {
  if (index_size == 2)
    return draw_rows(static_cast<uint16_t*>(out), rows, k, cols, static_cast<const uint16_t*>(taken), count, seed, step,
                     first, threads);
  return draw_rows(static_cast<int32_t*>(out), rows, k, cols, static_cast<const int32_t*>(taken), count, seed, step, first,
                   threads);
}

}  // namespace gossamer::GOSSAMER_ISA
