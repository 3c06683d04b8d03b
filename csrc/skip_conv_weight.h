// The gradient of a convolution by its weights, cut into pieces that all look alike.
//
// One operand is sparse, its zeros are skipped; the other is dense. Both are [images, rows, columns, channels]. Along
// one axis sparse place `alpha` meets dense place `beta` at tap s where
//     alpha + padding = beta * stride + s * dilation      (x is sparse, dy dense), or
//     alpha * stride + s * dilation = beta + padding      (dy is sparse, x dense).
// Taps of one remainder by the stride, and places of one remainder by the dilation, make a piece in which, counted
// among themselves, place i meets place i + shift + t at tap t: stride and dilation are gone.
#pragma once
#include "lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Line {  // one axis of the problem
  int64_t sparse, dense, taps, stride, padding, dilation;
  bool dense_strides;  // true: x is the dense one, and its places are `stride` apart
};

struct Piece {  // one axis of a piece
  int64_t sparse_first, sparse_step, sparse_count;
  int64_t dense_first, dense_step, dense_count;
  int64_t shift;
  int taps;
  int64_t tap_first, tap_step;  // tap t of the piece is tap_first + t * tap_step of the kernel
  bool counts;                  // each sparse place that is in a piece is in one piece that counts it
  int64_t valid(int64_t i) const {  // taps at which place i meets a place of the dense operand
    const int64_t low = i + shift < 0 ? -(i + shift) : 0, high = least(taps, dense_count - i - shift);
    return high > low ? high - low : 0;
  }
};

constexpr int kMostTaps = 3;  // along an axis; more are cut into several pieces

inline int64_t common_divisor(int64_t a, int64_t b) { return b == 0 ? a : common_divisor(b, a % b); }

template <class F>
void for_each_piece(const Line& line, const F& f) {
  const int64_t stride = line.stride, both = common_divisor(stride, line.dilation);
  const int64_t period = stride / both, apart = line.dilation / both;
  for (int64_t s = 0; s < least(period, line.taps); ++s) {
    const int64_t first = s * line.dilation - line.padding, rest = remainder(first, stride);
    const int64_t taps = ceil_div(line.taps - s, period), chunks = ceil_div(taps, kMostTaps);
    // Place m of the places of this remainder meets, at tap u, place m + meets +- u * apart.
    const int64_t meets = line.dense_strides ? (first - rest) / stride : (rest - first) / stride;
    for (int64_t phase = 0; phase < apart; ++phase) {
      const int64_t at = remainder(phase + meets, apart), shift = (phase + meets - at) / apart;
      int64_t tap = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t count = part_begin(taps, chunk + 1, chunks) - part_begin(taps, chunk, chunks);
        Piece p;
        p.taps = int(count);
        if (line.dense_strides) {
          p.sparse_first = phase;
          p.sparse_step = apart;
          p.dense_first = rest + stride * at;
          p.dense_step = stride * apart;
          p.shift = shift + tap;
          p.tap_first = s + period * tap;
          p.tap_step = period;
          p.counts = s == 0 && chunk == 0;
        } else {
          p.sparse_first = rest + stride * phase;
          p.sparse_step = stride * apart;
          p.dense_first = at;
          p.dense_step = apart;
          p.shift = shift - tap - count + 1;
          p.tap_first = s + period * (tap + count - 1);
          p.tap_step = -period;
          p.counts = chunk == 0;
        }
        p.sparse_count = p.sparse_first < line.sparse ? ceil_div(line.sparse - p.sparse_first, p.sparse_step) : 0;
        p.dense_count = p.dense_first < line.dense ? ceil_div(line.dense - p.dense_first, p.dense_step) : 0;
        if (p.sparse_count > 0) f(p);
        tap += count;
      }
    }
  }
}

// Sums that stay in registers: taps x vectors of dense channels. What is left are a factor and an address.
constexpr int most_vectors(int taps) {
  if (kRegisters == 32) return taps >= 9 ? 2 : taps >= 2 ? 4 : 8;
  return taps >= 9 ? 1 : taps >= 4 ? 2 : taps >= 2 ? 4 : 8;
}

inline int vectors_of(int taps, int64_t dense_channels) {
  return taps == 1 && dense_channels <= most_vectors(1) / 2 * kLanes<float> ? most_vectors(1) / 2 : most_vectors(taps);
}

// The dense operand of a tile, at most this much, is copied to where it stays in L1, with zeros for what lies outside.
constexpr int64_t kTileBytes = 512 * kWidth;
constexpr int64_t pixels_of(int vectors) { return kTileBytes / (vectors * kWidth); }
constexpr int64_t kMostPixels = pixels_of(most_vectors(9));

struct Grid {  // tiles of a piece: images x rows x columns of its sparse places
  int64_t images, rows, cols;
};

// The tiles of a piece. A function of sizes alone: the order of every sum follows from it.
inline Grid grid_of(const Piece& down, const Piece& along, int64_t images, int vectors) {
  constexpr int64_t kTileCost = 600, kPixelCost = 1;  // to take up and put down the sums, and to copy a pixel
  const int64_t room = pixels_of(vectors), below = down.taps - 1, beside = along.taps - 1;
  Grid best = {1, 1, 1};
  int64_t least_cost = -1;
  const int64_t fewest = ceil_div(along.sparse_count, room - beside);
  for (int64_t parts = fewest; parts <= least(along.sparse_count, fewest + 63); ++parts) {
    const int64_t cols = ceil_div(along.sparse_count, parts);
    if (room / (cols + beside) <= below) continue;
    Grid grid = {1, least(down.sparse_count, room / (cols + beside) - below), cols};
    grid.rows = ceil_div(down.sparse_count, ceil_div(down.sparse_count, grid.rows));
    const int64_t pixels = (grid.rows + below) * (cols + beside);
    if (grid.rows == down.sparse_count && parts == 1) {
      grid.images = least(images, room / pixels);
      grid.images = ceil_div(images, ceil_div(images, grid.images));
    }
    const int64_t tiles = ceil_div(images, grid.images) * ceil_div(down.sparse_count, grid.rows) * parts;
    const int64_t cost = tiles * (kTileCost + kPixelCost * grid.images * pixels);
    if (least_cost >= 0 && cost >= least_cost) continue;
    least_cost = cost;
    best = grid;
  }
  return best;
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
