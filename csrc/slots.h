// The slots of an index: whose row of tiles a slot is in, which tile column it names, and whether that is there.
//
// An op looks at the offsets before it reads anything else, and each thread at the numbers of its own slots before it
// uses one as an address: one stream over them, which brings them into cache.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Whether offsets[count + 1] start at 0 (or, if not from_zero, anywhere above), never fall, and end at most at `most`.
inline bool are_offsets(const int64_t* offsets, int64_t count, bool from_zero, int64_t most) {
  typedef int64_t Numbers __attribute__((vector_size(kWidth)));
  constexpr int64_t kStep = kWidth / 8;
  bool right = (from_zero ? offsets[0] == 0 : offsets[0] >= 0) & (offsets[count] <= most);
  Numbers falls = {};
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) falls |= (Numbers)load(offsets + i) > (Numbers)load(offsets + i + 1);
  for (; i < count; ++i) right &= offsets[i] <= offsets[i + 1];
  return right & !any_bit((Vec)falls);
}

// Whether `n` numbers are below `bound`, a negative one being a large unsigned one. The last vector overlaps the one
// before: what the compiler would make of the rest costs more than all else.
template <class Number>
inline bool all_below(const Number* numbers, int64_t n, int64_t bound) {
  typedef Number Numbers __attribute__((vector_size(kWidth)));
  constexpr int64_t kStep = kWidth / int64_t(sizeof(Number));
  if (uint64_t(bound) > uint64_t(Number(~Number(0)))) return true;
  if (n < kStep) {
    bool right = true;
    for (int64_t i = 0; i < n; ++i) right &= numbers[i] < uint64_t(bound);
    return right;
  }
  Numbers most = (Numbers)load(numbers + n - kStep);
  for (int64_t i = 0; i + kStep <= n; i += kStep) {
    const Numbers some = (Numbers)load(numbers + i);
    most = some > most ? some : most;
  }
  return !any_bit((Vec)(most >= Number(bound)));
}

// Whether numbers [begin, end) of a list, each of 2, 4 or 8 bytes, are in [0, bound).
inline bool all_below(const void* list, int size, int64_t begin, int64_t end, int64_t bound) {
  if (size == 2) return all_below(static_cast<const uint16_t*>(list) + begin, end - begin, bound);
  if (size == 4) return all_below(static_cast<const uint32_t*>(list) + begin, end - begin, bound);
  return all_below(static_cast<const uint64_t*>(list) + begin, end - begin, bound);
}

// The first place of an ascending list whose number is not below `x`.
template <class Number>
inline int64_t place_of(const Number* ascending, int64_t count, int64_t x) {
  const Number* const begin = ascending;
  while (count > 0) {
    const int64_t half = count / 2;
    const bool below = int64_t(ascending[half]) < x;
    ascending = below ? ascending + half + 1 : ascending;
    count = below ? count - half - 1 : half;
  }
  return ascending - begin;
}

// What the threads of an op find: right until one of them says no.
class Verdict {
 public:
  // Returns `right`, for the thread that asks to go on or not.
  bool add(bool right) {
    if (!right) __atomic_store_n(&right_, false, __ATOMIC_RELAXED);
    return right;
  }
  bool right() const { return right_; }

 private:
  bool right_ = true;
};

struct Slots : Index {
  int64_t tile_rows, tile_cols;

  explicit Slots(const Index& index)
      : Index(index), tile_rows(ceil_div(rows, bm)), tile_cols(ceil_div(cols, bn)) {}

  int64_t used() const { return offsets[tile_rows]; }
  int64_t column(int64_t slot) const {
    return index_size == 2 ? int64_t(static_cast<const uint16_t*>(indices)[slot])
                           : int64_t(static_cast<const int32_t*>(indices)[slot]);
  }
  bool offsets_are_right() const { return are_offsets(offsets, tile_rows, true, capacity); }
  // Whether slots [slot, end) name tile columns that exist.
  bool columns_exist(int64_t slot, int64_t end) const {
    return all_below(indices, int(index_size), slot, end, tile_cols);
  }

  // The row of tiles that owns `slot`: the last whose offset is not beyond it (rows without tiles own none).
  int64_t row_of(int64_t slot) const {
    int64_t low = 0, high = tile_rows;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (offsets[middle] <= slot ? low : high) = middle;
    }
    return low;
  }

  // Calls f(row of tiles, first slot, end slot) for every row of tiles that has some of the slots [slot, end).
  template <class F>
  void for_each_row(int64_t slot, int64_t end, const F& f) const {
    for (int64_t i = slot < end ? row_of(slot) : 0; slot < end; ++i) {
      const int64_t stop = least(end, offsets[i + 1]);
      if (slot >= stop) continue;
      f(i, slot, stop);
      slot = stop;
    }
  }
};

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
