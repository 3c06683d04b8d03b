// What a block of output lines needs of x, read once: its scalars, which of them are not zero, and how many.
//
// The sweeps over a block meet x once for each group of outputs and each row of the kernel. So its rows are copied
// before them into slots: line l finds the rows of its kernel rows, in order, in slots base(l), base(l) + 1, ..., and a
// column of these lies together, so that one load brings the bits of a panel and a bit's number is its scalar's place.
#pragma once
#include "kernels.h"
#include "skip_conv.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Conv : Convolution {
  bool transposed;
  int64_t pixels = 0;  // of x: fewer than images * down.in * along.in only where lines are cut from one long row
  bool flat = false;   // they are: a 1x1 kernel at every pixel
};

// Groups of equally many vectors of outputs, and channels in parts of `lanes`: weights are
// [groups][parts][r][lanes][s][outs], zero where there is no channel or no output. A part under all kernel rows is at
// least kMostSegments segments where there are so many, and a panel is some of its segments.
struct Packing {
  int64_t vectors, groups, outs, lanes, parts;
  Packing(int64_t out, int64_t in, int64_t r) {
    const int64_t all = ceil_div(out > 0 ? out : 1, kF);
    groups = ceil_div(all, kMostVectors);
    vectors = ceil_div(all, groups);
    if (kLeastVectors == 2 && vectors != 2) vectors = kMostVectors;
    outs = vectors * kF;
    lanes = kSegment * least(r < kMostSegments ? kMostSegments / r : 1, ceil_div(in > 0 ? in : 1, kSegment));
    parts = ceil_div(in, lanes);
  }
};

// The input row that kernel row r takes to (or from) output row oh, or -1.
inline int64_t input_row(const Conv& conv, int64_t oh, int64_t r) {
  int64_t row;
  if (conv.transposed) {
    row = oh + conv.down.padding - r * conv.down.dilation;
    if (row % conv.down.stride != 0) return -1;
    row /= conv.down.stride;
  } else {
    row = oh * conv.down.stride - conv.down.padding + r * conv.down.dilation;
  }
  return row >= 0 && row < conv.down.in ? row : -1;
}

// Whether output row oh is the first that meets input row input_row(oh, r).
inline bool meets_first(const Conv& conv, int64_t oh, int64_t r) {
  if (conv.transposed) return r == 0 || oh - conv.down.dilation < 0;
  int64_t a = conv.down.stride, b = conv.down.dilation;
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return r + conv.down.stride / a >= conv.down.taps || oh - conv.down.dilation / a < 0;
}

// How many taps take a row or column of x to one of y.
inline int64_t taps_of(bool transposed, const Axis& axis, int64_t at) {
  int64_t count = 0;
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    int64_t o;
    if (transposed) {
      o = at * axis.stride - axis.padding + tap * axis.dilation;
    } else {
      o = at + axis.padding - tap * axis.dilation;
      if (o % axis.stride != 0) continue;
      o /= axis.stride;
    }
    count += o >= 0 && o < axis.out;
  }
  return count;
}

inline bool row_is_met(const Conv& conv, int64_t row) { return taps_of(conv.transposed, conv.down, row) > 0; }

inline int64_t count_pixel(const float* x, const uint16_t* bits, int64_t c) {
  int64_t count = 0;
  for (int64_t i = 0; i < c; i += kSegment) {
    uint64_t set = c - i >= kSegment ? nonzero_bits<kSegment>(x + i) : nonzero_bits_first(x + i, int(c - i));
    if (bits != nullptr) set &= bits[i / kSegment];
    count += __builtin_popcountll(set);
  }
  return count;
}

// Bytes of x and y that a block of lines may have: what stays in L2 beside the weights that pass through it. x is
// asked for kAhead floats ahead.
constexpr int64_t kBlockBytes = 786432, kAhead = 1024;

// Slots from a line to the next of the same image: their rows are the same but for so many.
inline int64_t slots_apart(const Conv& conv) {
  if (conv.down.dilation != 1 || (conv.transposed && conv.down.stride != 1)) return conv.down.taps;
  return least(conv.down.stride, conv.down.taps);
}

// How x is staged for `lines` lines. Sizes in floats, or in bits words of kSegment; an odd number of lines of the cache
// from a column to the next spreads columns over all of its sets.
struct Stage {
  int64_t lanes, parts, slots, shift;
  int64_t x_slot, x_column, x_part, bits_slot, bits_column, bits_part, bytes;
  int64_t copy;  // floats of it: none where lines are cut from one long row, of which only the bits are staged
  float* x;
  uint16_t* bits;
  int64_t* rows;                // of slots: the row of x, over all images, or -1
  int32_t *uses, *own;          // of slots: how many kernel rows of lines meet it, 1 if counted here
  int32_t *taps, *base;         // of columns; first slots of the block's lines

  Stage(const Conv& conv, const Packing& packing, int64_t lines) {
    lanes = packing.lanes;
    parts = packing.parts;
    shift = slots_apart(conv);
    slots = least(lines * conv.down.taps, lines * shift + (lines / conv.down.out + 2) * (conv.down.taps - shift));
    if (conv.flat) {
      x_column = conv.channels;
      x_slot = conv.along.in * conv.channels;
      x_part = lanes;
      bits_column = lanes / kSegment;
      bits_slot = conv.along.in * bits_column;
    } else if (conv.down.taps == 1) {
      x_column = lanes;
      x_slot = conv.along.in * lanes;
      x_part = (slots * x_slot) | kSegment;
      bits_column = lanes / kSegment;
      bits_slot = conv.along.in * bits_column;
    } else {
      x_slot = lanes;
      x_column = (slots * lanes) | kSegment;
      x_part = (conv.along.in * x_column) | kSegment;
      bits_slot = lanes / kSegment;
      bits_column = slots * bits_slot;
    }
    bits_part = conv.along.in * slots * (lanes / kSegment);
    const int64_t words = ceil_div(parts * bits_part + 4, 32) * 32;  // four are read at a time
    const int64_t ints = ceil_div(conv.along.in + lines + 4 * slots, 16) * 16;
    copy = conv.flat ? 0 : parts * x_part;
    bytes = copy * 4 + words * 2 + ints * 4;
  }

  void place(void* workspace, const Conv& conv) {
    x = static_cast<float*>(workspace);
    bits = reinterpret_cast<uint16_t*>(x + copy);
    rows = reinterpret_cast<int64_t*>(bits + ceil_div(parts * bits_part + 4, 32) * 32);
    uses = reinterpret_cast<int32_t*>(rows + slots);
    own = uses + slots;
    taps = own + slots;
    base = taps + conv.along.in;
    for (int64_t w = 0; w < conv.along.in; ++w) taps[w] = int32_t(taps_of(conv.transposed, conv.along, w));
  }
};

struct Counts {
  int64_t nonzeros = 0, products = 0;  // products: with one output each
};

// Copies row `row` of x (over all images) into a slot; without kCopy, only its bits.
template <bool kBits, bool kCopy>
[[gnu::noinline]] void stage_row(const Conv& conv, const Stage& stage, const float* x, const uint16_t* bits,
                                 int64_t row, int64_t slot, Counts* counts) {
  const int64_t words = ceil_div(conv.channels, 32) * 2, whole = conv.channels / kSegment, each = stage.lanes / kSegment;
  const int64_t pixel = row * conv.along.in, columns = least(conv.along.in, conv.pixels - pixel);
  for (int64_t w = 0; w < columns; ++w) {
    const float* const from = x + (pixel + w) * conv.channels;
    const uint16_t* const kept = kBits ? bits + (pixel + w) * words : nullptr;
    if (stage.taps[w] == 0) {  // only counted
      counts->nonzeros += count_pixel(from, kept, conv.channels);
      continue;
    }
    float* to = stage.x + w * stage.x_column + slot * stage.x_slot;
    uint16_t* to_bits = stage.bits + w * stage.bits_column + slot * stage.bits_slot;
    int64_t nonzeros = 0;
    for (int64_t b = 0; b < stage.parts * each; b += each) {
      if (!kCopy && each == kMostSegments && b + each <= whole) {  // the usual case of a 1x1 kernel
        const float* const p = from + b * kSegment;
#pragma GCC unroll 4
        for (int i = 0; i < 64; i += 16) __builtin_prefetch(p + kAhead + i);
        uint64_t set = nonzero_bits<64>(p), keep = ~uint64_t(0);
        if (kBits) memcpy(&keep, kept + b, 8);
        set &= keep;
        memcpy(to_bits, &set, 8);
        nonzeros += __builtin_popcountll(set);
        to_bits += stage.bits_part;
        continue;
      }
      for (int64_t i = 0; i < each; ++i) {
        const float* const p = from + (b + i) * kSegment;
        uint64_t set = 0;
        __builtin_prefetch(p + kAhead);
        if (b + i < whole) {
          set = nonzero_bits<kSegment>(p);
          for (int k = 0; kCopy && k < kSegment; k += kF) store_lanes(to + i * kSegment + k, load_lanes(p + k));
        } else if (b + i == whole && conv.channels % kSegment != 0) {
          set = nonzero_bits_first(p, int(conv.channels % kSegment));
          if (kCopy) memcpy(to + i * kSegment, p, size_t(conv.channels % kSegment) * sizeof(float));
        }
        if (kBits && b + i < ceil_div(conv.channels, kSegment)) set &= kept[b + i];
        to_bits[i] = uint16_t(set);
        nonzeros += __builtin_popcountll(set);
      }
      to += stage.x_part;
      to_bits += stage.bits_part;
    }
    counts->nonzeros += nonzeros;
    counts->products += nonzeros * stage.taps[w];
  }
}

// Stages what lines [begin, end) need.
inline void stage_lines(const Conv& conv, const Stage& stage, const float* x, const uint16_t* bits, int64_t begin,
                        int64_t end, Counts* counts) {
  const int64_t shift = stage.shift;
  int64_t slots = 0, last = -1;
  for (int64_t i = 0; i < end - begin; ++i) {
    const int64_t line = conv.transposed ? end - 1 - i : begin + i, n = line / conv.down.out, oh = line % conv.down.out;
    const int64_t base = n == last ? slots - conv.down.taps + shift : slots;
    last = n;
    stage.base[line - begin] = int32_t(base);
    for (int64_t r = 0; r < conv.down.taps; ++r) {
      const int64_t slot = base + r, row = input_row(conv, oh, r);
      if (slot >= slots) {
        stage.rows[slot] = row < 0 ? -1 : n * conv.down.in + row;
        stage.uses[slot] = stage.own[slot] = 0;
      }
      if (row < 0) continue;
      ++stage.uses[slot];
      if (meets_first(conv, oh, r)) stage.own[slot] = 1;
    }
    slots = base + conv.down.taps;
  }
  const int64_t each = stage.lanes / kSegment;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (stage.rows[slot] >= 0) {
      Counts row;
      const auto staging = conv.flat ? bits != nullptr ? stage_row<true, false> : stage_row<false, false>
                           : bits != nullptr ? stage_row<true, true> : stage_row<false, true>;
      staging(conv, stage, x, bits, stage.rows[slot], slot, &row);
      counts->nonzeros += row.nonzeros * stage.own[slot];
      counts->products += row.products * stage.uses[slot];
    } else {
      for (int64_t part = 0; part < stage.parts; ++part) {
        uint16_t* const first = stage.bits + part * stage.bits_part + slot * stage.bits_slot;
        for (int64_t w = 0; w < conv.along.in; ++w) memset(first + w * stage.bits_column, 0, size_t(each) * 2);
      }
    }
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
