// Convolution, forward and gradient by input, at the cost of the input's nonzeros; 1x1 and linear layers are the same.
//
// Every case is made of one kind of sweep: along a line, tap t takes input column i to output column i + shift - t. A
// stride divides the columns of the input (backwards: of the output) into classes by their remainder, a dilation those
// of both; the taps of a class, a few at a time, are one sweep. The gradient's sweeps run from right to left, which puts
// the taps into the same order. Rows are segments: an output row meets the input rows of its kernel rows, each with its
// weights, 16 channels at a time.
#include "skip_conv.h"

#include "kernels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Conv {
  int64_t n, h, w, c;  // x
  int64_t oh, ow, out;
  int64_t r, s;  // the kernel
  int64_t stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  bool transposed;
};

// Groups of equally many vectors of outputs: weights are [groups][ceil(c / 16)][r][16][s][vectors * kF], zero where
// there is no channel or no output.
struct Packing {
  int64_t vectors, groups, outs;
  Packing(int64_t out) {
    const int64_t all = ceil_div(out > 0 ? out : 1, kF);
    groups = ceil_div(all, kMostVectors);
    vectors = ceil_div(all, groups);
    if (kLeastVectors == 2 && vectors != 2) vectors = kMostVectors;
    outs = vectors * kF;
  }
};

int64_t remainder(int64_t a, int64_t b) { return (a % b + b) % b; }

// Some taps on a class of columns; see Line. Columns and outs are those of a whole line.
struct Sweep {
  int taps, step;        // how many, and kernel columns from one to the next
  int64_t tap;           // the first, in the order of the sweep
  int64_t x0, x_step, columns;
  int64_t y0, y_step, outs;
  int64_t shift;
  bool first, last;  // of those that write these outputs
  bool counts;       // no other sweep that counts meets a column of this one
};

// Calls f for the sweeps of a line, those of a class of outputs one after the other.
template <class F>
void for_each_sweep(const Conv& conv, const F& f) {
  const int64_t stride = conv.stride_w, dil = conv.dil_w, pad = conv.pad_w;
  const bool by_dilation = stride == 1 && dil > 1;
  // Taps whose places differ by `step` are neighbours in a class; where those are uneven, each tap is alone.
  const int64_t step = by_dilation || stride == 1 ? 1 : dil == 1 ? stride : conv.s;
  const int most = step == 1 ? kMostTaps : step == 2 ? 2 : 1;
  const auto run = [&](Sweep sweep, int64_t first_tap, int64_t chunks, int64_t* done, auto shift_of) {
    int64_t left = ceil_div(conv.s - first_tap, step);
    sweep.step = int(step);
    for (int64_t t = first_tap; left > 0; ++*done) {
      sweep.taps = int(least(left, most));
      sweep.tap = t;
      sweep.shift = shift_of(t);
      sweep.first = *done == 0;
      sweep.last = *done == chunks - 1;
      f(sweep);
      sweep.counts = false;
      left -= sweep.taps;
      t += sweep.taps * step;
    }
  };
  const auto chunks_of = [&](int64_t first_tap) {
    return first_tap < conv.s ? ceil_div(ceil_div(conv.s - first_tap, step), most) : int64_t(0);
  };
  Sweep sweep = {};
  sweep.x_step = sweep.y_step = 1;
  if (by_dilation) {  // classes of both sides
    for (int64_t y0 = 0; y0 < dil && y0 < conv.ow; ++y0) {
      const int64_t x0 = remainder(conv.transposed ? y0 + pad : y0 - pad, dil);
      const int64_t columns = x0 < conv.w ? ceil_div(conv.w - x0, dil) : 0, outs = ceil_div(conv.ow - y0, dil);
      sweep = {0, 0, 0, x0, dil, columns, y0, dil, outs, 0, false, false, true};
      int64_t shift = (conv.transposed ? x0 - pad - y0 : x0 + pad - y0) / dil;
      if (conv.transposed) {
        sweep.x0 = columns > 0 ? x0 + (columns - 1) * dil : 0;
        sweep.y0 = y0 + (outs - 1) * dil;
        sweep.x_step = sweep.y_step = -dil;
        shift = outs - columns - shift;
      }
      int64_t done = 0;
      run(sweep, 0, chunks_of(0), &done, [=](int64_t tap) { return shift - tap; });
    }
  } else if (!conv.transposed) {  // classes of input columns; all write all outputs
    int64_t chunks = 0, done = 0;
    const int64_t classes = least(conv.s, step);  // by their first tap
    for (int64_t tap = 0; tap < classes; ++tap) chunks += chunks_of(tap);
    for (int64_t tap = 0; tap < classes; ++tap) {
      const int64_t x0 = remainder(tap * dil - pad, stride);
      const int64_t columns = x0 < conv.w ? ceil_div(conv.w - x0, stride) : 0;
      sweep = {0, 0, 0, x0, stride, columns, 0, 1, conv.ow, 0, false, false, dil == 1};
      run(sweep, tap, chunks, &done, [=](int64_t t) { return (x0 + pad - t * dil) / stride; });
    }
  } else {  // classes of output columns; all read all columns of the input
    for (int64_t y0 = 0; y0 < stride && y0 < conv.ow; ++y0) {
      const int64_t outs = ceil_div(conv.ow - y0, stride), columns = conv.w;
      sweep = {1, 1, 0, columns - 1, -1, columns, y0 + (outs - 1) * stride, -stride, outs, 0, true, true, false};
      int64_t chunks = 0, done = 0;
      const int64_t classes = least(conv.s, step);
      for (int64_t tap = 0; tap < classes; ++tap)
        if (remainder(tap * dil - y0 - pad, stride) == 0) chunks += chunks_of(tap);
      for (int64_t tap = 0; tap < classes; ++tap)
        if (remainder(tap * dil - y0 - pad, stride) == 0) {
          sweep.counts = tap == 0;
          run(sweep, tap, chunks, &done,
              [=](int64_t t) { return outs - columns - (t * dil - pad - y0) / stride; });
        }
      if (chunks == 0) {  // no tap leads here: the outputs are the bias
        sweep.columns = 0;
        sweep.counts = false;
        f(sweep);
      }
    }
  }
}

using SweepLine = void (*)(Line&);

template <int kGroups, int kVectors>
SweepLine sweep_line_of(int taps, int step, int64_t groups, int64_t vectors) {
  if constexpr (kVectors > kLeastVectors) {
    if (vectors < kVectors) return sweep_line_of<1, kVectors - (kLeastVectors == 2 ? 2 : 1)>(taps, step, groups, vectors);
  }
  if constexpr (kGroups < kMostGroups && kVectors >= 3) {
    if (groups > kGroups) return sweep_line_of<kGroups + 1, kVectors>(taps, step, groups, vectors);
  }
  if (taps == 1) return sweep_line<1, 1, kGroups, kVectors>;
  if constexpr (kGroups == 2) {
    if (taps == 2 && step == 2) return sweep_line<2, 2, kGroups, kVectors>;
  }
  if constexpr (kGroups == 1) {
    if (taps == 2) return step == 1 ? sweep_line<2, 1, 1, kVectors> : sweep_line<2, 2, 1, kVectors>;
    if (taps == 3) return sweep_line<3, 1, 1, kVectors>;
  }
  return nullptr;
}

// Groups of outputs that share a broadcast. More of them mean fewer segments for a panel that stays in L1, so that y is
// read and written more often, which costs more than the broadcasts.
int64_t groups_together(const Sweep& sweep, const Packing& packing) {
  if (packing.vectors < 3) return 1;
#if defined(GOSSAMER_AVX512)
  const int64_t most = sweep.taps == 1 || sweep.step == 2 ? 2 : 1;
#elif defined(GOSSAMER_AVX2)
  const int64_t most = sweep.taps == 1 ? 3 : 1;
#else
  const int64_t most = sweep.taps == 1 ? 2 : 1;
#endif
  return least(most, packing.groups);
}

// The input row that kernel row r takes to (or from) output row oh, or -1.
int64_t input_row(const Conv& conv, int64_t oh, int64_t r) {
  int64_t row;
  if (conv.transposed) {
    row = oh + conv.pad_h - r * conv.dil_h;
    if (row % conv.stride_h != 0) return -1;
    row /= conv.stride_h;
  } else {
    row = oh * conv.stride_h - conv.pad_h + r * conv.dil_h;
  }
  return row >= 0 && row < conv.h ? row : -1;
}

// Whether output row oh is the first that meets input row input_row(oh, r).
bool meets_first(const Conv& conv, int64_t oh, int64_t r) {
  if (conv.transposed) return r == 0 || oh - conv.dil_h < 0;
  int64_t a = conv.stride_h, b = conv.dil_h;
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return r + conv.stride_h / a >= conv.r || oh - conv.dil_h / a < 0;
}

bool row_is_met(const Conv& conv, int64_t h) {
  for (int64_t r = 0; r < conv.r; ++r) {
    int64_t oh;
    if (conv.transposed) {
      oh = h * conv.stride_h - conv.pad_h + r * conv.dil_h;
    } else {
      oh = h + conv.pad_h - r * conv.dil_h;
      if (oh % conv.stride_h != 0) continue;
      oh /= conv.stride_h;
    }
    if (oh >= 0 && oh < conv.oh) return true;
  }
  return false;
}

// Whether a sweep that counts meets column w.
bool column_is_counted(const Conv& conv, int64_t w) {
  bool met = false;
  for_each_sweep(conv, [&](const Sweep& sweep) {
    if (!sweep.counts || sweep.columns == 0) return;
    const int64_t away = w - sweep.x0, i = away / sweep.x_step;
    if (away % sweep.x_step != 0 || i < 0 || i >= sweep.columns) return;
    const int64_t e = i + sweep.shift;
    met |= e >= 0 && e < sweep.outs + sweep.taps - 1;
  });
  return met;
}

int64_t count_pixel(const float* x, const uint16_t* bits, int64_t c) {
  int64_t count = 0;
  for (int64_t i = 0; i < c; i += kSegment) {
    uint64_t set = c - i >= kSegment ? nonzero_bits<kSegment>(x + i) : nonzero_bits_first(x + i, int(c - i));
    if (bits != nullptr) set &= bits[i / kSegment];
    count += __builtin_popcountll(set);
  }
  return count;
}

// The nonzeros of pixels that no sweep counts: a stride or a wide kernel leaves them out.
int64_t count_rest(const Conv& conv, const float* x, const uint16_t* bits, int threads) {
  bool rest = false;
  for (int64_t h = 0; h < conv.h && !rest; ++h) rest = !row_is_met(conv, h);
  for (int64_t w = 0; w < conv.w && !rest; ++w) rest = !column_is_counted(conv, w);
  if (!rest) return 0;
  int64_t total = 0;
  const int64_t words = ceil_div(conv.c, 32) * 2;
  parallel(threads, threads, [&, threads](int64_t part) {
    int64_t count = 0;
    for (int64_t h = 0; h < conv.h; ++h) {
      const bool row = row_is_met(conv, h);
      for (int64_t w = 0; w < conv.w; ++w) {
        if (row && column_is_counted(conv, w)) continue;
        for (int64_t n = part_begin(conv.n, part, threads); n < part_begin(conv.n, part + 1, threads); ++n) {
          const int64_t pixel = (n * conv.h + h) * conv.w + w;
          count += count_pixel(x + pixel * conv.c, bits == nullptr ? nullptr : bits + pixel * words, conv.c);
        }
      }
    }
    __atomic_fetch_add(&total, count, __ATOMIC_RELAXED);
  });
  return total;
}

// What a thread keeps of y in L2 while it goes through the panels of weights, and the columns of a line that has no
// rows of its own.
constexpr int64_t kBlockBytes = 262144, kFlatColumns = 64;

struct Tensors {
  const float *x, *w, *bias;
  const uint16_t* bits;
  float* y;
  uint8_t* y_bits;
  bool relu;
  int64_t flat;  // pixels, where lines are cut from one long row; else 0
};

struct Counts {
  int64_t nonzeros = 0, products = 0;
};

// Lines [begin, end) of groups [group, group + groups) under one sweep.
void run_sweep(const Conv& conv, const Tensors& t, const Packing& packing, const Sweep& sweep, int64_t group,
               int64_t groups, int64_t begin, int64_t end, Counts* counts) {
  const SweepLine kernel = sweep_line_of<1, kMostVectors>(sweep.taps, sweep.step, groups, packing.vectors);
  const int64_t together = segments_of(int(sweep.taps * groups * packing.vectors));
  const int64_t blocks = ceil_div(conv.c, kSegment), segments = blocks * conv.r;
  const int64_t panels = segments > 0 ? ceil_div(segments, together) : 1;
  const int64_t words = ceil_div(conv.c, 32) * 2, y_bytes = ceil_div(conv.out, 32) * 4, at = group * packing.outs;
  const int64_t width = conv.out - at, real = least(width, groups * packing.outs);
  Line line = {};
  line.x_step = sweep.x_step * conv.c;
  line.bits_step = sweep.x_step * words;
  line.shift = sweep.shift;
  line.taps = sweep.taps;
  line.w_row = conv.s * packing.outs;
  line.w_group = segments * kSegment * line.w_row;
  line.y_step = sweep.y_step * conv.out;
  line.y_width = width;
  line.bias = t.bias == nullptr ? nullptr : t.bias + at;
  line.y_bits_step = sweep.y_step * y_bytes;
  line.y_bits_bytes = y_bytes - at / 8;
  line.relu = t.relu;
  const float* const weights = t.w + group * line.w_group + sweep.tap * packing.outs;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t segment = panel * together, count = least(together, segments - segment);
    line.w = weights + segment * kSegment * line.w_row;
    line.first = sweep.first && panel == 0;
    line.last = sweep.last && panel == panels - 1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t l = sweep.x_step > 0 ? i : begin + end - 1 - i;
      const int64_t n = l / conv.oh, oh = l % conv.oh;
      line.columns = sweep.columns;
      line.outs = sweep.outs;
      if (t.flat != 0) line.columns = line.outs = least(conv.w, t.flat - l * conv.w);
      line.own = 0;
      bool any = false;
      for (int64_t j = 0; j < together; ++j) {
        const int64_t block = (segment + j) / conv.r, r = (segment + j) % conv.r;
        const int64_t row = j < count && sweep.columns > 0 ? input_row(conv, oh, r) : -1;
        line.lanes[j] = row < 0 ? 0 : int(least(kSegment, conv.c - block * kSegment));
        line.x[j] = t.x + sweep.x0 * conv.c;  // of which nothing is loaded
        line.bits[j] = t.bits;
        if (row < 0) continue;
        any = true;
        const int64_t pixel = (n * conv.h + row) * conv.w + sweep.x0;
        line.x[j] = t.x + pixel * conv.c + block * kSegment;
        if (t.bits != nullptr) line.bits[j] += pixel * words + block;
        if (sweep.counts && group == 0 && meets_first(conv, oh, r)) line.own |= uint64_t(0xffff) << (j * kSegment);
      }
      if (!any && !line.first && !line.last) continue;
      if (!any) line.columns = 0;
      const int64_t out = l * conv.ow + sweep.y0;
      line.y = t.y + out * conv.out + at;
      line.y_bits = t.y_bits == nullptr ? nullptr : t.y_bits + out * y_bytes + at / 8;
      if (panel + 1 < panels) {  // the next panel comes to L2, a share with every line
        const float* const next = line.w + together * kSegment * line.w_row;
        const int64_t share = ceil_div(together * kSegment * line.w_row, end - begin);
        const int64_t from = (i - begin) * share, to = least(from + share, together * kSegment * line.w_row);
        for (int64_t g = 0; g < groups; ++g)
          for (int64_t f = from; f < to; f += 16) __builtin_prefetch(next + g * line.w_group + f, 0, 2);
      }
      kernel(line);
    }
  }
  counts->nonzeros += line.nonzeros;
  counts->products += line.products * real;
}

// Writes the columns of in[rows, cols], `stride` apart and each contiguous, as rows: column i goes to to(i).
template <class To>
void transpose_to(const float* in, int64_t stride, int64_t rows, int64_t cols, const To& to) {
  constexpr int kB = kSide<float>;
  float block[kB * kB];
  const int64_t whole = cols >= kB ? rows / kB * kB : 0;
  for (int64_t c = 0; c < cols && whole > 0; c += kB) {
    const int64_t left = least(c, cols - kB);  // the last block takes some columns again
    float* rows_out[kB];
    for (int i = 0; i < kB; ++i) rows_out[i] = to(left + i);
    for (int64_t r = 0; r < whole; r += kB) {
      transpose_block(in + r * stride + left, stride, block, kB);
      for (int i = 0; i < kB; ++i) memcpy(rows_out[i] + r, block + i * kB, sizeof(float) * kB);
    }
  }
  for (int64_t c = 0; c < cols; ++c)
    for (int64_t r = whole; r < rows; ++r) to(c)[r] = in[r * stride + c];
}

}  // namespace

void skip_pack(const float* weight, int64_t out, int64_t in, int64_t r, int64_t s, int64_t out_stride,
               int64_t in_stride, int64_t r_stride, int64_t s_stride, float* packed, int threads) {
  const Packing packing(out);
  const int64_t blocks = ceil_div(in, kSegment), units = packing.groups * blocks, outs = packing.outs;
  const bool taps_together = s_stride == 1 && r_stride == s && out_stride != 1;
  threads = useful_threads(units * kSegment * r * s * outs * 4, threads);
  parallel(threads, threads, [&, threads](int64_t part) {
    for (int64_t unit = part_begin(units, part, threads); unit < part_begin(units, part + 1, threads); ++unit) {
      const int64_t k0 = unit / blocks * outs, c0 = unit % blocks * kSegment;
      const int64_t ks = least(outs, out - k0), cs = least(kSegment, in - c0);
      const float* const from = weight + k0 * out_stride + c0 * in_stride;
      float* const to = packed + unit * r * kSegment * s * outs;
      const auto row = [=](int64_t c, int64_t i, int64_t j) { return to + ((i * kSegment + c) * s + j) * outs; };
      if (ks < outs || cs < kSegment) memset(to, 0, size_t(r * kSegment * s * outs) * sizeof(float));
      if (taps_together && in_stride == r * s) {
        transpose_to(from, out_stride, ks, cs * r * s, [=](int64_t i) { return row(i / (r * s), i / s % r, i % s); });
      } else if (taps_together && r * s > 1) {
        for (int64_t c = 0; c < cs; ++c)
          transpose_to(from + c * in_stride, out_stride, ks, r * s, [=](int64_t i) { return row(c, i / s, i % s); });
      } else if (in_stride == 1 && out_stride != 1) {
        for (int64_t i = 0; i < r * s; ++i)
          transpose_to(from + i / s * r_stride + i % s * s_stride, out_stride, ks, cs,
                       [=](int64_t c) { return row(c, i / s, i % s); });
      } else {
        for (int64_t c = 0; c < cs; ++c)
          for (int64_t i = 0; i < r * s; ++i) {
            const float* const strip = from + c * in_stride + i / s * r_stride + i % s * s_stride;
            for (int64_t k = 0; k < ks; ++k) row(c, i / s, i % s)[k] = strip[k * out_stride];
          }
      }
    }
  });
}

int64_t skip_pack_outs(int64_t out) { return Packing(out).outs; }

void skip_conv(const float* x, int64_t n, int64_t h, int64_t w, int64_t c, const float* packed, const float* bias,
               const void* bits, int64_t out, int64_t r, int64_t s, int64_t stride_h, int64_t stride_w, int64_t pad_h,
               int64_t pad_w, int64_t dil_h, int64_t dil_w, bool transposed, int64_t oh, int64_t ow, bool relu, float* y,
               void* y_bits, int64_t* counts, int threads) {
  Conv conv = {n, h, w, c, oh, ow, out, r, s, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, transposed};
  const Packing packing(out);
  Tensors t = {x, packed, bias, static_cast<const uint16_t*>(bits), y, static_cast<uint8_t*>(y_bits), relu, 0};
  threads = useful_threads(4 * (n * h * w * c + n * oh * ow * out), threads);
  counts[0] = counts[1] = 0;
  if (out == 0 || n * oh * ow == 0) {
    for (int64_t pixel = 0; pixel < n * h * w; ++pixel)
      counts[0] += count_pixel(x + pixel * c, bits == nullptr ? nullptr : t.bits + pixel * ceil_div(c, 32) * 2, c);
    return;
  }
  if (r == 1 && s == 1 && stride_h == 1 && stride_w == 1 && pad_h == 0 && pad_w == 0 && oh == h && ow == w) {
    t.flat = n * h * w;  // pixels know nothing of rows
    conv.n = 1;
    conv.w = conv.ow = least(kFlatColumns, t.flat);
    conv.h = conv.oh = ceil_div(t.flat, conv.w);
    conv.dil_h = conv.dil_w = 1;
    conv.transposed = false;
  } else {
    counts[0] = count_rest(conv, x, t.bits, threads);
  }
  const int64_t lines = conv.n * conv.oh;
  int64_t unit = 1;  // groups that some sweep takes together: never divided, for they decide the order of additions
  for_each_sweep(conv, [&](const Sweep& sweep) {
    const int64_t most = groups_together(sweep, packing);
    unit = most > unit ? most : unit;
  });
  const int64_t units = ceil_div(packing.groups, unit);
  // Few pixels are better served by more of them for each panel of weights, if there are groups of outputs to share.
  const bool by_groups = units >= threads && units % threads == 0 && lines * conv.ow < 4096 * threads;
  parallel(threads, threads, [&, threads](int64_t part) {
    Counts mine;
    const int64_t first_group = by_groups ? part_begin(units, part, threads) * unit : 0;
    const int64_t last_group = by_groups ? least(packing.groups, part_begin(units, part + 1, threads) * unit) : packing.groups;
    const int64_t first_line = by_groups ? 0 : part_begin(lines, part, threads);
    const int64_t last_line = by_groups ? lines : part_begin(lines, part + 1, threads);
    const int64_t fit = kBlockBytes / (conv.ow * unit * packing.outs * 4), block = fit > 0 ? fit : 1;
    for (int64_t line = first_line; line < last_line; line += block)
      for_each_sweep(conv, [&](const Sweep& sweep) {
        const int64_t most = groups_together(sweep, packing);
        for (int64_t group = first_group; group < last_group; group += most)
          run_sweep(conv, t, packing, sweep, group, least(most, last_group - group), line,
                    least(last_line, line + block), &mine);
      });
    __atomic_fetch_add(&counts[0], mine.nonzeros, __ATOMIC_RELAXED);
    __atomic_fetch_add(&counts[1], mine.products, __ATOMIC_RELAXED);
  });
}

}  // namespace gossamer::GOSSAMER_ISA
