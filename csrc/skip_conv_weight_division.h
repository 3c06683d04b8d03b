// What a gradient by weights is divided into, for the threads and for the caches, and the workspace that a thread needs.
#pragma once
#include "kernels.h"
#include "skip_conv_weight.h"
#include "skip_conv_weight_lists.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Problem {
  Pixels sparse, dense;
  int64_t images;
  Line down, along;
  bool skip_dy;  // dy is the sparse one
  float* dw;
  bool points = false;  // one tap, few nonzeros
  bool channels_last;  // dw is [k, taps, c], else [k, c, taps]
  int64_t taps() const { return down.taps * along.taps; }
};

inline Problem problem_of(const Convolution& conv, bool skip_dy, const float* x, const float* dy, const uint32_t* bits,
                          float* dw, bool channels_last) {
  Problem p;
  const Pixels a = {x, conv.channels, nullptr, 0}, b = {dy, conv.outputs, bits, ceil_div(conv.outputs, 32)};
  p.skip_dy = skip_dy;
  p.sparse = p.skip_dy ? b : a;
  p.dense = p.skip_dy ? a : b;
  p.images = conv.images;
  p.dw = dw;
  p.channels_last = channels_last;
  const auto line = [skip_dy](const Axis& of) {
    const int64_t sparse = skip_dy ? of.out : of.in, dense = skip_dy ? of.in : of.out;
    return Line{sparse, dense, of.taps, of.stride, of.padding, of.dilation, skip_dy};
  };
  p.down = line(conv.down);
  p.along = line(conv.along);
  const auto plain = [](const Line& l) {
    return l.taps == 1 && l.stride == 1 && l.padding == 0 && l.sparse == l.dense;
  };
  if (plain(p.down) && plain(p.along)) {  // one long row of pixels, which is cut as suits best
    p.along.sparse = p.along.dense = p.images * p.down.sparse * p.along.sparse;
    p.images = p.down.sparse = p.down.dense = 1;
  }
  return p;
}

struct Division {  // of the channels of both operands into blocks
  int64_t sparse_block, dense_block, sparse_blocks, dense_blocks;
  int64_t stretches;  // of the pixels; each has sums of its own
  int64_t items() const { return sparse_blocks * dense_blocks * stretches; }
};

constexpr int64_t kSumBytes = 393216;

// A small gradient of many pixels is summed over stretches of them, whose sums are added in the end: then no thread
// lists or copies what another one does too. A function of sizes alone, as it decides the order of the sums.
inline int64_t stretches_of(const Problem& p) {
  const int64_t pixels = p.images * least(p.down.sparse * p.along.sparse, p.down.dense * p.along.dense);
  return p.sparse.channels * p.dense.channels * p.taps() * 4 <= kSumBytes / 2 && pixels >= 16384 ? 8 : 1;
}

// Where blocks begin changes no sum, so this may depend on the number of threads.
inline Division divide(const Problem& p, int threads) {
  int64_t vectors = 1;
  for_each_piece(p.down, [&](const Piece& down) {
    for_each_piece(p.along, [&](const Piece& along) {
      const int64_t v = vectors_of(down.taps * along.taps, p.dense.channels);
      if (v > vectors) vectors = v;
    });
  });
  constexpr int64_t kSparseUnit = 16;
  const int64_t dense_unit = vectors * kL;
  const int64_t sparse_units = ceil_div(p.sparse.channels, kSparseUnit);
  const int64_t dense_units = ceil_div(p.dense.channels, dense_unit);
  // Cycles, roughly: a multiply-add of a vector, to list an element, to copy an element.
  constexpr double kListing = 1, kCopying = 0.5, kDensity = 0.25, kUneven = 1.05;
  const double sparse_pixels = double(p.images) * double(p.down.sparse * p.along.sparse);
  const double dense_pixels = double(p.images) * double(p.down.dense * p.along.dense);
  const double products =
      (sparse_pixels < dense_pixels ? sparse_pixels : dense_pixels) * double(p.taps()) / (2 * kL) * kDensity;
  Division best = {};
  double least_cost = -1;
  for (int64_t s = 1; s <= least(sparse_units, 64); ++s) {
    for (int64_t d = 1; d <= least(dense_units, 64); ++d) {
      Division now;
      now.sparse_block = s * kSparseUnit;
      now.dense_block = d * dense_unit;
      if ((s > 1 || d > 1) && now.sparse_block * now.dense_block * p.taps() * 4 > kSumBytes) break;
      now.sparse_blocks = ceil_div(sparse_units, s);
      now.dense_blocks = ceil_div(dense_units, d);
      now.stretches = stretches_of(p);
      const double rounds = double(ceil_div(now.items(), threads)) / double(now.stretches);
      // Channels are not equally full.
      const double uneven = now.dense_blocks * now.stretches % threads == 0 ? 1 : kUneven;
      const double cost = rounds * (uneven * double(now.sparse_block * now.dense_block) * products +
                                    double(now.sparse_block) * sparse_pixels * kListing +
                                    double(now.dense_block) * dense_pixels * kCopying);
      if (least_cost >= 0 && cost >= least_cost) continue;
      least_cost = cost;
      best = now;
    }
  }
  return best;
}

inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

constexpr int64_t kTable = kMostPixels + kL;

struct Table {  // Places of a tile
  int64_t count;
  int64_t dense[kTable], sparse[kTable];
  int32_t valid[kTable];
  uint32_t keep[kTable / kL];
  Places places() const { return {count, dense, sparse, valid, keep}; }
};

// Floats of sums of a block.
inline int64_t sums_of(const Problem& p, const Division& d) { return d.sparse_block * d.dense_block * p.taps(); }

struct Room {  // one thread's workspace
  float* sums;
  Lists lists;
  char* tile;
  Table* tables;  // of this tile and of the next
  int64_t* counts;

  // From null it is a measure: the last address is the size.
  static char* place(const Problem& p, const Division& d, char* at, Room& room) {
    const auto take = [&](int64_t bytes) {
      char* const mine = at;
      at += aligned(bytes);
      return mine;
    };
    room.sums = reinterpret_cast<float*>(take(d.stretches > 1 ? 0 : sums_of(p, d) * 4));
    room.lists.values = reinterpret_cast<float*>(take(d.sparse_block * kValuePitch * 4));
    room.lists.channels = reinterpret_cast<Channel*>(take(d.sparse_block * int64_t(sizeof(Channel))));
    room.tile = take(kTileBytes + 8 * kWidth);
    room.tables = reinterpret_cast<Table*>(take(2 * int64_t(sizeof(Table))));
    room.counts = reinterpret_cast<int64_t*>(take(64));
    return at;
  }
};

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
