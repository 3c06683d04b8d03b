// The inner loop: the nonzeros of a channel in a tile, times what they meet there, into sums that stay in registers.
#pragma once
#include "skip_conv_weight.h"
#include "skip_conv_weight_lists.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Visit {
  const char* tile;  // places of vectors_of() vectors
  const float* values;
  const Channel* channel;
  int64_t row;  // bytes from a row of the tile to the next
  float* sums;  // of (tap row r, tap column s, vector v): sums + r * down + s * along + v * vector
  int64_t down, along, vector;
};

// The nonzeros that are left, in up to kWords words. Addresses are made from bits in registers: made from a list in
// memory, each nonzero's loads would wait behind those of the one before, which costs a quarter of the speed.
template <int kWords>
struct Bits {
  uint64_t word[4], first[4];

  Bits(const Channel& channel, int group) {
    for (int i = 0; i < kWords; ++i) {
      word[i] = channel.words[group * kGroup + i];
      first[i] = channel.first[group * kGroup + i];
    }
  }

  // The next place. Without a branch from word to word, which would be mispredicted each time.
  uint64_t next() {
    const uint64_t place = first[0] + uint64_t(__builtin_ctzll(word[0]));
    drop_lowest<kWords>(word, first);
    return place;
  }
};

// The compiler would rather make every address of the inner loop from ones that it keeps, in registers it has not.
inline void keep_in_register(const char*& p) { asm("" : "+r"(p)); }

template <int kDown, int kAlong, int kV, int kMost>
void visit(const Visit& job) {
  constexpr int kPitch = kMost * kWidth;
  constexpr int kSets = kDown * kAlong * kMost <= 4 ? 2 : 1;  // few sums wait for one another: two sets take turns
  constexpr int kTileWords = int(pixels_of(kMost)) / 64 + (kSets > 1);  // an odd one has the pixel of zeros as partner
  constexpr int kWords = kTileWords > 4 ? 4 : kTileWords < 2 ? 2 : kTileWords;
  static_assert(kSets == 1 || kTileWords <= 4);
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
  const float* const values = job.values;
  for (int group = 0; group < job.channel->groups; ++group) {
    Bits<kWords> bits(*job.channel, group);
    for (int64_t left = job.channel->counts[group]; left > 0; left -= kSets) {
#pragma GCC unroll 2
      for (int set = 0; set < kSets; ++set) {
        const uint64_t at_place = bits.next();
        const Floats x = broadcast(values[at_place]);
        const char* at = tile + at_place * kPitch;
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
inline void visit_inside(const Visit& job, const Places& places, int down, int along, int vectors, int64_t pitch) {
  for (int group = 0; group < job.channel->groups; ++group) {
    Bits<4> bits(*job.channel, group);
    for (int64_t left = job.channel->counts[group]; left > 0; --left) {
      const int64_t place = int64_t(bits.next());
      for (int r = 0; r < down; ++r)
        for (int s = 0; s < along; ++s) {
          const int64_t at = place + r * (job.row / pitch) + s;
          if (places.dense[at] < 0) continue;
          for (int v = 0; v < vectors; ++v) {
            float* const sum = job.sums + r * job.down + s * job.along + v * job.vector;
            const Floats y = load_lanes(reinterpret_cast<const float*>(job.tile + at * pitch + v * kWidth));
            store_lanes(sum, fma(broadcast(job.values[place]), y, load_lanes(sum)));
          }
        }
    }
  }
}

using VisitFunction = void (*)(const Visit&);

template <int kDown, int kAlong, int kMost, int kV = kMost>
VisitFunction visit_of_vectors(int vectors) {
  if constexpr (kV > 1) {
    if (vectors < kV) return visit_of_vectors<kDown, kAlong, kMost, kV - 1>(vectors);
  }
  return visit<kDown, kAlong, kV, kMost>;
}

template <int kDown>
VisitFunction visit_of_row(int along, int vectors) {
  if (along == 1) return visit_of_vectors<kDown, 1, most_vectors(kDown)>(vectors);
  if (along == 2) return visit_of_vectors<kDown, 2, most_vectors(kDown * 2)>(vectors);
  return visit_of_vectors<kDown, 3, most_vectors(kDown * 3)>(vectors);
}

// `most` is what vectors_of() says.
inline VisitFunction visit_of(int down, int along, int vectors, int most) {
  if (down == 1 && along == 1 && most < most_vectors(1)) return visit_of_vectors<1, 1, most_vectors(1) / 2>(vectors);
  if (down == 1) return visit_of_row<1>(along, vectors);
  if (down == 2) return visit_of_row<2>(along, vectors);
  return visit_of_row<3>(along, vectors);
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
