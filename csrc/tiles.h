// Moving tiles between one row of tiles of a matrix and a packed buffer, either way: gather and scatter are each
// other's transpose and differ only in the direction of the copy.
#pragma once
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// How many tiles are moved together, row of elements by row of elements. Into a matrix: as many as stay in L1, for a
// (32, 1) tile alone touches 32 lines for 4 bytes each and loses them before the next tile (2.5 times as slow).
// Into packed tiles, which are written in order: one, or four narrow ones (up to 2.4 times as fast as one).
constexpr int64_t kMostTiles = 64, kBatchBytes = 16384;

template <bool kPack>
inline int64_t batch_size(int64_t bm, int64_t width) {
  if (kPack && bm > 1) return width <= 8 ? 4 : 1;
  const int64_t fit = kBatchBytes / (bm * width);
  return least(kMostTiles, fit > 0 ? fit : 1);
}

// A row of tiles of the matrix: where it starts, its height in elements (less than bm at a ragged bottom), the bytes of a
// matrix row; and the shape of a packed tile.
struct Strip {
  char* matrix;
  int64_t height, row_bytes;
  int64_t bm, width;  // rows, bytes of a row
};

// Copies rows of kBytes bytes (0: of strip.width) of `count` whole tiles; lefts are their places in a matrix row.
template <bool kPack, int64_t kBytes>
inline void move_batch(const Strip& strip, char* tiles, const int64_t* lefts, int64_t count) {
  for (int64_t r = 0; r < strip.height; ++r) {
    for (int64_t s = 0; s < count; ++s) {
      char* const in_matrix = strip.matrix + r * strip.row_bytes + lefts[s];
      char* const in_tile = tiles + (s * strip.bm + r) * strip.width;
      // A constant size becomes a few register moves; a call of memcpy costs more than a short row.
      memcpy(kPack ? in_tile : in_matrix, kPack ? in_matrix : in_tile, size_t(kBytes ? kBytes : strip.width));
    }
  }
}

template <bool kPack>
inline void move_whole(const Strip& strip, char* tiles, const int64_t* lefts, int64_t count) {
  switch (strip.width) {
    case 1: return move_batch<kPack, 1>(strip, tiles, lefts, count);
    case 2: return move_batch<kPack, 2>(strip, tiles, lefts, count);
    case 4: return move_batch<kPack, 4>(strip, tiles, lefts, count);
    case 8: return move_batch<kPack, 8>(strip, tiles, lefts, count);
    case 16: return move_batch<kPack, 16>(strip, tiles, lefts, count);
    case 32: return move_batch<kPack, 32>(strip, tiles, lefts, count);
    case 64: return move_batch<kPack, 64>(strip, tiles, lefts, count);
    case 128: return move_batch<kPack, 128>(strip, tiles, lefts, count);
    case 256: return move_batch<kPack, 256>(strip, tiles, lefts, count);
    default: return move_batch<kPack, 0>(strip, tiles, lefts, count);
  }
}

// A tile over the ragged right edge: `width` bytes of each row lie inside.
template <bool kPack>
inline void move_ragged(const Strip& strip, char* tile, int64_t left, int64_t width) {
  for (int64_t r = 0; r < strip.height; ++r) {
    char* const in_matrix = strip.matrix + r * strip.row_bytes + left;
    memcpy(kPack ? tile + r * strip.width : in_matrix, kPack ? in_matrix : tile + r * strip.width, size_t(width));
  }
}

// Packs (zeroing the padding of ragged tiles) or unpacks the tiles of slots [slot, end), all in this row of tiles.
template <bool kPack>
inline void move_tiles(const Strip& strip, char* values, const Slots& slots, int64_t slot, int64_t end) {
  const int64_t tile_bytes = strip.bm * strip.width;
  const int64_t batch = batch_size<kPack>(strip.bm, strip.width);
  int64_t lefts[kMostTiles];
  while (slot < end) {
    char* const tiles = values + slot * tile_bytes;
    int64_t count = 0, inside = strip.width;
    while (count < batch && slot < end && inside == strip.width) {
      lefts[count] = slots.column(slot) * strip.width;
      inside = least(strip.width, strip.row_bytes - lefts[count]);
      ++count;
      ++slot;
    }
    if (kPack && (strip.height < strip.bm || inside < strip.width)) memset(tiles, 0, size_t(count * tile_bytes));
    if (inside < strip.width) {  // only the last of a batch can be ragged
      --count;
      move_ragged<kPack>(strip, tiles + count * tile_bytes, lefts[count], inside);
    }
    move_whole<kPack>(strip, tiles, lefts, count);
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
