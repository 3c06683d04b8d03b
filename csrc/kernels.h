// The verbs: one list, from which every instruction set's functions and the dispatch table are declared.
#pragma once
#include <stdint.h>

// detect   Which (bm, bn) tiles of x[rows, cols] hold an element with a bit of `keep` set (`keep` leaves out the sign of
//          floats, so -0.0 is zero and NaN is not). flags is scratch: tile_rows * ceil(tile_cols / 64) words, one bit a
//          tile. offsets[tile_rows + 1] gets the true counts, indices[capacity] at most `capacity` tile columns, then 0.
#define GOSSAMER_FOR_EACH_VERB(VERB)                                                                                \
  VERB(detect, void, const void* x, int64_t rows, int64_t cols, int element_size, bool is_float, int64_t bm,        \
       int64_t bn, int64_t capacity, uint64_t* flags, int64_t* offsets, void* indices, int index_size, int threads)

#define GOSSAMER_DECLARE(name, result, ...) result name(__VA_ARGS__);
namespace gossamer {
namespace scalar {
GOSSAMER_FOR_EACH_VERB(GOSSAMER_DECLARE)
}
namespace avx2 {
GOSSAMER_FOR_EACH_VERB(GOSSAMER_DECLARE)
}
namespace avx512 {
GOSSAMER_FOR_EACH_VERB(GOSSAMER_DECLARE)
}

#define GOSSAMER_POINTER(name, result, ...) result (*name)(__VA_ARGS__);
struct Kernels {
  GOSSAMER_FOR_EACH_VERB(GOSSAMER_POINTER)
};
}  // namespace gossamer
