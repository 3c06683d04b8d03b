// Sums over rows that land anywhere: the gradient by x of the fan-in ops.
//
// The rows are cut into parts, by their number alone; each part adds up for itself in order of rows, and the sums of the
// parts are added in order of parts. So bits do not depend on the team, which only says how many parts run at a time.
#pragma once
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kMostParts = 64;
constexpr int64_t kPartWork = 1 << 18;          // multiply-adds that are worth a part
constexpr int64_t kPartialBytes = 1ll << 30;    // of all partial sums, beyond the first

// `units` of rows of `work` multiply-adds each.
inline int64_t parts_of(int64_t units, int64_t work) {
  const int64_t worth = units / (kPartWork / (work < kPartWork ? work + 1 : kPartWork) + 1) + 1;
  return least(least(worth, kMostParts), units < 1 ? 1 : units);
}

// Parts that run at a time.
inline int64_t parts_at_once(int64_t parts, int64_t bytes, int threads) {
  return least(least(parts, threads < 1 ? 1 : threads), 1 + kPartialBytes / (bytes + 1));
}

// total[elements] = what run(part, sums, place) adds to `sums`, which begins at zero, for every part; `partial` has
// `places` times as many.
template <class T, class F>
inline void sum_parts(int64_t parts, int64_t places, int64_t elements, T* total, T* partial, int threads, const F& run) {
  const int clearers = useful_threads(elements * int64_t(sizeof(T)), threads);
  memset(total, 0, size_t(elements) * sizeof(T));
  for (int64_t done = 0; done < parts; done += places) {
    const int64_t now = least(places, parts - done);
    parallel(now, now > 1 ? threads : 1, [&](int64_t place) {
      T* const sums = partial + place * elements;
      memset(sums, 0, size_t(elements) * sizeof(T));
      run(done + place, sums, place);
    });
    parallel(clearers, clearers, [&](int64_t share) {
      const int64_t from = part_begin(elements, share, clearers), to = part_begin(elements, share + 1, clearers);
      for (int64_t place = 0; place < now; ++place) {
        const T* const sums = partial + place * elements;
        for (int64_t i = from; i < to; ++i) total[i] += sums[i];
      }
    });
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
