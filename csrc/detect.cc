// Which tiles of a matrix hold a nonzero: one pass over the data into one bit a tile, a prefix sum, one over the bits.
// The last computes while the first waits for memory, so both go on together as far as the sums are known.
#include "detect_flags.h"
#include "detect_write.h"
#include "kernels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kStreamBytes = 8 << 20;  // room for indices from which they are written past the caches

template <class Lane, class Index>
struct Detection {
  const Lane* x;
  int64_t rows, cols;
  Lane keep;
  int64_t bm, bn, tile_rows, words, capacity;
  uint64_t* flags;
  int64_t* counts;   // of each row of tiles; -1: not known yet, or written already
  int64_t* offsets;
  Index* indices;
  int threads;

  void flag_row(int64_t i, int64_t first, int64_t last) const {
    const int64_t c = first * 64 * bn, high = least(bm, rows - i * bm), wide = least(cols, last * 64 * bn) - c;
    const Lane* const p = x + i * bm * cols + c;
    if (high > kGroup) flag_tall(p, cols, high, wide, keep, bn, flags + i * words + first);
    else flag_low<1>(p, 0, cols, high, wide, keep, bn, flags + i * words + first, 0);
  }

  // Rows i and j > i of tiles side by side.
  void flag_two(int64_t i, int64_t j) const {
    if (bm > kPaired || (j + 1) * bm > rows) {
      flag_row(i, 0, words);
      flag_row(j, 0, words);
    } else {
      flag_low<2>(x + i * bm * cols, (j - i) * bm * cols, cols, bm, cols, keep, bn, flags + i * words,
                  (j - i) * words);
    }
    set_count(i);
    set_count(j);
  }

  int64_t count_row(int64_t i) const {
    int64_t count = 0;
    for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(flags[i * words + w]);
    return count;
  }

  void set_count(int64_t i) const { __atomic_store_n(counts + i, count_row(i), __ATOMIC_RELEASE); }

  void write_row(int64_t i, int64_t offset, int64_t count, const Lane* next) const {
    const int64_t room = least(offset + count, capacity) - offset;
    if (room <= 0) return;
    // Past the caches where most lines are written whole and all are more than the caches would keep.
    const bool many = count >= 16 * words && capacity >= kStreamBytes / int64_t(sizeof(Index));
    // Memory should not idle meanwhile, and be asked for no more than it brings in that time: the next row where many
    // indices are written, and else a quarter, from where the flags of this row have asked up to.
    constexpr int64_t kWord = 64 * int64_t(sizeof(Lane)), kQuarter = kWord / 4 < 64 ? 64 : kWord / 4;
    const char* const ahead = reinterpret_cast<const char*>(next) + (many || !next ? 0 : kAskedAhead);
    const Bits bits = {flags + i * words, words, 0, ahead, next == nullptr ? 0 : many ? kWord : kQuarter};
    if (kStreams && many) write_streamed(bits, indices + offset, room);
    else write(bits, indices + offset, room);
  }

  // Few rows: a part is a piece of whole words of one.
  void flag_pieces() const {
    const int64_t pieces = least(words, ceil_div(4 * threads, tile_rows));
    parallel(tile_rows * pieces, threads, [this, pieces](int64_t part) {
      const int64_t piece = part % pieces;
      flag_row(part / pieces, part_begin(words, piece, pieces), part_begin(words, piece + 1, pieces));
    });
    parallel(tile_rows, threads, [this](int64_t i) { counts[i] = count_row(i); });
  }

  // Many rows: each thread takes groups of them in order, and while it flags one it writes the indices of the one before,
  // if by then all counts up to there are known. Nobody waits; what is left over is written at the end.
  void flag_groups() const {
    constexpr int64_t kGroupBytes = 1 << 20;  // far more than is asked for ahead of a group's end, and in vain
    const int64_t row_bytes = bm * cols * int64_t(sizeof(Lane));
    int64_t group = least(kGroupBytes / (row_bytes + 1) + 1, tile_rows / (8 * threads));
    if (group < 1) group = 1;
    for (int64_t i = 0; i < tile_rows; ++i) counts[i] = offsets[i + 1] = -1;
    int64_t taken = 0;
    parallel(threads, threads, [this, group, &taken](int64_t) {
      int64_t known = 0, offset = 0;         // the first row whose count is not added up, and the sum
      int64_t waiting = 0, waiting_end = 0;  // flagged rows to write
      const auto write_one = [&](int64_t read, int64_t last) {
        if (waiting == waiting_end) return;
        for (; known < waiting; ++known) {
          const int64_t count = __atomic_load_n(counts + known, __ATOMIC_ACQUIRE);
          if (count < 0) return;
          offset += count;
        }
        const Lane* const next = bm * bn == 1 && read + 1 < last ? x + (read + 1) * cols : nullptr;
        write_row(waiting, offset, counts[waiting], next);
        offsets[waiting + 1] = offset;  // not -1: written; the sums are made at the end
        ++waiting;
      };
      for (;;) {
        const int64_t first = __atomic_fetch_add(&taken, group, __ATOMIC_RELAXED);
        if (first >= tile_rows) return;
        const int64_t last = least(tile_rows, first + group), half = (last - first) / 2;
        for (int64_t i = first; i < first + half; ++i) {
          flag_two(i, i + half);
          write_one(i, first + half);
          write_one(i + half, first + 2 * half);
        }
        if (first + 2 * half < last) {
          flag_row(last - 1, 0, words);
          set_count(last - 1);
          write_one(last - 1, last);
        }
        waiting = first;
        waiting_end = last;
      }
    });
  }

  void run() const {
    offsets[0] = 0;
    if (tile_rows >= 4 * threads) flag_groups();
    else if (tile_rows > 0) flag_pieces();
    int64_t left = 0, first = tile_rows;  // the first row that is not written: most of those are the last ones
    for (int64_t i = 0; i < tile_rows; ++i) {
      const bool written = tile_rows >= 4 * threads && offsets[i + 1] >= 0;
      offsets[i + 1] = offsets[i] + counts[i];
      if (!written) {
        first = least(first, i);
        left += counts[i];
      } else {
        counts[i] = -1;
      }
    }
    if (left > 0)
      parallel(tile_rows - first, useful_threads(left * 8, threads), [this, first](int64_t part) {
        const int64_t i = first + part;
        if (counts[i] > 0) write_row(i, offsets[i], counts[i], nullptr);
      });
  }
};

template <class Index>
void clear(Index* indices, int64_t used, int64_t capacity, int threads) {
  const int64_t slack = capacity - used;
  threads = useful_threads(slack * int64_t(sizeof(Index)), threads);
  if (slack <= 0) return;
  parallel(threads, threads, [=](int64_t part) {
    const int64_t from = part_begin(slack, part, threads), to = part_begin(slack, part + 1, threads);
    memset(indices + used + from, 0, size_t(to - from) * sizeof(Index));
  });
}

}  // namespace

void detect(const void* x, int64_t rows, int64_t cols, int element_size, bool is_float, int64_t bm, int64_t bn,
            int64_t capacity, uint64_t* flags, int64_t* offsets, void* indices, int index_size, bool cleared,
            int threads) {
  const int64_t tile_rows = ceil_div(rows, bm), words = ceil_div(ceil_div(cols, bn), 64);
  threads = useful_threads(rows * cols * element_size, threads);
  int64_t* const counts = reinterpret_cast<int64_t*>(flags + tile_rows * words);
  const auto run = [&]<class Lane, class Index>(Lane all, Index* out) {
    const Lane keep = is_float ? Lane(all >> 1) : all;
    Detection<Lane, Index>{static_cast<const Lane*>(x), rows, cols, keep, bm, bn, tile_rows, words, capacity, flags,
                           counts, offsets, out, threads}.run();
    if (!cleared) clear(out, least(offsets[tile_rows], capacity), capacity, threads);
  };
  const auto run_lane = [&]<class Lane>(Lane all) {
    if (index_size == 2) run(all, static_cast<uint16_t*>(indices));
    else run(all, static_cast<uint32_t*>(indices));
  };
  if (element_size == 1) run_lane(uint8_t(~uint8_t(0)));
  if (element_size == 2) run_lane(uint16_t(~uint16_t(0)));
  if (element_size == 4) run_lane(~uint32_t(0));
  if (element_size == 8) run_lane(~uint64_t(0));
}

}  // namespace gossamer::GOSSAMER_ISA
