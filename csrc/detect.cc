// Which tiles of a matrix hold a nonzero: one pass over the data into one bit a tile, a prefix sum, one pass over the bits.
#include "kernels.h"
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// The OR of `rows` rows of 64 lanes, 1 bit a lane.
template <class Lane>
inline uint64_t strip_bits(const Lane* p, int64_t stride, int64_t rows, Lane keep) {
  Block<Lane> any = load_block(p);
  for (int64_t r = 1; r < rows; ++r) {
    const Block<Lane> next = load_block(p + r * stride);
    for (int i = 0; i < kVecs<Lane>; ++i) any.v[i] |= next.v[i];
  }
  return lane_bits(any, keep);
}

// The same for the last `lanes` < 64 columns, where a whole block would read past the row, and past the tensor.
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
    while (fold_ < 7 && bn != int64_t(1) << fold_) ++fold_;
    if (fold_ == 7) return;  // not a power of two up to 64
    for (int64_t at = 0; at < 64; at += bn) first_ |= uint64_t(1) << at;
    for (int s = 0; s + fold_ < 6; ++s)
      for (int64_t at = 0; at < 64; at += bn << (s + 1)) runs_[s] |= ((uint64_t(1) << (2 << s)) - 1) << at;
  }

  void push(uint64_t bits, int64_t lanes) {
    if (fold_ == 0) {
      *words_++ = bits;
    } else if (fold_ < 7) {
      push_power_of_two(bits, lanes);
    } else {
      push_any(bits, lanes);
    }
  }

  void finish() {
    if (left_ != bn_) emit(any_);  // the ragged last tile
    if (filled_ != 0) flush();
  }

 private:
  // Tiles do not cross words: OR a tile's lanes onto its first, then close the gaps, doubling the runs of tile bits.
  void push_power_of_two(uint64_t bits, int64_t lanes) {
    for (int s = 0; s < fold_; ++s) bits |= bits >> (1 << s);
    bits &= first_;
    for (int s = 0; s + fold_ < 6; ++s) bits = (bits | bits >> ((bn_ - 1) << s)) & runs_[s];
    word_ |= bits << filled_;
    filled_ += int(ceil_div(lanes, bn_));
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
  uint64_t first_ = 0, runs_[6] = {};
  int filled_ = 0, fold_ = 0;
  bool any_ = false;
};

template <class Lane>
void flag_tiles(const Lane* p, int64_t stride, int64_t rows, int64_t cols, Lane keep, int64_t bn, uint64_t* words) {
  TileBits tiles(words, bn);
  int64_t c = 0;
  for (; c + 64 <= cols; c += 64) tiles.push(strip_bits(p + c, stride, rows, keep), 64);
  if (c < cols) tiles.push(ragged_bits(p + c, stride, rows, cols - c, keep), cols - c);
  tiles.finish();
}

template <class Lane>
void flag_all(const Lane* x, int64_t rows, int64_t cols, Lane keep, int64_t bm, int64_t bn, uint64_t* flags,
              int threads) {
  const int64_t tile_rows = ceil_div(rows, bm), words = ceil_div(ceil_div(cols, bn), 64);
  if (tile_rows == 0) return;
  // One part is a whole row of tiles, or a piece of whole words of it where rows are too few to go round.
  const int64_t pieces = tile_rows >= 4 * threads ? 1 : least(words, ceil_div(4 * threads, tile_rows));
  parallel(tile_rows * pieces, threads, [=](int64_t part) {
    const int64_t i = part / pieces, first = part_begin(words, part % pieces, pieces);
    const int64_t last = part_begin(words, part % pieces + 1, pieces);
    const int64_t c = first * 64 * bn;
    flag_tiles(x + i * bm * cols + c, cols, least(bm, rows - i * bm), least(cols, last * 64 * bn) - c, keep, bn,
               flags + i * words + first);
  });
}

template <class Index>
void write_indices(const uint64_t* flags, int64_t tile_rows, int64_t words, int64_t capacity, const int64_t* offsets,
                   Index* indices, int threads) {
  parallel(tile_rows, threads, [=](int64_t i) {
    int64_t at = offsets[i];
    for (int64_t w = 0; w < words; ++w) {
      for (uint64_t bits = flags[i * words + w]; bits != 0 && at < capacity; bits &= bits - 1)
        indices[at++] = Index(w * 64 + __builtin_ctzll(bits));
    }
  });
  const int64_t used = least(offsets[tile_rows], capacity);
  if (used < capacity) memset(indices + used, 0, size_t(capacity - used) * sizeof(Index));
}

}  // namespace

void detect(const void* x, int64_t rows, int64_t cols, int element_size, bool is_float, int64_t bm, int64_t bn,
            int64_t capacity, uint64_t* flags, int64_t* offsets, void* indices, int index_size, int threads) {
  const int64_t tile_rows = ceil_div(rows, bm), words = ceil_div(ceil_div(cols, bn), 64);
  threads = useful_threads(rows * cols * element_size, threads);
  const auto flag = [&]<class Lane>(Lane all) {
    const Lane keep = is_float ? Lane(all >> 1) : all;
    flag_all(static_cast<const Lane*>(x), rows, cols, keep, bm, bn, flags, threads);
  };
  if (element_size == 1) flag(uint8_t(~uint8_t(0)));
  if (element_size == 2) flag(uint16_t(~uint16_t(0)));
  if (element_size == 4) flag(~uint32_t(0));
  if (element_size == 8) flag(~uint64_t(0));

  offsets[0] = 0;
  parallel(tile_rows, threads, [=](int64_t i) {
    int64_t count = 0;
    for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(flags[i * words + w]);
    offsets[i + 1] = count;
  });
  for (int64_t i = 0; i < tile_rows; ++i) offsets[i + 1] += offsets[i];

  if (index_size == 2) {
    write_indices(flags, tile_rows, words, capacity, offsets, static_cast<uint16_t*>(indices), threads);
  } else {
    write_indices(flags, tile_rows, words, capacity, offsets, static_cast<uint32_t*>(indices), threads);
  }
}

}  // namespace gossamer::GOSSAMER_ISA
