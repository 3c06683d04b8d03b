// The nonzeros of a tile of the sparse operand, channel by channel: values by place, and the places as bits.
#pragma once
#include "transpose_lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

using Floats = Lanes<float>;
using Ints = Lanes<int32_t>;
constexpr int kL = kLanes<float>;

struct Pixels {  // [pixels, channels]; an element whose bit is 0 counts as zero
  const float* data;
  int64_t channels;
  const uint32_t* bits;  // null: all count
  int64_t words;
};

constexpr uint32_t kAllLanes = (1u << kL) - 1;

inline uint32_t lanes_below(int64_t count) { return count >= kL ? kAllLanes : (1u << count) - 1; }

// Channels [c, c + kL) of a pixel, zero where there is no channel or no bit.
inline Floats load_channels(const Pixels& a, int64_t pixel, int64_t c) {
  uint32_t bits = lanes_below(a.channels - c);
  if (a.bits != nullptr) bits &= a.bits[pixel * a.words + (c >> 5)] >> (c & 31);
  return load_where(a.data + pixel * a.channels + c, bits);
}

// The places of a tile, row by row, also those that only taps of others reach. kLanes at a time.
struct Places {
  int64_t count;           // the next place is a pixel of zeros
  const int64_t* dense;    // pixel of the dense operand, or -1: outside
  const int64_t* sparse;   // pixel of the sparse operand, some pixel where there is none
  const int32_t* valid;    // taps that meet a pixel of the dense operand; 0 where there is no sparse pixel
  const uint32_t* keep;    // per kL places: which have a sparse pixel
};

constexpr int kGroup = 4;  // words of a channel that are gone through together
constexpr int kMostWords = int(kMostPixels) / 64 + kGroup;

struct Channel {  // the words that are not empty, then words that name the pixel of zeros
  uint64_t words[kMostWords];
  uint64_t first[kMostWords];  // place of bit 0
  int32_t counts[kMostWords / kGroup];
  int32_t groups;
};

constexpr int64_t kValuePitch = kMostPixels + kL;

struct Lists {
  float* values;  // [channels, kValuePitch], by place
  Channel* channels;
};

inline int64_t sum_of(Ints v) {
  int64_t sum = 0;
  for (int i = 0; i < kL; ++i) sum += v[i];
  return sum;
}

constexpr int64_t kListed = 128;  // channels listed together: their pieces of pixels are long enough to stream
constexpr int64_t kAhead = 32;    // places between what is asked for and what is listed

// Leaves out a channel's empty words, of `words`, and counts the bits of the others; `end` is the place of zeros.
inline int64_t close_channel(Channel& channel, int64_t words, int64_t end) {
  int64_t nonzero = 0;
  int n = 0;
  for (int64_t w = 0; w < words; ++w) {
    const uint64_t word = channel.words[w];
    channel.words[n] = word;
    channel.first[n] = uint64_t(64 * w);
    n += word != 0;
  }
  channel.groups = (n + kGroup - 1) / kGroup;
  for (int g = 0; g < channel.groups; ++g) {
    int32_t bits = 0;
    for (int w = g * kGroup; w < n && w < (g + 1) * kGroup; ++w) bits += __builtin_popcountll(channel.words[w]);
    channel.counts[g] = bits;
    nonzero += bits;
  }
  for (int w = n; w < n + kGroup; ++w) {
    channel.words[w] = 1;
    channel.first[w] = uint64_t(end);
  }
  return nonzero;
}

// Makes the lists of channels [first, first + count), count <= kListed; there is room up to a multiple of kL. Returns
// how many nonzeros there are, and adds to `products` the sum of their `valid`.
inline int64_t make_lists(const Pixels& a, int64_t first, int64_t count, const Places& places, const Lists& lists,
                          int64_t& products) {
  const int64_t words = ceil_div(places.count, 64), room = ceil_div(count, kL) * kL;
  float* const values = lists.values;
  Channel* const channels = lists.channels;
  for (int64_t c = 0; c < room; ++c)
    for (int64_t w = 0; w < words; ++w) channels[c].words[w] = 0;
  Ints total = {};
  for (int64_t p = 0; p < places.count; p += kL) {
    const uint32_t keep = places.keep[p / kL];
    if (keep == 0) continue;
    const Ints valid = load_lanes(places.valid + p);
    const int64_t* const pixel = places.sparse + p;
    const bool more = p + kAhead < places.count;
    for (int64_t c = 0; c < room; c += kL) {
      if (more && c % 16 == 0) {
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) __builtin_prefetch(a.data + pixel[kAhead + i] * a.channels + first + c);
      }
      Floats square[kL];
      if (a.bits == nullptr && c + kL <= count) {
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) square[i] = load_lanes(a.data + pixel[i] * a.channels + first + c);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) square[i] = load_channels(a, pixel[i], first + c);
      }
      transpose_square(square);
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) {
        store_lanes(values + (c + i) * kValuePitch + p, square[i]);
        const uint32_t bits = nonzeros(square[i], valid, keep, total);
        char* const to = reinterpret_cast<char*>(channels[c + i].words) + p / 8;
        if constexpr (kL == 16) {
          const uint16_t half = uint16_t(bits);
          memcpy(to, &half, 2);
        } else {
          *to = char(*to | bits << p % 8);
        }
      }
    }
  }
  products += sum_of(total);
  int64_t nonzero = 0;
  for (int64_t c = 0; c < count; ++c) {
    nonzero += close_channel(channels[c], words, places.count);
    values[c * kValuePitch + places.count] = 0;
  }
  return nonzero;
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
