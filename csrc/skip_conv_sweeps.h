// A line of a convolution as sweeps.
//
// Along a line, tap t takes input column i to output column i + shift - t. A stride divides the columns of the input
// (backwards: of the output) into classes by their remainder, a dilation those of both; the taps of a class, a few at a
// time, are one sweep. The gradient's sweeps run from right to left, which puts the taps into the same order.
#pragma once
#include "skip_conv.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Some taps on a class of columns; see Line. Columns and outs are those of a whole line.
struct Sweep {
  int taps, step;        // how many, and kernel columns from one to the next
  int64_t tap;           // the first, in the order of the sweep
  int64_t x0, x_step, columns;
  int64_t y0, y_step, outs;
  int64_t shift;
  bool first, last;  // of those that write these outputs
};

// Calls f for the sweeps of a line, those of a class of outputs one after the other.
template <class F>
class Sweeps {
 public:
  Sweeps(const Conv& conv, const F& f)
      : f_(f), transposed_(conv.transposed), in_(conv.along.in), out_(conv.along.out), taps_(conv.along.taps),
        stride_(conv.along.stride), padding_(conv.along.padding), dilation_(conv.along.dilation),
        step_(stride_ == 1 ? 1 : dilation_ == 1 ? stride_ : taps_),
        most_(step_ == 1 ? kMostTaps : step_ == 2 ? 2 : 1) {}

  void run() const {
    if (stride_ == 1 && dilation_ > 1) return classes_of_both();
    if (transposed_) return classes_of_outputs();
    classes_of_inputs();
  }

 private:
  int64_t chunks_of(int64_t first_tap) const {
    return first_tap < taps_ ? ceil_div(ceil_div(taps_ - first_tap, step_), most_) : 0;
  }
  // The sweeps of the taps from `first_tap` on, of `chunks` that write these outputs, `done` of which have been.
  template <class Shift>
  void each_chunk(Sweep sweep, int64_t first_tap, int64_t chunks, int64_t* done, const Shift& shift_of) const {
    sweep.step = int(step_);
    int64_t left = ceil_div(taps_ - first_tap, step_);
    for (int64_t t = first_tap; left > 0; ++*done) {
      sweep.taps = int(least(left, most_));
      sweep.tap = t;
      sweep.shift = shift_of(t);
      sweep.first = *done == 0;
      sweep.last = *done == chunks - 1;
      f_(sweep);
      left -= sweep.taps;
      t += sweep.taps * step_;
    }
  }
  void classes_of_both() const {
    const int64_t dil = dilation_, pad = padding_;
    for (int64_t y0 = 0; y0 < dil && y0 < out_; ++y0) {
      const int64_t x0 = remainder(transposed_ ? y0 + pad : y0 - pad, dil);
      const int64_t columns = x0 < in_ ? ceil_div(in_ - x0, dil) : 0, outs = ceil_div(out_ - y0, dil);
      Sweep sweep = {0, 0, 0, x0, dil, columns, y0, dil, outs, 0, false, false};
      int64_t shift = (transposed_ ? x0 - pad - y0 : x0 + pad - y0) / dil, done = 0;
      if (transposed_) {
        sweep.x0 = columns > 0 ? x0 + (columns - 1) * dil : 0;
        sweep.y0 = y0 + (outs - 1) * dil;
        sweep.x_step = sweep.y_step = -dil;
        shift = outs - columns - shift;
      }
      each_chunk(sweep, 0, chunks_of(0), &done, [=](int64_t tap) { return shift - tap; });
    }
  }
  // All of them write all outputs; a class is named by its first tap.
  void classes_of_inputs() const {
    int64_t chunks = 0, done = 0;
    const int64_t classes = least(taps_, step_), stride = stride_, dil = dilation_, pad = padding_;
    for (int64_t tap = 0; tap < classes; ++tap) chunks += chunks_of(tap);
    for (int64_t tap = 0; tap < classes; ++tap) {
      const int64_t x0 = remainder(tap * dil - pad, stride), columns = x0 < in_ ? ceil_div(in_ - x0, stride) : 0;
      const Sweep sweep = {0, 0, 0, x0, stride, columns, 0, 1, out_, 0, false, false};
      each_chunk(sweep, tap, chunks, &done, [=](int64_t t) { return (x0 + pad - t * dil) / stride; });
    }
  }
  // All of them read all columns of the input.
  void classes_of_outputs() const {
    const int64_t classes = least(taps_, step_), columns = in_, stride = stride_, dil = dilation_, pad = padding_;
    for (int64_t y0 = 0; y0 < stride && y0 < out_; ++y0) {
      const int64_t outs = ceil_div(out_ - y0, stride);
      Sweep sweep = {1, 1, 0, columns - 1, -1, columns, y0 + (outs - 1) * stride, -stride, outs, 0, true, true};
      const auto leads_here = [=](int64_t tap) { return remainder(tap * dil - y0 - pad, stride) == 0; };
      int64_t chunks = 0, done = 0;
      for (int64_t tap = 0; tap < classes; ++tap) chunks += leads_here(tap) ? chunks_of(tap) : 0;
      for (int64_t tap = 0; tap < classes; ++tap)
        if (leads_here(tap))
          each_chunk(sweep, tap, chunks, &done,
                     [=](int64_t t) { return outs - columns - (t * dil - pad - y0) / stride; });
      if (chunks > 0) continue;
      sweep.columns = 0;  // no tap leads here: the outputs are the bias
      f_(sweep);
    }
  }

  const F& f_;
  const bool transposed_;
  const int64_t in_, out_, taps_, stride_, padding_, dilation_;
  // Taps whose places differ by it are neighbours in a class; where those are uneven, each tap is alone.
  const int64_t step_, most_;
};

template <class F>
void for_each_sweep(const Conv& conv, const F& f) {
  Sweeps<F>(conv, f).run();
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
