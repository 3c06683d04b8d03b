// Is everything there that an index names? Asked before any number of it is used as an address: offsets, tile columns,
// lists of rows, divisions of labour. One stream over each, shared by the threads.
#include "kernels.h"
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Without a branch, so that it becomes vector code; a negative number is a large unsigned one.
template <class Number>
uint64_t highest(const Number* numbers, int64_t n) {
  Number most = 0;
  for (int64_t i = 0; i < n; ++i) most = numbers[i] > most ? numbers[i] : most;
  return most;
}

template <class Number>
bool all_below(const Number* numbers, int64_t n, int64_t bound, int threads) {
  threads = useful_threads(n * int64_t(sizeof(Number)), threads);
  int outside = 0;
  parallel(threads, threads, [=, &outside](int64_t part) {
    const int64_t begin = part_begin(n, part, threads), count = part_begin(n, part + 1, threads) - begin;
    if (count > 0 && highest(numbers + begin, count) >= uint64_t(bound))
      __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
  });
  return outside == 0;
}

// Whether a number is not above the one before it, for how many of them.
template <class Number>
int64_t falls(const Number* numbers, int64_t n) {
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

template <class Number>
bool ascends(const int64_t* offsets, int64_t tile_rows, const Number* indices, int threads) {
  const int64_t used = offsets[tile_rows];
  threads = useful_threads(used * int64_t(sizeof(Number)), threads);
  int64_t excess = 0;  // falls that are not from the last tile of a row to the first of another
  parallel(threads, threads, [=, &excess](int64_t part) {
    const int64_t begin = part_begin(used, part, threads), end = part_begin(used, part + 1, threads);
    const int64_t before = begin > 0 ? begin - 1 : 0;  // the step from one part to the next is the next one's
    int64_t mine = falls(indices + before, end - before);
    for_each_row(offsets, tile_rows, begin, end, [&](int64_t i, int64_t slot, int64_t) {
      mine -= slot == offsets[i] && slot > 0 && indices[slot] <= indices[slot - 1];
    });
    __atomic_fetch_add(&excess, mine, __ATOMIC_RELAXED);
  });
  return excess == 0;
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

}  // namespace

bool in_range(const int64_t* offsets, int64_t count, bool from_zero, const void* numbers, int size, int64_t n,
              int64_t bound, int threads) {
  const int64_t first = offsets[0], end = offsets[count];
  bool wrong = from_zero ? first != 0 : first < 0;
  for (int64_t i = 0; i < count; ++i) wrong |= offsets[i + 1] < offsets[i];
  if (wrong || end > n) return false;
  if (numbers == nullptr) return end <= bound;
  if (size == 2) return all_below(static_cast<const uint16_t*>(numbers) + first, end - first, bound, threads);
  if (size == 4) return all_below(static_cast<const uint32_t*>(numbers) + first, end - first, bound, threads);
  return all_below(static_cast<const uint64_t*>(numbers) + first, end - first, bound, threads);
}

bool named_once(const int64_t* offsets, int64_t count, const void* numbers, int size, int64_t bound, uint64_t* bits) {
  Set seen = {bits};
  memset(bits, 0, size_t(ceil_div(bound, 64)) * 8);
  bool once = true;
  for (int64_t i = offsets[0]; i < offsets[count]; ++i)
    once &= seen.add(size == 4 ? int64_t(static_cast<const int32_t*>(numbers)[i])
                               : static_cast<const int64_t*>(numbers)[i]);
  return once;
}

int64_t repeated(const int64_t* offsets, int64_t tile_rows, const void* indices, int index_size, int64_t tile_cols,
                 uint64_t* bits, int threads) {
  if (index_size == 2 ? ascends(offsets, tile_rows, static_cast<const uint16_t*>(indices), threads)
                      : ascends(offsets, tile_rows, static_cast<const int32_t*>(indices), threads))
    return -1;
  Set seen = {bits};
  memset(bits, 0, size_t(ceil_div(tile_cols, 64)) * 8);
  for (int64_t i = 0; i < tile_rows; ++i) {
    for (int64_t slot = offsets[i]; slot < offsets[i + 1]; ++slot)
      if (!seen.add(index_at(indices, index_size, slot))) return i;
    for (int64_t slot = offsets[i]; slot < offsets[i + 1]; ++slot)
      bits[index_at(indices, index_size, slot) / 64] = 0;
  }
  return -1;
}

int64_t work_in_range(const int64_t* offsets, int64_t tile_rows, const int64_t* work, int64_t segments,
                      uint64_t* bits) {
  Set seen = {bits};
  memset(bits, 0, size_t(ceil_div(offsets[tile_rows], 64)) * 8);
  int64_t named = 0;
  for (int64_t i = 0; i < segments; ++i) {
    const int64_t row = work[3 * i], slot = work[3 * i + 1], end = work[3 * i + 2];
    if (row < 0) continue;
    if (row >= tile_rows || slot < offsets[row] || end < slot || end > offsets[row + 1] || !seen.add(slot, end))
      return -1;
    named += end - slot;
  }
  return named;
}

}  // namespace gossamer::GOSSAMER_ISA
