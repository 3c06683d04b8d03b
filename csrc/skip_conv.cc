// Convolution, forward and gradient by input, at the cost of the input's nonzeros; 1x1 and linear layers are the same.
//
// Every case is made of sweeps along lines (skip_conv_sweeps.h). Rows are segments: an output row meets the input rows of
// its kernel rows, each with its weights, 16 channels at a time.
#include "skip_conv_stage.h"
#include "skip_conv_sweeps.h"
#include "transpose_lanes.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

using SweepLine = void (*)(const Line&);

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

// Groups of outputs that share a broadcast. More of them mean fewer segments for a panel that stays in L1, so that the
// sums are read and written more often, which costs more than the broadcasts.
int64_t groups_together(const Conv& conv, const Packing& packing) {
  if (packing.vectors < 3) return 1;
  int64_t most = kWidth == 32 ? 3 : 2;
  for_each_sweep(conv, [&](const Sweep& sweep) {
    most = least(most, sweep.taps == 1 ? most : sweep.step == 2 && kWidth == 64 ? 2 : 1);
  });
  return least(most, packing.groups);
}

// The nonzeros of the rows that no line meets: a stride or a wide kernel leaves them out.
int64_t count_rest(const Conv& conv, const float* x, const uint16_t* bits, int threads) {
  bool rest = false;
  for (int64_t h = 0; h < conv.down.in && !rest; ++h) rest = !row_is_met(conv, h);
  if (!rest) return 0;
  int64_t total = 0;
  const int64_t words = ceil_div(conv.channels, 32) * 2;
  parallel(threads, threads, [&, threads](int64_t part) {
    int64_t count = 0;
    for (int64_t h = 0; h < conv.down.in; ++h) {
      if (row_is_met(conv, h)) continue;
      for (int64_t n = part_begin(conv.images, part, threads); n < part_begin(conv.images, part + 1, threads); ++n) {
        const int64_t line = (n * conv.down.in + h) * conv.along.in;
        for (int64_t pixel = line; pixel < line + conv.along.in; ++pixel)
          count += count_pixel(x + pixel * conv.channels, bits == nullptr ? nullptr : bits + pixel * words, conv.channels);
      }
    }
    __atomic_fetch_add(&total, count, __ATOMIC_RELAXED);
  });
  return total;
}

constexpr int64_t kFlatColumns = 64;  // of a line that is cut from one long row

struct Tensors {
  const float *x, *w, *bias;
  const uint16_t* bits;
  float* y;
  uint8_t* y_bits;
  bool relu;
};

// What is asked for while sweeps run: the part of x that the next block will stage. `step` floats of it each time.
struct Next {
  const float *x, *end;
  int64_t step;
};

// Lines [begin, end), which are staged, of groups [group, group + groups) under one sweep; groups up to last_group
// follow. Sums lie together until the last panel: in y, pixels are so far from each other that their sums all meet in a
// few sets of a cache.
struct Swept {
  const Conv& conv;
  const Tensors& t;
  const Packing& packing;
  const Stage& stage;
  const Sweep& sweep;
  int64_t group, groups, last_group, begin, end;
  float* sums;
  Next* next;

  // Segments of a part, those that a panel of weights takes together, and the panels.
  int64_t each() const { return packing.lanes / kSegment; }
  int64_t segments() const { return each() * conv.down.taps; }
  int64_t together() const { return least(segments(), segments_of(int(sweep.taps * groups * packing.vectors))); }
  int64_t outs() const { return groups * packing.outs; }
  int64_t width() const { return conv.outputs - group * packing.outs; }
  bool straight() const { return width() >= outs() && !t.relu; }  // from the registers into y

  void run() const {
    const int64_t some = ceil_div(segments(), together()), panels = packing.parts > 0 ? packing.parts * some : 1;
    alignas(64) float bias[kMostGroups * kMostVectors * kF] = {};
    if (t.bias != nullptr) memcpy(bias, t.bias + group * packing.outs, size_t(least(width(), outs())) * sizeof(float));
    Line line = {};
    line.x_step = sweep.x_step * stage.x_column;
    line.bits_step = sweep.x_step * stage.bits_column;
    line.shift = sweep.shift;
    line.w_row = conv.along.taps * packing.outs;
    line.w_group = packing.parts * segments() * kSegment * line.w_row;
    const float* const weights = t.w + group * line.w_group + sweep.tap * packing.outs;
    const auto weights_of = [&](int64_t panel) {
      return weights + (panel / some * segments() + panel % some * together()) * kSegment * line.w_row;
    };
    for (int64_t panel = 0; panel < panels; ++panel) {
      line.w = weights_of(panel);
      const float* const after = panel + 1 < panels ? weights_of(panel + 1)
                                 : group + groups < last_group ? weights + groups * line.w_group : nullptr;
      run_panel(line, bias, panel / some, panel % some * together(), sweep.first && panel == 0,
                sweep.last && panel == panels - 1, after);
    }
  }

  // The segments from `first` on of one part. The panel after this one, at w_next, arrives meanwhile, each line of
  // outputs asking for a share of it.
  void run_panel(Line line, const float* bias, int64_t part, int64_t first, bool is_first, bool is_last,
                 const float* w_next) const {
    const SweepLine kernel = sweep_line_of<1, kMostVectors>(sweep.taps, sweep.step, groups, packing.vectors);
    const int64_t count = least(together(), segments() - first), lines = end - begin, at = group * packing.outs;
    const int64_t row = each(), floats = outs();
    const int64_t panel_floats = together() * kSegment * line.w_row;
    const int64_t y_step = sweep.y_step * conv.outputs, y_bytes = ceil_div(conv.outputs, 32) * 4;
    const bool direct = straight(), cut = conv.pixels < conv.down.in * conv.along.in;
    line.lanes = ~uint64_t(0) >> (64 - count * kSegment);
    line.from_step = is_first ? 0 : floats;
    line.to_step = is_last && direct ? y_step : floats;
    const float* const x = stage.x + part * stage.x_part + sweep.x0 * stage.x_column + first * kSegment;
    const uint16_t* const bits = stage.bits + part * stage.bits_part + sweep.x0 * stage.bits_column + first;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t l = sweep.x_step > 0 ? i : begin + end - 1 - i, base = stage.base[l - begin];
      line.columns = sweep.columns;
      line.outs = sweep.outs;
      if (cut) line.columns = line.outs = least(conv.along.in, conv.pixels - l * conv.along.in);
      bool any = false;
      for (int64_t r = first / row; r <= (first + count - 1) / row; ++r) any |= stage.rows[base + r] >= 0;
      if (!any || packing.parts == 0) {
        if (!is_first && !is_last) continue;
        line.columns = 0;
      }
      line.x = x + base * stage.x_slot;
      line.bits = bits + base * stage.bits_slot;
      const int64_t out = l * conv.along.out + sweep.y0;
      float* const y = t.y + out * conv.outputs + at;
      float* const kept = sums + (l - begin) * conv.along.out * floats;
      line.from = is_first ? bias : kept;
      line.to = is_last && direct ? y : kept;
      line.x_next = next->x;
      line.x_next_step = next->x < next->end ? next->step : 0;
      next->x += line.x_next_step * line.outs;
      if (w_next != nullptr) {
        const int64_t all = groups * panel_floats, from = (i - begin) * all / lines;
        line.w_next = w_next + from / panel_floats * line.w_group + from % panel_floats;
        line.w_next_step = ceil_div(all, lines * line.outs);
      }
      kernel(line);
      if (is_last && !direct)
        finish_line(kept, line.outs, int(groups * packing.vectors), y, y_step, width(),
                    t.relu ? t.y_bits + out * y_bytes + at / 8 : nullptr, sweep.y_step * y_bytes, y_bytes - at / 8);
    }
  }
};

}  // namespace

void skip_pack(const float* weight, int64_t out, int64_t in, int64_t r, int64_t s, int64_t out_stride,
               int64_t in_stride, int64_t r_stride, int64_t s_stride, float* packed, int threads) {
  const Packing packing(out, in, r);
  const int64_t lanes = packing.lanes, units = packing.groups * packing.parts, outs = packing.outs;
  const bool taps_together = s_stride == 1 && r_stride == s && out_stride != 1;
  threads = useful_threads(units * lanes * r * s * outs * 4, threads);
  parallel(threads, threads, [&, threads](int64_t part) {
    for (int64_t unit = part_begin(units, part, threads); unit < part_begin(units, part + 1, threads); ++unit) {
      const int64_t k0 = unit / packing.parts * outs, c0 = unit % packing.parts * lanes;
      const int64_t ks = least(outs, out - k0), cs = least(lanes, in - c0);
      const float* const from = weight + k0 * out_stride + c0 * in_stride;
      float* const to = packed + unit * r * lanes * s * outs;
      const auto row = [=](int64_t c, int64_t i, int64_t j) { return to + ((i * lanes + c) * s + j) * outs; };
      if (ks < outs || cs < lanes) memset(to, 0, size_t(r * lanes * s * outs) * sizeof(float));
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

int64_t skip_pack_outs(int64_t out) { return Packing(out, 0, 1).outs; }

int64_t skip_pack_lanes(int64_t in, int64_t r) { return Packing(1, in, r).lanes; }

namespace {

// How the work is divided: into blocks of lines, and among the threads by lines or by groups of outputs.
struct Plan {
  Conv conv;
  Packing packing;
  int64_t lines, unit, units, block, sums;  // sums: bytes of workspace of a thread
  int threads;
  bool by_groups;

  Plan(const Conv& given, int most_threads) : conv(given), packing(given.outputs, given.channels, given.down.taps) {
    const Axis &down = conv.down, &along = conv.along;
    threads = useful_threads(
        4 * conv.images * (down.in * along.in * conv.channels + down.out * along.out * conv.outputs), most_threads);
    conv.pixels = conv.images * down.in * along.in;
    const auto plain = [](const Axis& axis) {
      return axis.taps == 1 && axis.stride == 1 && axis.padding == 0 && axis.out == axis.in;
    };
    conv.flat = plain(down) && plain(along);
    if (conv.flat && conv.pixels > 0) {  // pixels know nothing of rows
      conv.images = 1;
      conv.along.in = conv.along.out = least(kFlatColumns, conv.pixels);
      conv.down.in = conv.down.out = ceil_div(conv.pixels, conv.along.in);
      conv.down.dilation = conv.along.dilation = 1;
      conv.transposed = false;
    }
    lines = conv.images * conv.down.out;
    unit = groups_together(conv, packing);  // never divided: they decide the order of additions
    units = ceil_div(packing.groups, unit);
    // By groups every thread stages all of x, by lines every thread reads all of the weights.
    by_groups = units >= threads && units % threads == 0 &&
                8 * conv.images * down.in * along.in < down.taps * along.taps * conv.outputs;
    const int64_t x_floats = slots_apart(conv) * conv.along.in * packing.parts * packing.lanes;
    const int64_t line_bytes = 4 * (x_floats + conv.along.out * unit * packing.outs);
    const int64_t of_part = by_groups ? lines : ceil_div(lines, threads);
    int64_t fit = line_bytes > 0 ? kBlockBytes / line_bytes : 1;
    if (conv.flat) fit = fit / 4 > 2 ? fit / 4 : 2;  // the next block's x arrives beside it; a panel serves 128 pixels
    block = of_part > 0 ? ceil_div(of_part, ceil_div(of_part, fit > 0 ? fit : 1)) : 1;
    sums = ceil_div(block * conv.along.out * unit * packing.outs * 4, 64) * 64;
  }
};

}  // namespace

int64_t skip_conv_workspace(const Convolution& whole, bool transposed, int threads) {
  if (whole.outputs == 0 || whole.images * whole.down.out * whole.along.out == 0) return 0;
  const Plan plan({whole, transposed}, threads);
  return plan.threads * (Stage(plan.conv, plan.packing, plan.block).bytes + plan.sums) + 64;
}

void skip_conv(const float* x, const float* packed, const float* bias, const void* bits, const Convolution& whole,
               bool transposed, bool relu, float* y, void* y_bits, int64_t* counts, void* workspace, int threads) {
  const Tensors t = {x, packed, bias, static_cast<const uint16_t*>(bits), y, static_cast<uint8_t*>(y_bits), relu};
  counts[0] = counts[1] = 0;
  if (whole.outputs == 0 || whole.images * whole.down.out * whole.along.out == 0) {
    const int64_t c = whole.channels, words = ceil_div(c, 32) * 2;
    for (int64_t pixel = 0; pixel < whole.images * whole.down.in * whole.along.in; ++pixel)
      counts[0] += count_pixel(x + pixel * c, bits == nullptr ? nullptr : t.bits + pixel * words, c);
    return;
  }
  const Plan plan({whole, transposed}, threads);
  const Conv& conv = plan.conv;
  const Packing& packing = plan.packing;
  if (!conv.flat) counts[0] = count_rest(conv, x, t.bits, plan.threads);
  char* const aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64);
  parallel(plan.threads, plan.threads, [&](int64_t part) {
    Counts mine;
    const bool by_groups = plan.by_groups;
    const int64_t lines = plan.lines, first_line = by_groups ? 0 : part_begin(lines, part, plan.threads);
    const int64_t last_line = by_groups ? lines : part_begin(lines, part + 1, plan.threads);
    const int64_t first_unit = by_groups ? part_begin(plan.units, part, plan.threads) : 0;
    const int64_t last_unit = by_groups ? part_begin(plan.units, part + 1, plan.threads) : plan.units;
    const int64_t last_group = least(packing.groups, last_unit * plan.unit);
    Stage stage(conv, packing, plan.block);
    char* const mine_alone = aligned + part * (stage.bytes + plan.sums);
    float* const sums = reinterpret_cast<float*>(mine_alone);
    stage.place(mine_alone + plan.sums, conv);
    for (int64_t line = first_line; line < last_line; line += plan.block) {
      const int64_t end = least(last_line, line + plan.block);
      if (conv.flat) stage.x = const_cast<float*>(x + line * conv.along.in * conv.channels);  // never written
      stage_lines(conv, stage, x, t.bits, line, end, &mine);
      Next next = {};
      if (conv.flat) {
        const int64_t after = least(last_line, end + plan.block) * conv.along.in;
        next.x = x + end * conv.along.in * conv.channels;
        next.end = x + least(after, conv.pixels) * conv.channels;
        const int64_t steps = (last_unit - first_unit) * packing.parts * (end - line) * conv.along.in;
        next.step = steps > 0 ? ceil_div(next.end - next.x, steps * 16) * 16 : 0;
      }
      for (int64_t group = first_unit * plan.unit; group < last_group; group += plan.unit)
        for_each_sweep(conv, [&](const Sweep& sweep) {
          const int64_t groups = least(plan.unit, last_group - group);
          Swept{conv, t, packing, stage, sweep, group, groups, last_group, line, end, sums, &next}.run();
        });
    }
    if (first_unit == 0) {
      __atomic_fetch_add(&counts[0], mine.nonzeros, __ATOMIC_RELAXED);
      __atomic_fetch_add(&counts[1], mine.products * conv.outputs, __ATOMIC_RELAXED);
    }
  });
}

}  // namespace gossamer::GOSSAMER_ISA
