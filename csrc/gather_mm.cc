// PIT's products: a matrix that holds zeros times a dense one, read in place, only at the tiles of a pattern. What the
// tiles are decides how: whole rows, bands of a few columns each, or pieces of rows.
#include "gemm.h"
#include "kernels.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class T>
struct Problem {
  const T* a;
  int64_t rows, k;
  const int64_t* offsets;
  const void* indices;
  int index_size;
  int64_t bm, bk, capacity;
  const T* b;
  int64_t batch, b_batch;
  Operand<T> one;  // b's strides
  int64_t n;
  T* c;

  int64_t tile_rows() const { return ceil_div(rows, bm); }
  int64_t tile_cols() const { return ceil_div(k, bk); }
  int64_t height() const { return rows / batch; }  // of one matrix
  int64_t begin(int64_t tile_row) const { return least(offsets[tile_row], capacity); }  // its first slot
  int64_t index(int64_t slot) const {
    return index_size == 2 ? int64_t(static_cast<const uint16_t*>(indices)[slot])
                           : int64_t(static_cast<const int32_t*>(indices)[slot]);
  }
  Operand<T> matrix(int64_t which) const { return {b + which * b_batch, one.row, one.col}; }
};

enum class Way { kRows, kBands, kPieces };

// Bands read a row of B for every column of the band, in cache or not, so a few rows of A must share it. Pieces of rows
// are turned round: all the rows that have a tile in one column of tiles share that piece of B.
Way way(int64_t k, int64_t bk) {
  if (bk >= k) return Way::kRows;
  return bk >= 16 ? Way::kPieces : Way::kBands;
}

template <class T>
int64_t padded(int64_t n) {
  return ceil_div(n, kTileCols<T>) * kTileCols<T>;
}

// ---- Whole rows: list them, and multiply that list.

template <class T>
void multiply_rows(const Problem<T>& p, int64_t* starts, int64_t* list, T* scratch, int threads) {
  // starts[batch + 1] and list[rows]: the rows present, matrix by matrix.
  int64_t found = 0, tile = 0;
  for (int64_t which = 0; which < p.batch; ++which) {
    starts[which] = found;
    for (const int64_t end = (which + 1) * p.height(); tile < p.tile_rows() && tile * p.bm < end; ++tile) {
      if (p.begin(tile) == p.begin(tile + 1)) continue;
      for (int64_t row = tile * p.bm, last = least(row + p.bm, p.rows); row < last; ++row) list[found++] = row;
    }
  }
  starts[p.batch] = found;
  const auto count = [=](int64_t which) { return starts[which + 1] - starts[which]; };
  const auto work = [=](int64_t which) { return count(which) == 0 ? 0 : count(which) + kPackingRows; };
  parallel(threads, threads, [&](int64_t part) {
    const int64_t last = part_begin(p.tile_rows(), part + 1, threads);
    for (int64_t tile = part_begin(p.tile_rows(), part, threads); tile < last; ++tile) {
      if (p.begin(tile) != p.begin(tile + 1)) continue;
      const int64_t row = tile * p.bm;
      memset(p.c + row * p.n, 0, size_t((least(row + p.bm, p.rows) - row) * p.n) * sizeof(T));
    }
    share_products<T>(p.batch, p.n, part, threads, count, work,
                      [&](int64_t which, int64_t row, int64_t last_row, int64_t col, int64_t last_col) {
      const int64_t* const mine = list + starts[which] + row;
      const auto pack_a = [&](T* out, int64_t i, int64_t many, int64_t first, int64_t depth) {
        for (int64_t r = 0; r < many; ++r)
          memcpy(out + r * kRowStride<T>, p.a + mine[i + r] * p.k + first, size_t(depth) * sizeof(T));
      };
      const auto pack_b = [&](T* out, int64_t first, int64_t depth, int64_t at, int64_t width) {
        pack_panels(out, p.matrix(which), first, depth, at, width);
      };
      multiply<T, Order::kRows>(last_row - row, p.k, pack_a, pack_b, col, last_col,
                                [&](int64_t i) { return p.c + mine[i] * p.n; }, false,
                                scratch + part * kBlockScratch<T>);
    });
  });
}

// What one thread does of bands or pieces: tile rows [first, last) and columns [col, last_col) of C. By rows, equal in
// tiles, where C is higher than wide; else by columns.
template <class T, class Body>
void share_tiles(const Problem<T>& p, int64_t part, int64_t parts, const Body& body) {
  const int64_t tile_rows = p.tile_rows();
  if (p.rows <= p.n) {
    const int64_t panels = ceil_div(p.n, kTileCols<T>);
    const int64_t from = least(p.n, part_begin(panels, part, parts) * kTileCols<T>);
    const int64_t to = least(p.n, part_begin(panels, part + 1, parts) * kTileCols<T>);
    if (from < to) body(int64_t(0), tile_rows, from, to);
    return;
  }
  // A row counts as much as its tiles and one: to write zeros is work too.
  const auto begin = [&](int64_t which) {
    const int64_t goal = part_begin(p.begin(tile_rows) + tile_rows, which, parts);
    int64_t low = 0, high = tile_rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (p.begin(middle) + middle < goal) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const int64_t first = begin(part), last = begin(part + 1);
  if (first < last) body(first, last, int64_t(0), p.n);
}

// ---- Bands: the columns of a band are packed side by side, and each names its row of B.

constexpr int64_t kBandRows = 4 * kTileRows;
constexpr int64_t kBandCols = 256;  // of C at a time: B's part of that width stays in L2 from band to band

// Columns [left, left + kLanes<T>) of a band, those present as bits.
struct Group {
  int64_t left;
  uint32_t bits;
};

// The columns of one band of tiles, ascending, at most kDepth at a time. Bits put slots of any order in order.
template <class T>
class Columns {
 public:
  Columns(const Problem<T>& p, int64_t tile_row, uint64_t* words) : words_(words), end_(ceil_div(p.k, 64)) {
    memset(words, 0, size_t(end_) * 8);
    for (int64_t slot = p.begin(tile_row); slot < p.begin(tile_row + 1); ++slot) {
      const int64_t left = p.index(slot) * p.bk, right = least(left + p.bk, p.k);
      for (int64_t at = left; at < right;) {
        const int64_t here = least(right - at, 64 - at % 64);
        words[at / 64] |= (here == 64 ? ~uint64_t(0) : (uint64_t(1) << here) - 1) << at % 64;
        at += here;
      }
    }
    for (int64_t w = 0; w < end_; ++w) left_ += __builtin_popcountll(words[w]);
  }

  // The next columns: their groups, and for each `at`, kCols times its number. Returns how many columns, 0 at the end.
  int64_t next(Group* groups, int64_t& group_count, int64_t* at) {
    constexpr int kStep = kLanes<T>;
    const int64_t most = next_share(left_, kDepth, 1);
    int64_t count = 0, found = 0;
    for (; word_ < end_; ++word_) {
      while (words_[word_] != 0) {
        uint64_t& word = words_[word_];
        const int shift = __builtin_ctzll(word) / kStep * kStep;
        const uint32_t bits = uint32_t(word >> shift & ((uint64_t(1) << kStep) - 1));
        if (count + __builtin_popcount(bits) > most) goto full;
        const int64_t left = word_ * 64 + shift;
        groups[found++] = {left, bits};
        for (uint32_t rest = bits; rest != 0; rest &= rest - 1)
          at[count++] = (left + __builtin_ctz(rest)) * kTileCols<T>;
        word &= ~(uint64_t(bits) << shift);
      }
    }
  full:
    for (int i = 0; i < kAhead; ++i) at[count + i] = 0;
    left_ -= count;
    group_count = found;
    return count;
  }

  bool done() const { return left_ == 0; }

 private:
  uint64_t* words_;
  int64_t end_, word_ = 0, left_ = 0;
};

template <class T>
void multiply_bands(const Problem<T>& p, T* packed, uint64_t* bits, int threads) {
  constexpr int64_t kCols = kTileCols<T>;
  const int64_t panels = ceil_div(p.n, kCols);
  parallel(p.batch * panels, threads, [&](int64_t part) {
    const int64_t which = part / panels, from = part % panels * kCols;
    pack_panels(packed + part * p.k * kCols, p.matrix(which), 0, p.k, from, least(kCols, p.n - from));
  });
  parallel(threads, threads, [&](int64_t part) {
    share_tiles(p, part, threads, [&](int64_t first, int64_t last, int64_t from, int64_t to) {
      alignas(64) T a[kBandRows * kRowStride<T>];
      int64_t at[kDepth + kAhead];
      Group groups[kDepth];
      for (int64_t col = from, width = 0; col < to; col += width) {
        width = next_share(to - col, kBandCols, kCols);
        for (int64_t tile = first; tile < last; ++tile) {
          const int64_t top = tile * p.bm, bottom = least(top + p.bm, p.rows);
          const T* const right = packed + top / p.height() * panels * p.k * kCols;
          for (int64_t row = top, height = 0; row < bottom; row += height) {
            height = next_share(bottom - row, kBandRows, kTileRows);
            Columns<T> columns(p, tile, bits + part * ceil_div(p.k, 64));
            bool add = false;
            do {
              int64_t group_count;
              const int64_t depth = columns.next(groups, group_count, at);
              for (int64_t r = 0; r < height; ++r) {
                const T* const source = p.a + (row + r) * p.k;
                T* out = a + r * kRowStride<T>;
                for (int64_t g = 0; g < group_count; ++g) {
                  // The lines are in no order that the hardware would guess: ask for those of the next row.
                  __builtin_prefetch(source + p.k + groups[g].left);
                  compress_lanes(source + groups[g].left, groups[g].bits, p.k - groups[g].left, out);
                  out += __builtin_popcount(groups[g].bits);
                }
              }
              for (int64_t j = col; j < col + width; j += kCols) {
                const Panel<T> panel = {right + j * p.k, 0, at};
                for (int64_t i = 0, count = 0; i < height; i += count) {
                  count = next_share(height - i, kTileRows, 1);
                  T* c[kTileRows];
                  for (int64_t r = 0; r < count; ++r) c[r] = p.c + (row + i + r) * p.n;
                  multiply_tile<T, Order::kRows, true>(count, a + i * kRowStride<T>, panel, depth, c, j,
                                                       least(kCols, p.n - j), add);
                }
              }
              add = true;
            } while (!columns.done());
          }
        }
      }
    });
  });
}

// ---- Pieces: for each column of tiles, the rows that have one.

template <class T>
void multiply_pieces(const Problem<T>& p, int64_t* starts, int32_t* lists, T* scratch, int threads) {
  const int64_t tile_cols = p.tile_cols(), used = p.begin(p.tile_rows());
  const int64_t per_matrix = ceil_div(p.height(), p.bm);
  parallel(threads, threads, [&](int64_t part) {
    share_tiles(p, part, threads, [&](int64_t first, int64_t last, int64_t from, int64_t to) {
      int64_t* const start = starts + part * (tile_cols + 1);
      int32_t* const list = lists + part * used;
      for (int64_t row = first * p.bm, end = least(last * p.bm, p.rows); row < end; ++row)
        memset(p.c + row * p.n + from, 0, size_t(to - from) * sizeof(T));
      for (int64_t top = first, bottom = 0; top < last; top = bottom) {  // within one matrix
        const int64_t which = top / per_matrix;
        bottom = least(last, (which + 1) * per_matrix);
        const Operand<T> b = p.matrix(which);
        // The transposed index, rows ascending: start[j] moves from the beginning of column j to its end.
        memset(start, 0, size_t(tile_cols + 1) * 8);
        for (int64_t slot = p.begin(top); slot < p.begin(bottom); ++slot) ++start[p.index(slot) + 1];
        for (int64_t j = 0; j < tile_cols; ++j) start[j + 1] += start[j];
        for (int64_t tile = top; tile < bottom; ++tile)
          for (int64_t slot = p.begin(tile); slot < p.begin(tile + 1); ++slot)
            list[start[p.index(slot)]++] = int32_t(tile);
        for (int64_t j = 0, begin = 0; j < tile_cols; begin = start[j++]) {
          const int64_t count = start[j] - begin, left = j * p.bk, depth = least(p.bk, p.k - left);
          if (count == 0) continue;
          const int32_t* const mine = list + begin;
          const auto row_of = [&](int64_t i) { return mine[i / p.bm] * p.bm + i % p.bm; };
          const int64_t rows = (count - 1) * p.bm + least(p.bm, p.rows - mine[count - 1] * p.bm);
          const auto pack_a = [&](T* out, int64_t i, int64_t many, int64_t at, int64_t deep) {
            for (int64_t r = 0; r < many; ++r)
              memcpy(out + r * kRowStride<T>, p.a + row_of(i + r) * p.k + left + at, size_t(deep) * sizeof(T));
          };
          const auto pack_b = [&](T* out, int64_t at, int64_t deep, int64_t col, int64_t width) {
            pack_panels(out, b, left + at, deep, col, width);
          };
          multiply<T, Order::kRows>(rows, depth, pack_a, pack_b, from, to,
                                    [&](int64_t i) { return p.c + row_of(i) * p.n; }, true,
                                    scratch + part * kBlockScratch<T>);
        }
      }
    });
  });
}

template <class T>
int64_t scratch_bytes(int64_t rows, int64_t k, int64_t used, int64_t bk, int64_t batch, int64_t n,
                      int threads) {
  const int64_t blocks = threads * kBlockScratch<T> * int64_t(sizeof(T));
  switch (way(k, bk)) {
    case Way::kRows: return blocks + (rows + batch + 1) * 8;
    case Way::kBands: return batch * k * padded<T>(n) * int64_t(sizeof(T)) + threads * ceil_div(k, 64) * 8;
    case Way::kPieces: return blocks + threads * ((ceil_div(k, bk) + 1) * 8 + used * 4);
  }
  return 0;
}

template <class T>
void gather_mm_of(const Problem<T>& p, void* scratch, T* transposed, int threads) {
  T* const blocks = static_cast<T*>(scratch);
  int64_t* const numbers = reinterpret_cast<int64_t*>(blocks + threads * kBlockScratch<T>);
  switch (way(p.k, p.bk)) {
    case Way::kRows: multiply_rows(p, numbers, numbers + p.batch + 1, blocks, threads); break;
    case Way::kBands:
      multiply_bands(p, blocks, reinterpret_cast<uint64_t*>(blocks + p.batch * p.k * padded<T>(p.n)), threads);
      break;
    case Way::kPieces:
      multiply_pieces(p, numbers, reinterpret_cast<int32_t*>(numbers + threads * (p.tile_cols() + 1)), blocks,
                      threads);
      break;
  }
  if (transposed == nullptr) return;
  constexpr int64_t kStrip = 64;
  parallel(ceil_div(p.rows, kStrip), threads, [&](int64_t part) {
    const int64_t row = part * kStrip;
    transpose(p.c + row * p.n, p.n, transposed + row, p.rows, least(kStrip, p.rows - row), p.n);
  });
}

}  // namespace

int64_t gather_mm_scratch(int element_size, int64_t rows, int64_t k, int64_t capacity, int64_t bk, int64_t batch,
                          int64_t n, int threads) {
  return element_size == 4 ? scratch_bytes<float>(rows, k, capacity, bk, batch, n, threads)
                           : scratch_bytes<double>(rows, k, capacity, bk, batch, n, threads);
}

void gather_mm(const void* a, int element_size, int64_t rows, int64_t k, const int64_t* offsets, const void* indices,
               int index_size, int64_t bm, int64_t bk, int64_t capacity, const void* b, int64_t batch,
               int64_t b_batch, int64_t b_row, int64_t b_col, int64_t n, void* c, void* transposed, void* scratch,
               int threads) {
  if (rows == 0 || n == 0) return;
  const auto run = [&]<class T>(T* out) {
    const T* const right = static_cast<const T*>(b);
    const Problem<T> p = {static_cast<const T*>(a), rows, k, offsets, indices, index_size, bm, bk, capacity,
                          right, batch, b_batch, {right, b_row, b_col}, n, out};
    const int64_t bytes = (rows * k + rows * n + k * n) * element_size;
    const int team = useful_threads(bytes, threads);
    gather_mm_of(p, scratch, static_cast<T*>(transposed), team);
  };
  if (element_size == 4) run(static_cast<float*>(c));
  if (element_size == 8) run(static_cast<double*>(c));
}

}  // namespace gossamer::GOSSAMER_ISA
