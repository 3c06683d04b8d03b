// How a gradient changes parameters in place: torch.optim's SGD, SGD with momentum, AdamW.
#pragma once
#include "counter.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

enum class Optimizer { kSgd, kMomentum, kAdam };

// decay: of Adam lr * weight_decay, else weight_decay. gain: 1 - beta. root: 1 / sqrt(1 - beta2^step).
struct Rule {
  Optimizer optimizer;
  float rate, decay, beta1, gain1, beta2, gain2, root, eps;
};

inline Lanes<float> stepped(const Rule& r, float decay, Lanes<float> v, Lanes<float> g, Lanes<float>& first,
                            Lanes<float>& second) {
  if (r.optimizer == Optimizer::kAdam) {
    v -= decay * v;
    first = fma(broadcast(r.gain1), g - first, first);
    second = fma(broadcast(r.beta2), second, r.gain2 * g * g);
    return v - r.rate * first / fma(sqrt_lanes(second), broadcast(r.root), broadcast(r.eps));
  }
  g = fma(broadcast(decay), v, g);
  if (r.optimizer == Optimizer::kMomentum) g = first = fma(broadcast(r.beta1), first, g);
  return fma(broadcast(-r.rate), g, v);
}

inline void store_stepped(float* p, Lanes<float> v, uint64_t, int64_t, int count) {
  if (count == kLanes<float>) store_lanes(p, v);
  else store_first(p, v, count);
}
inline void store_stepped(BFloat16* p, Lanes<float> v, uint64_t key, int64_t slot, int count) {
  store_rounded(p, v, slot_bits(key, slot), count);
}

// values[n] and their states (null: none) by gradient[n], which has whole vectors; null stands for zeros. `key` is of the
// random bits with which bfloat16 is rounded.
template <class Value>
inline void update(const Rule& r, float decay, Value* values, float* first, float* second, const float* gradient,
                   int64_t n, uint64_t key) {
  for (int64_t j = 0; j < n; j += kLanes<float>) {
    const int count = int(least(kLanes<float>, n - j));
    const auto read = [&](const auto* p) {
      return p == nullptr ? Lanes<float>{} : count == kLanes<float> ? load_weights(p + j) : load_weights(p + j, count);
    };
    Lanes<float> m = read(first), s = read(second);
    const Lanes<float> g = gradient == nullptr ? Lanes<float>{} : load_lanes(gradient + j);
    const Lanes<float> v = stepped(r, decay, read(values), g, m, s);
    store_stepped(values + j, v, key, j, count);
    if (first != nullptr) store_stepped(first + j, m, 0, j, count);
    if (second != nullptr) store_stepped(second + j, s, 0, j, count);
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
