// The inner loop: the nonzeros of one channel in one tile, times what they meet there, into sums that stay in registers.
#pragma once
#include "skip_conv_weight.h"
#include "skip_conv_weight_lists.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Visit {
  const char* tile;  // pixels of vectors_of(taps) vectors
  const float* values;
  const int32_t* offsets;
  int64_t count;
  int64_t row;  // bytes from a row of the tile to the next
  float* sums;  // of (tap row r, tap column s, vector v): sums + r * down + s * along + v * vector
  int64_t down, along, vector;
  const uint8_t* inside;  // per pixel of the tile: whether it is of the dense operand
};

// The compiler would rather make every address of the inner loop from ones that it keeps, in registers it has not.
inline void keep_in_register(const char*& p) { asm("" : "+r"(p)); }

template <int kDown, int kAlong, int kV>
void visit(const Visit& job) {
  constexpr int kTaps = kDown * kAlong, kPitch = vectors_of(kTaps) * kWidth;
  constexpr int kSets = kTaps == 1 ? 2 : 1;  // few sums wait for one another: two sets take turns
  const int64_t row = job.row, down = job.down, along = job.along, vector = job.vector;
  float* const sums = job.sums;
  const auto place = [=](int r, int s, int v) { return sums + r * down + s * along + v * vector; };
  Floats sum[kSets][kDown][kAlong][kV];
#pragma GCC unroll 4
  for (int r = 0; r < kDown; ++r)
#pragma GCC unroll 4
    for (int s = 0; s < kAlong; ++s)
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) {
        sum[0][r][s][v] = load_lanes(place(r, s, v));
        if constexpr (kSets > 1) sum[kSets - 1][r][s][v] = Floats{};
      }
  const char* const tile = job.tile;
  for (int64_t i = 0; i < job.count; i += kSets) {
#pragma GCC unroll 2
    for (int set = 0; set < kSets; ++set) {
      const Floats x = broadcast(job.values[i + set]);
      const char* at = tile + job.offsets[i + set];
#pragma GCC unroll 4
      for (int r = 0; r < kDown; ++r, at += row) {
        keep_in_register(at);
#pragma GCC unroll 4
        for (int s = 0; s < kAlong; ++s)
#pragma GCC unroll 8
          for (int v = 0; v < kV; ++v) {
            const float* const y = reinterpret_cast<const float*>(at + s * kPitch + v * kWidth);
            sum[set][r][s][v] = fma(x, load_lanes(y), sum[set][r][s][v]);
          }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kDown; ++r)
#pragma GCC unroll 4
    for (int s = 0; s < kAlong; ++s)
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) {
        if constexpr (kSets > 1) sum[0][r][s][v] += sum[kSets - 1][r][s][v];
        store_lanes(place(r, s, v), sum[0][r][s][v]);
      }
}

// The same for nonzeros that may be infinite or NaN, which must not meet the zeros that stand for what is not there.
inline void visit_inside(const Visit& job, int down, int along, int vectors) {
  const int64_t pitch = vectors_of(down * along) * kWidth;
  for (int64_t i = 0; i < job.count; ++i)
    for (int r = 0; r < down; ++r)
      for (int s = 0; s < along; ++s) {
        const int64_t at = job.offsets[i] + r * job.row + s * pitch;
        if (!job.inside[at / pitch]) continue;
        for (int v = 0; v < vectors; ++v) {
          float* const sum = job.sums + r * job.down + s * job.along + v * job.vector;
          const Floats y = load_lanes(reinterpret_cast<const float*>(job.tile + at + v * kWidth));
          store_lanes(sum, fma(broadcast(job.values[i]), y, load_lanes(sum)));
        }
      }
}

using VisitFunction = void (*)(const Visit&);

template <int kDown, int kAlong, int kV = vectors_of(kDown * kAlong)>
VisitFunction visit_of_vectors(int vectors) {
  if constexpr (kV > 1) {
    if (vectors < kV) return visit_of_vectors<kDown, kAlong, kV - 1>(vectors);
  }
  return visit<kDown, kAlong, kV>;
}

template <int kDown>
VisitFunction visit_of_row(int along, int vectors) {
  if (along == 1) return visit_of_vectors<kDown, 1>(vectors);
  if (along == 2) return visit_of_vectors<kDown, 2>(vectors);
  return visit_of_vectors<kDown, 3>(vectors);
}

inline VisitFunction visit_of(int down, int along, int vectors) {
  if (down == 1) return visit_of_row<1>(along, vectors);
  if (down == 2) return visit_of_row<2>(along, vectors);
  return visit_of_row<3>(along, vectors);
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
