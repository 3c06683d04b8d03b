// Whether an index names a tile twice.
#pragma once
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Whether a number is not above the one before it, for how many of them.
template <class Number>
inline int64_t falls(const Number* numbers, int64_t n) {
  constexpr int64_t kPiece = 32768;  // few enough for sums as narrow as the numbers
  int64_t sum = 0;
  for (int64_t from = 1; from < n; from += kPiece) {
    const int64_t count = least(kPiece, n - from);
    const Number* const here = numbers + from;
    Number some = 0;
    for (int64_t i = 0; i < count; ++i) some = Number(some + (here[i] <= here[i - 1]));
    sum += some;
  }
  return sum;
}

// Of the slots [begin, end): the falls that are not from the last tile of a row to the first of another.
template <class Number>
inline int64_t falls_within_rows(const Slots& s, const Number* indices, int64_t begin, int64_t end) {
  const int64_t before = begin > 0 ? begin - 1 : 0;  // the step into a share of slots belongs to it
  int64_t sum = falls(indices + before, end - before);
  s.for_each_row(begin, end, [&](int64_t i, int64_t slot, int64_t) {
    sum -= slot == s.offsets[i] && slot > 0 && indices[slot] <= indices[slot - 1];
  });
  return sum;
}

// Whether the tile columns of slots [begin, end) ascend in each row, from the slot before the first on.
inline bool ascend(const Slots& s, int64_t begin, int64_t end) {
  if (begin >= end) return true;
  return 0 == (s.index_size == 2 ? falls_within_rows(s, static_cast<const uint16_t*>(s.indices), begin, end)
                                 : falls_within_rows(s, static_cast<const int32_t*>(s.indices), begin, end));
}

// A set of numbers, a bit each.
struct Set {
  uint64_t* words;

  bool add(int64_t number) {
    const uint64_t bit = uint64_t(1) << number % 64;
    const bool fresh = (words[number / 64] & bit) == 0;
    words[number / 64] |= bit;
    return fresh;
  }
  // Adds [begin, end); whether none of them was there.
  bool add(int64_t begin, int64_t end) {
    uint64_t held = 0;
    while (begin < end) {
      const int64_t count = least(end - begin, 64 - begin % 64);
      const uint64_t bits = (count == 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1) << begin % 64;
      held |= words[begin / 64] & bits;
      words[begin / 64] |= bits;
      begin += count;
    }
    return held == 0;
  }
};

// The first tile row that lists a column twice, or -1; bits: one for each tile column.
inline int64_t first_repeated(const Slots& s, uint64_t* bits) {
  Set seen = {bits};
  memset(bits, 0, size_t(ceil_div(s.tile_cols, 64)) * 8);
  for (int64_t i = 0; i < s.tile_rows; ++i) {
    for (int64_t slot = s.offsets[i]; slot < s.offsets[i + 1]; ++slot)
      if (!seen.add(s.column(slot))) return i;
    for (int64_t slot = s.offsets[i]; slot < s.offsets[i + 1]; ++slot) bits[s.column(slot) / 64] = 0;
  }
  return -1;
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
