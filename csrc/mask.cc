// Zeroes the elements of a tensor that a mask leaves out: x &= mask, by bits, so that NaN and infinity go too.
#include "kernels.h"
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class Lane>
void mask_range(Lane* x, const uint8_t* mask, int64_t n) {
  constexpr int kLanes = kWidth / int(sizeof(Lane));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, keep_lanes<Lane>(load(x + i), mask + i));
  for (; i < n; ++i) x[i] = mask[i] ? x[i] : Lane(0);
}

}  // namespace

void mask(void* x, const uint8_t* mask, int64_t n, int element_size, int threads) {
  threads = useful_threads(n * element_size, threads);
  parallel(threads, threads, [=](int64_t part) {
    const int64_t begin = part_begin(n, part, threads), count = part_begin(n, part + 1, threads) - begin;
    char* const from = static_cast<char*>(x) + begin * element_size;
    if (element_size == 1) mask_range(reinterpret_cast<uint8_t*>(from), mask + begin, count);
    if (element_size == 2) mask_range(reinterpret_cast<uint16_t*>(from), mask + begin, count);
    if (element_size == 4) mask_range(reinterpret_cast<uint32_t*>(from), mask + begin, count);
    if (element_size == 8) mask_range(reinterpret_cast<uint64_t*>(from), mask + begin, count);
  });
}

}  // namespace gossamer::GOSSAMER_ISA
