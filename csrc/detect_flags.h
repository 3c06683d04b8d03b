// From numbers to one bit a tile: the first half of detect.
#pragma once
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Rows ORed in one sweep. A tall tile read strip by strip jumps a row at every step and defeats the prefetcher: 1.5 times
// the time of a plain read, measured. A few rows at a time, with the OR so far kept in L1, stream like one read.
constexpr int64_t kGroup = kWidth >= 32 ? 8 : 4;
constexpr int64_t kChunkBytes = 16384;  // of the OR so far: half of the smallest L1
// Tiles of so few rows are read two rows of tiles at a time: one row is one stream, which the prefetcher loses at every
// page, and two are read a tenth faster (of two and three rows, as much).
constexpr int64_t kPaired = 3;
constexpr int64_t kAskedAhead = 2048;  // bytes, in each of two or three rows

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
    if (bn == 1) return;
    for (int64_t t = 0; t < per_word_; ++t) {
      last_ |= uint64_t(1) << ((t + 1) * bn - 1);
      pack_ |= uint64_t(1) << ((per_word_ - 1 - t) * bn + t);
    }
    for (int s = 0; 1 << s < per_word_; ++s)
      for (int64_t at = 0; at < 64; at += bn << (s + 1)) runs_[s] |= ((uint64_t(1) << (2 << s)) - 1) << at;
  }

  // One that has got nothing yet, for another row.
  TileBits at(uint64_t* words) const {
    TileBits other = *this;
    other.words_ = words;
    return other;
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
    if constexpr (kExtracts) {
      bits = extract_bits(bits, last_);
    } else if (bits >>= bn_ - 1; per_word_ <= bn_) {
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

// Asks for 64 lanes of each of `rows` rows.
template <class Lane>
inline void prefetch_rows(const Lane* p, int64_t stride, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < 64; i += 64 / int64_t(sizeof(Lane))) __builtin_prefetch(p + r * stride + i);
}

// Flags of a row of tiles of more than kGroup rows.
template <class Lane>
void flag_tall(const Lane* p, int64_t stride, int64_t rows, int64_t cols, Lane keep, int64_t bn, uint64_t* words) {
  constexpr int64_t kChunk = kChunkBytes / int64_t(sizeof(Lane));
  alignas(64) Lane so_far[kChunk];
  TileBits tiles(words, bn);
  const int64_t whole = cols / 64 * 64;
  for (int64_t from = 0; from < whole; from += kChunk) {
    const int64_t lanes = least(kChunk, whole - from);
    int64_t r = 0;
    for (; r + kGroup < rows; r += kGroup) {
      for (int64_t c = 0; c < lanes; c += 64) {
        const Lane* const at = p + r * stride + from + c;
        Block<Lane> any = {};
        if (r > 0) any = load_block(so_far + c);
        or_rows(any, at, stride, kGroup);
        store_block(so_far + c, any);
      }
    }
    for (int64_t c = 0; c < lanes; c += 64) {
      const Lane* const at = p + r * stride + from + c;
      Block<Lane> any = load_block(so_far + c);
      or_rows(any, at, stride, rows - r);
      tiles.push(lane_bits(any, keep), 64);
    }
  }
  if (whole < cols) tiles.push(ragged_bits(p + whole, stride, rows, cols - whole, keep), cols - whole);
  tiles.finish();
}

// Flags of kStreams rows of tiles of at most kGroup rows each, `apart` elements from one to the next.
template <int kStreams, class Lane>
void flag_low(const Lane* p, int64_t apart, int64_t stride, int64_t rows, int64_t cols, Lane keep, int64_t bn,
              uint64_t* words, int64_t words_apart) {
  const TileBits fresh(words, bn);
  TileBits tiles[2] = {fresh, fresh.at(words + words_apart)};
  const int64_t whole = cols / 64 * 64;
  // Measured. Eight rows are as many streams as the prefetcher follows by itself; asking then costs 5 %.
  const int64_t streams = rows * kStreams;
  const int64_t ahead = (streams == 1 ? 8192 : streams < 4 ? kAskedAhead : 1024) / int64_t(sizeof(Lane));
  for (int64_t c = 0; c < whole; c += 64) {
    // Past the end of a row comes the next row of tiles.
    const int64_t further = c + ahead < cols ? ahead : ahead + (rows - 1) * stride;
#pragma GCC unroll 2
    for (int s = 0; s < kStreams; ++s) {
      const Lane* const at = p + s * apart + c;
      if (rows < kGroup) prefetch_rows(at + further, stride, rows);
      Block<Lane> any = load_block(at);
      or_rows(any, at + stride, stride, rows - 1);
      tiles[s].push(lane_bits(any, keep), 64);
    }
  }
  for (int s = 0; s < kStreams; ++s) {
    if (whole < cols)
      tiles[s].push(ragged_bits(p + s * apart + whole, stride, rows, cols - whole, keep), cols - whole);
    tiles[s].finish();
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
