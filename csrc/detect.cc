// Which tiles of a matrix hold a nonzero: one pass over the data into one bit a tile, a prefix sum, one over the bits.
// The last computes while the first waits for memory, so both go on together as far as the sums are known.
#include "kernels.h"
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Rows ORed in one sweep. A tall tile read strip by strip jumps a row at every step and defeats the prefetcher: 1.5 times
// the time of a plain read, measured. A few rows at a time, with the OR so far kept in L1, stream like one read.
constexpr int64_t kGroup = kWidth >= 32 ? 8 : 4;
constexpr int64_t kChunkBytes = 16384;  // of the OR so far: half of the smallest L1
// A single row is one stream, which the prefetcher loses at every page: ask that far ahead (a tenth faster, measured).
constexpr int64_t kAheadBytes = 8192;

template <class Lane>
inline void or_rows(Block<Lane>& any, const Lane* p, int64_t stride, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    const Block<Lane> next = load_block(p + r * stride);
    for (int i = 0; i < kVecs<Lane>; ++i) any.v[i] |= next.v[i];
  }
}

// The OR of `rows` rows of the last `lanes` < 64 columns, 1 bit a lane: a whole block would read past the row there, and
// past the tensor.
template <class Lane>
uint64_t ragged_bits(const Lane* p, int64_t stride, int64_t rows, int64_t lanes, Lane keep) {
  uint64_t bits = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < lanes; ++c) bits |= uint64_t((p[r * stride + c] & keep) != 0) << c;
  return bits;
}

// Turns a stream of lane bits into tile bits, `bn` lanes a tile, and stores them 64 tiles a word.
class TileBits {
 public:
  TileBits(uint64_t* words, int64_t bn) : words_(words), bn_(bn), left_(bn) {
    if (bn > 64 || 64 % bn != 0) return;
    per_word_ = int(64 / bn);
    for (int64_t t = 0; t < per_word_; ++t) {
      last_ |= uint64_t(1) << ((t + 1) * bn - 1);
      pack_ |= uint64_t(1) << ((per_word_ - 1 - t) * bn + t);
    }
    for (int s = 0; 1 << s < per_word_; ++s)
      for (int64_t at = 0; at < 64; at += bn << (s + 1)) runs_[s] |= ((uint64_t(1) << (2 << s)) - 1) << at;
  }

  void push(uint64_t bits, int64_t lanes) {
    if (per_word_ == 64) {
      *words_++ = bits;
    } else if (per_word_ > 0) {
      push_whole(bits);
    } else {
      push_any(bits, lanes);
    }
  }

  void finish() {
    if (left_ != bn_) emit(any_);  // the ragged last tile
    if (filled_ != 0) flush();
  }

 private:
  // bn divides 64, so no tile crosses a word: set a tile's last bit if it has any, then move those bits together.
  void push_whole(uint64_t bits) {
    bits = (((bits & ~last_) + ~last_) | bits) & last_;  // a bit below the last carries into it, and no further
    bits >>= bn_ - 1;
    if (per_word_ <= bn_) {
      bits = bits * pack_ >> (64 - bn_);  // the product puts tile t on bit 64 - bn + t; no two terms meet below 64
    } else {
      // Runs of 1, 2, 4 ... tiles: each step joins two.
      for (int s = 0; 1 << s < per_word_; ++s) bits = (bits | bits >> ((bn_ - 1) << s)) & runs_[s];
    }
    word_ |= bits << filled_;
    filled_ += per_word_;  // past the end of a ragged row too: bits there are zero
    if (filled_ == 64) flush();
  }

  void push_any(uint64_t bits, int64_t lanes) {
    while (lanes > 0) {
      const int64_t take = least(left_, lanes);
      any_ |= take == 64 ? bits != 0 : (bits & ((uint64_t(1) << take) - 1)) != 0;
      bits = take == 64 ? 0 : bits >> take;
      lanes -= take;
      left_ -= take;
      if (left_ == 0) emit(any_);
    }
  }

  void emit(bool present) {
    word_ |= uint64_t(present) << filled_;
    any_ = false;
    left_ = bn_;
    if (++filled_ == 64) flush();
  }

  void flush() {
    *words_++ = word_;
    word_ = 0;
    filled_ = 0;
  }

  uint64_t* words_;
  int64_t bn_, left_;         // lanes still missing from the tile under way
  uint64_t word_ = 0;         // tiles not stored yet, `filled_` of them
  int filled_ = 0;
  int per_word_ = 0;          // whole tiles in 64 lanes, where bn divides 64
  uint64_t last_ = 0, pack_ = 0, runs_[6] = {};
  bool any_ = false;
};

template <class Lane>
void flag_tiles(const Lane* p, int64_t stride, int64_t rows, int64_t cols, Lane keep, int64_t bn, uint64_t* words) {
  constexpr int64_t kChunk = kChunkBytes / int64_t(sizeof(Lane));
  alignas(64) Lane so_far[kChunk];
  TileBits tiles(words, bn);
  const int64_t whole = cols / 64 * 64;
  for (int64_t from = 0; from < whole; from += kChunk) {
    const int64_t lanes = least(kChunk, whole - from);
    int64_t r = 0;
    for (; r + kGroup < rows; r += kGroup) {
      for (int64_t c = 0; c < lanes; c += 64) {
        Block<Lane> any = {};
        if (r > 0) any = load_block(so_far + c);
        or_rows(any, p + r * stride + from + c, stride, kGroup);
        store_block(so_far + c, any);
      }
    }
    for (int64_t c = 0; c < lanes; c += 64) {
      const Lane* const at = p + r * stride + from + c;
      if (rows == 1)
        for (int64_t i = 0; i < 64 * int64_t(sizeof(Lane)); i += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(at) + kAheadBytes + i);
      Block<Lane> any = {};
      if (r > 0) any = load_block(so_far + c);
      or_rows(any, at, stride, rows - r);
      tiles.push(lane_bits(any, keep), 64);
    }
  }
  if (whole < cols) tiles.push(ragged_bits(p + whole, stride, rows, cols - whole, keep), cols - whole);
  tiles.finish();
}

// kPlaces.of[b]: the places of the bits of byte b, low to high, then anything.
struct Places {
  uint8_t of[256][8] = {};
  constexpr Places() {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0, n = 0; bit < 8; ++bit)
        if (byte >> bit & 1) of[byte][n++] = uint8_t(bit);
  }
};
constexpr Places kPlaces;

// Writes the tile columns of one row of tiles into out[0, room), and asks for ahead[0, ahead_bytes) of each word.
template <class Index>
void write_row(const uint64_t* flags, int64_t words, Index* out, int64_t room, const char* ahead, int64_t ahead_bytes) {
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  typedef Index Eight __attribute__((vector_size(8 * sizeof(Index))));
  typedef Index LooseEight __attribute__((vector_size(8 * sizeof(Index)), aligned(1), may_alias));
  constexpr int kFew = 8;  // set bits up to which taking them one by one is faster than eight bytes from the table
  Index* const end = out + room;
  for (int64_t w = 0; w < words && out < end; ++w) {
    for (int64_t i = 0; i < ahead_bytes; i += 64) __builtin_prefetch(ahead + w * ahead_bytes + i);
    uint64_t bits = flags[w];
    if (bits == 0) continue;
    const Index base = Index(w * 64);
    const int count = __builtin_popcountll(bits);
    if (end - out < 64 + 8) {
      for (; bits != 0 && out < end; bits &= bits - 1) *out++ = Index(base + __builtin_ctzll(bits));
    } else if (count <= kFew) {
      // As many stores for one bit as for eight: a loop that ends when the bits do is predicted wrong at every word.
#pragma GCC unroll 8
      for (int i = 0; i < kFew; ++i, bits &= bits - 1) out[i] = Index(base + __builtin_ctzll(bits | uint64_t(1) << 63));
      out += count;
    } else {
      for (int byte = 0; byte < 8; ++byte) {
        Bytes places;
        memcpy(&places, kPlaces.of[bits >> (8 * byte) & 0xff], 8);
        *reinterpret_cast<LooseEight*>(out) = __builtin_convertvector(places, Eight) + Index(base + 8 * byte);
        out += __builtin_popcountll(bits >> (8 * byte) & 0xff);
      }
    }
  }
}

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
    const int64_t c = first * 64 * bn;
    flag_tiles(x + i * bm * cols + c, cols, least(bm, rows - i * bm), least(cols, last * 64 * bn) - c, keep, bn,
               flags + i * words + first);
  }

  int64_t count_row(int64_t i) const {
    int64_t count = 0;
    for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(flags[i * words + w]);
    return count;
  }

  void write(int64_t i, int64_t offset, int64_t count, const Lane* next) const {
    const int64_t room = least(offset + count, capacity) - offset;
    if (room > 0)
      write_row(flags + i * words, words, indices + offset, room, reinterpret_cast<const char*>(next),
                next ? int64_t(64 * sizeof(Lane)) : 0);
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
    constexpr int64_t kGroupBytes = 262144;  // far more than is asked for ahead of a group's end, and in vain
    const int64_t row_bytes = bm * cols * int64_t(sizeof(Lane));
    const int64_t group = row_bytes < kGroupBytes ? kGroupBytes / (row_bytes + 1) + 1 : 1;
    for (int64_t i = 0; i < tile_rows; ++i) counts[i] = offsets[i + 1] = -1;
    int64_t taken = 0;
    parallel(threads, threads, [this, group, &taken](int64_t) {
      int64_t known = 0, offset = 0;         // the first row whose count is not added up, and the sum
      int64_t waiting = 0, waiting_end = 0;  // flagged rows to write
      for (;;) {
        const int64_t first = __atomic_fetch_add(&taken, group, __ATOMIC_RELAXED);
        if (first >= tile_rows) return;
        const int64_t last = least(tile_rows, first + group);
        for (int64_t i = first; i < last; ++i) {
          flag_row(i, 0, words);
          __atomic_store_n(counts + i, count_row(i), __ATOMIC_RELEASE);
          if (waiting == waiting_end) continue;
          for (; known < waiting; ++known) {
            const int64_t count = __atomic_load_n(counts + known, __ATOMIC_ACQUIRE);
            if (count < 0) break;
            offset += count;
          }
          if (known < waiting) continue;
          const Lane* const next = bm * bn == 1 && i + 1 < last ? x + (i + 1) * cols : nullptr;
          write(waiting, offset, counts[waiting], next);
          offsets[waiting + 1] = offset;  // not -1: written; the sums are made at the end
          ++waiting;
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
    int64_t left = 0;
    for (int64_t i = 0; i < tile_rows; ++i) {
      const bool written = tile_rows >= 4 * threads && offsets[i + 1] >= 0;
      offsets[i + 1] = offsets[i] + counts[i];
      if (written) counts[i] = -1;
      else left += counts[i];
    }
    if (left > 0)
      parallel(tile_rows, useful_threads(left * 8, threads), [this](int64_t i) {
        if (counts[i] > 0) write(i, offsets[i], counts[i], nullptr);
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
