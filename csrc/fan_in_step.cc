// One step of training of a classifier with constant fan-in: forward, loss, backward and update of a label (or of a group
// that shares its columns) while its numbers are in L1. Neither logits nor gradients of the weights reach memory.
//
// A label's logits for a panel of the batch stay in registers from the sums to the gradients. Where the batch has several
// panels, a block of labels meets one after another, and their gradients by the weights wait in the cache for the last.
#include "fan_in_groups.h"
#include "fan_in_losses.h"
#include "fan_in_parts.h"
#include "fan_in_rows.h"
#include "fan_in_rules.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kMostBlock = 256;      // labels of a block
constexpr int64_t kBlockSlots = 1 << 14;  // their elements, where there are several panels; else few

int64_t align(int64_t n) { return ceil_div(n, 16) * 16; }

// What one thread works on: a block of labels [first, last), and the sums of its part.
struct Scratch {
  int64_t first, last;
  int64_t positive;       // the next of the positives
  const float* weights;   // [labels of the block][k]: the values, or what they are as floats
  float* dx;
  double loss;
  float *widened, *dw, *db, *room;
  uint8_t* touched;       // labels with a gradient that is not zero
};

struct Step {
  const Classifier& c;
  const Parameters& at;
  const int64_t* positives;
  int64_t count;
  Loss loss;
  float scale;
  Rule rule;
  uint64_t key;
  float* packed;

  Panels<float> panels() const { return {c.batch, c.cols}; }
  int64_t units() const { return ceil_div(c.labels, c.group); }
  int64_t row() const { return ceil_div(c.k, kLanes<float>) * kLanes<float>; }  // elements of a label's gradient
  int64_t block_units() const {
    const int64_t slots = panels().count() > 1 ? kBlockSlots : kBlockSlots / 16;
    const int64_t labels = least(kMostBlock, slots / (c.k + 1) + 1);
    return labels / c.group < 1 ? 1 : labels / c.group;
  }
  int64_t block_labels() const { return block_units() * c.group; }
  int64_t parts() const { return parts_of(units(), c.group * c.k * (c.batch + 1)); }
  int64_t places(int threads) const { return parts_at_once(parts(), panels().elements() * 4, threads); }
  // Floats of a thread's scratch.
  int64_t room() const {
    const int64_t widened = c.value_size == 2 ? block_labels() * c.k : 0;
    return align(widened) + align(block_labels() * row()) + 2 * align(block_labels()) + group_room(c.group, c.k, row());
  }
  Scratch scratch(float* room) const {
    Scratch s = {};
    const auto take = [&](int64_t n) { float* const p = room; room += align(n); return p; };
    s.widened = c.value_size == 2 ? take(block_labels() * c.k) : nullptr;
    s.dw = take(block_labels() * row());
    s.db = take(block_labels());
    s.touched = reinterpret_cast<uint8_t*>(take(block_labels()));
    s.room = room;
    return s;
  }

  bool is_right(int threads) const {
    bool right = count == 0 || (positives[0] >= 0 && positives[count - 1] < c.labels * c.batch);
    for (int64_t i = 1; i < count; ++i) right &= positives[i - 1] < positives[i];
    const int64_t slots = units() * c.k;
    const int readers = useful_threads(slots * c.index_size, threads);
    Verdict verdict;
    parallel(readers, readers, [&](int64_t part) {
      verdict.add(all_below(at.indices, int(c.index_size), part_begin(slots, part, readers),
                            part_begin(slots, part + 1, readers), c.cols));
    });
    return right && verdict.right();
  }

  // The first of the positives that belongs to `label` or to one behind it.
  int64_t first_positive(int64_t label) const {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (positives[middle] < label * c.batch) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // g = the gradient of the loss by the logits z of a label under a panel; false if it is zero. Labels must come in order.
  template <int kV>
  bool gradient(Scratch& s, int64_t label, int64_t p, const Lanes<float> (&z)[kV], Lanes<float> (&g)[kV],
                Lanes<float>& losses) const {
    alignas(64) float targets[kV * kLanes<float>];
    const bool has = s.positive < count && positives[s.positive] < (label + 1) * c.batch;
    if (has) {
      memset(targets, 0, sizeof(targets));
      for (; s.positive < count && positives[s.positive] < (label + 1) * c.batch; ++s.positive) {
        const int64_t at = positives[s.positive] - label * c.batch - panels().first(p);
        if (at >= 0 && at < kV * kLanes<float>) targets[at] = 1;
      }
    }
    Lanes<int32_t> lane;
    for (int i = 0; i < kLanes<float>; ++i) lane[i] = i;
    const int32_t width = int32_t(panels().width(p));
    Vec any = {};
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      const Lanes<float> y = has ? load_lanes(targets + v * kLanes<float>) : Lanes<float>{};
      g[v] = loss_gradient(loss, z[v], y, losses, lane < width - v * int(kLanes<float>));
      any |= (Vec)(g[v] + g[v]);  // without the sign of a zero
      g[v] *= scale;
    }
    return loss == Loss::kBce || any_bit(any);
  }

  template <int kV>
  void touch(Scratch& s, int64_t label, const Lanes<float> (&g)[kV]) const {
    Lanes<float> sum = g[0];
#pragma GCC unroll 8
    for (int v = 1; v < kV; ++v) sum += g[v];
    s.db[label - s.first] += sum_lanes<float>(sum);
    s.touched[label - s.first] = 1;
  }

  Lanes<float> first_sum(int64_t label) const { return broadcast(at.bias == nullptr ? 0.0f : at.bias[label]); }

  template <int kV, class Number>
  void run_label(Scratch& s, int64_t label, int64_t p, Lanes<float>& losses) const {
    const int64_t here = label - s.first;
    const Number* const columns = static_cast<const Number*>(at.indices) + label * c.k;
    const float* const w = s.weights + here * c.k;
    const float* const x = panels().at(packed, p);
    Lanes<float> z[kV], g[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) z[v] = first_sum(label);
    dot_row<float, kV>(w, columns, c.k, x, z);
    if (!gradient<kV>(s, label, p, z, g, losses)) return;
    spread_row<float, kV>(w, columns, c.k, g, panels().at(s.dx, p));
    sample_row<float, kV>(columns, c.k, g, x, s.touched[here] != 0, s.dw + here * row());
    touch<kV>(s, label, g);
  }

  template <int kV, class Number>
  void run_group(Scratch& s, int64_t unit, int64_t p, Lanes<float>& losses) const {
    const int64_t first = unit * c.group, labels = least(c.group, c.labels - first), here = first - s.first;
    const Number* const columns = static_cast<const Number*>(at.indices) + unit * c.k;
    const float* const w = s.weights + here * c.k;
    const Group<kV> group(s.room, c.group, c.k, row());
    // The rows of a group are read side by side, which no prefetcher foresees: the next ones are asked for.
    const char* const next = reinterpret_cast<const char*>(w + c.group * c.k);
    for (int64_t byte = 0; byte < c.group * c.k * 4; byte += 64) __builtin_prefetch(next + byte);
    group.gather(columns, panels().at(packed, p));
    bool any = false;
    group.multiply(w, labels, [&](int64_t i, Lanes<float>(&z)[kV]) {
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) z[v] += first_sum(first + i);
      Lanes<float> g[kV];
      any |= gradient<kV>(s, first + i, p, z, g, losses);
      group.keep(i, g);
    });
    if (!any) return;
    group.spread(w, labels, columns, panels().at(s.dx, p));
    group.sample(labels, panels().width(p), s.touched[here] != 0, s.dw + here * row());
    for (int64_t i = 0; i < labels; ++i) {
      Lanes<float> g[kV];
      group.load(i, g);
      touch<kV>(s, first + i, g);
    }
  }

  void run_panel(Scratch& s, int64_t p) const {
    Lanes<float> losses = {};
    s.positive = first_positive(s.first);
    const int64_t unit = s.first / c.group, end = ceil_div(s.last, c.group);
    for_panel(int((panels().begin(p + 1) - panels().begin(p))), c.index_size, [&]<int kV, class Number>() {
      if (c.group == 1)
        for (int64_t u = unit; u < end; ++u) run_label<kV, Number>(s, u, p, losses);
      else
        for (int64_t u = unit; u < end; ++u) run_group<kV, Number>(s, u, p, losses);
    });
    s.loss += double(sum_lanes<float>(losses)) * double(scale);
  }

  template <class Value>
  void run_block(Scratch& s) const {
    Value* const values = static_cast<Value*>(at.values) + s.first * c.k;
    const int64_t labels = s.last - s.first;
    if constexpr (sizeof(Value) == 4) s.weights = values;
    else {
      for (int64_t i = 0; i < labels * c.k; ++i) s.widened[i] = widen(values[i]);
      s.weights = s.widened;
    }
    memset(s.touched, 0, size_t(labels));
    memset(s.db, 0, size_t(block_labels()) * sizeof(float));
    for (int64_t p = 0; p < panels().count(); ++p) run_panel(s, p);
    const auto state = [&](float* all, int64_t from) { return all == nullptr ? nullptr : all + from; };
    // With nothing but a gradient to go by, zero changes nothing.
    const bool rests = rule.optimizer == Optimizer::kSgd && rule.decay == 0;
    for (int64_t i = 0; i < labels; ++i) {
      if (rests && !s.touched[i]) continue;
      const int64_t label = s.first + i;
      update(rule, rule.decay, values + i * c.k, state(at.first, label * c.k), state(at.second, label * c.k),
             s.touched[i] ? s.dw + i * row() : nullptr, c.k, row_key(key, label));
    }
    if (at.bias != nullptr)
      update(rule, 0, at.bias + s.first, state(at.bias_first, s.first), state(at.bias_second, s.first), s.db, labels, 0);
  }

  double run_part(int64_t part, float* dx, float* room) const {
    const int64_t begin = part_begin(units(), part, parts()) * c.group;
    const int64_t end = least(part_begin(units(), part + 1, parts()) * c.group, c.labels);
    Scratch s = scratch(room);
    s.dx = dx;
    for (s.first = begin; s.first < end; s.first = s.last) {
      s.last = least(end, s.first + block_labels());
      c.value_size == 4 ? run_block<float>(s) : run_block<BFloat16>(s);
    }
    return s.loss;
  }
};

// The sums of x, the partial ones, and the threads' scratch, one after another.
int64_t floats_of(const Step& s, int threads) {
  const int64_t places = s.places(threads);
  return (2 + places) * align(s.panels().elements()) + places * align(s.room());
}

}  // namespace

int64_t fan_in_step_workspace(const Classifier& c, int threads) {
  const Parameters none = {};
  return 64 + 4 * floats_of({c, none, nullptr, 0, Loss::kBce, 1, {}, 0, nullptr}, threads);
}

bool fan_in_step(const Operand& x, const Classifier& c, const Parameters& at, const int64_t* positives, int64_t count,
                 int loss, int optimizer, float scale, float rate, float decay, float beta1, float gain1, float beta2,
                 float gain2, float root, float eps, int64_t seed, int64_t step, float* grad_x, double* total,
                 void* workspace, int threads) {
  const Rule rule = {Optimizer(optimizer), rate, decay, beta1, gain1, beta2, gain2, root, eps};
  float* const room = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(workspace) + 63) & ~uintptr_t(63));
  const Step s = {c, at, positives, count, Loss(loss), scale, rule, step_key(seed, step), room};
  if (!s.is_right(threads)) return false;
  const int64_t elements = s.panels().elements(), places = s.places(threads);
  float *const sums = s.packed + align(elements), *const partial = sums + align(elements);
  float* const scratch = partial + places * align(elements);
  double losses[kMostParts] = {};
  s.panels().pack_all(x, s.packed, threads);
  sum_parts(s.parts(), places, elements, sums, partial, threads, [&](int64_t part, float* dx, int64_t place) {
    losses[part] = s.run_part(part, dx, scratch + place * align(s.room()));
  });
  s.panels().unpack_all(sums, grad_x, threads);
  *total = 0;
  for (int64_t part = 0; part < s.parts(); ++part) *total += losses[part];
  return true;
}

}  // namespace gossamer::GOSSAMER_ISA
