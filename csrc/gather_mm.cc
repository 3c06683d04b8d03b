// PIT's products: a matrix that holds zeros times a dense one, read in place, only at the tiles of a pattern. What the
// tiles are decides how: whole rows, bands of a few columns each, or pieces of rows.
#include "gemm.h"
#include "structure.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class T>
struct Problem : Slots {  // of a[rows, cols]
  const T* a;
  Matrix<T> b;
  int64_t batch, b_batch, n;
  T* c;

  int64_t height() const { return rows / batch; }  // of one matrix
  Matrix<T> matrix(int64_t which) const { return {b.p + which * b_batch, b.row, b.col}; }
};

enum class Algorithm { kRows, kBands, kPieces };

// Bands read a row of B for every column of the band, in cache or not, so a few rows of A must share it. Pieces of rows
// are turned round: all the rows that have a tile in one column of tiles share that piece of B.
Algorithm algorithm(int64_t k, int64_t bk) {
  if (bk >= k) return Algorithm::kRows;
  return bk >= 16 ? Algorithm::kPieces : Algorithm::kBands;
}

template <class T>
int64_t padded(int64_t n) {
  return ceil_div(n, kTileCols<T>) * kTileCols<T>;
}

// ---- Whole rows: list them, and multiply that list.

template <class T>
bool multiply_rows(const Problem<T>& p, int64_t* starts, int64_t* list, T* workspace, int threads) {
  if (!p.columns_exist(0, p.used())) return false;
  // starts[batch + 1] and list[rows]: the rows present, matrix by matrix.
  int64_t found = 0, tile = 0;
  for (int64_t which = 0; which < p.batch; ++which) {
    starts[which] = found;
    for (const int64_t end = (which + 1) * p.height(); tile < p.tile_rows && tile * p.bm < end; ++tile) {
      if (p.offsets[tile] == p.offsets[tile + 1]) continue;
      if (p.offsets[tile] + 1 < p.offsets[tile + 1]) return false;  // there is one column
      for (int64_t row = tile * p.bm, last = least(row + p.bm, p.rows); row < last; ++row) list[found++] = row;
    }
  }
  starts[p.batch] = found;
  const auto count = [=](int64_t which) { return starts[which + 1] - starts[which]; };
  const auto work = [=](int64_t which) { return count(which) == 0 ? 0 : count(which) + kPackingRows; };
  parallel(threads, threads, [&](int64_t part) {
    const int64_t last = part_begin(p.tile_rows, part + 1, threads);
    for (int64_t tile = part_begin(p.tile_rows, part, threads); tile < last; ++tile) {
      if (p.offsets[tile] != p.offsets[tile + 1]) continue;
      const int64_t row = tile * p.bm;
      memset(p.c + row * p.n, 0, size_t((least(row + p.bm, p.rows) - row) * p.n) * sizeof(T));
    }
    share_products<T>(p.batch, p.n, part, threads, count, work,
                      [&](int64_t which, int64_t row, int64_t last_row, int64_t col, int64_t last_col) {
      const int64_t* const mine = list + starts[which] + row;
      const auto pack_a = [&](T* out, int64_t i, int64_t many, int64_t first, int64_t depth) {
        for (int64_t r = 0; r < many; ++r)
          memcpy(out + r * kRowStride<T>, p.a + mine[i + r] * p.cols + first, size_t(depth) * sizeof(T));
      };
      const auto pack_b = [&](T* out, int64_t first, int64_t depth, int64_t at, int64_t width) {
        pack_panels(out, p.matrix(which), first, depth, at, width);
      };
      multiply<T, Order::kRows>(last_row - row, p.cols, pack_a, pack_b, col, last_col,
                                [&](int64_t i) { return p.c + mine[i] * p.n; }, false,
                                workspace + part * kBlockWorkspace<T>);
    });
  });
  return true;
}

// Whether slots name columns that exist, and each row of tiles a column once: what a thread finds in its share of them.
struct Look {
  Verdict exist, ascending;

  void at(const Slots& s, int64_t part, int64_t parts) {
    const int64_t begin = part_begin(s.used(), part, parts), end = part_begin(s.used(), part + 1, parts);
    exist.add(s.columns_exist(begin, end));
    ascending.add(ascend(s, begin, end));
  }
  // What all of them found; bits: one for each tile column, for rows that do not ascend.
  bool right(const Slots& s, uint64_t* bits) const {
    return exist.right() && (ascending.right() || first_repeated(s, bits) < 0);
  }
};

// What one thread does of bands or pieces: tile rows [first, last) and columns [col, last_col) of C. By rows, equal in
// tiles, where C is higher than wide; else by columns.
template <class T, class Body>
void share_tiles(const Problem<T>& p, int64_t part, int64_t parts, const Body& body) {
  const int64_t tile_rows = p.tile_rows;
  if (p.rows <= p.n) {
    const int64_t panels = ceil_div(p.n, kTileCols<T>);
    const int64_t from = least(p.n, part_begin(panels, part, parts) * kTileCols<T>);
    const int64_t to = least(p.n, part_begin(panels, part + 1, parts) * kTileCols<T>);
    if (from < to) body(int64_t(0), tile_rows, from, to);
    return;
  }
  // A row counts as much as its tiles and one: to write zeros is work too.
  const auto begin = [&](int64_t which) {
    const int64_t goal = part_begin(p.offsets[tile_rows] + tile_rows, which, parts);
    int64_t low = 0, high = tile_rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (p.offsets[middle] + middle < goal) low = middle + 1;
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
  Columns(const Problem<T>& p, int64_t tile_row, uint64_t* words) : words_(words), end_(ceil_div(p.cols, 64)) {
    memset(words, 0, size_t(end_) * 8);
    for (int64_t slot = p.offsets[tile_row]; slot < p.offsets[tile_row + 1]; ++slot) {
      const int64_t left = p.column(slot) * p.bn, right = least(left + p.bn, p.cols);
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
bool multiply_bands(const Problem<T>& p, T* packed, uint64_t* bits, int threads) {
  constexpr int64_t kCols = kTileCols<T>;
  const int64_t panels = ceil_div(p.n, kCols);
  const int64_t looks = panels > 0 ? p.batch * panels : 1;
  Look look;
  parallel(looks, threads, [&](int64_t part) {
    look.at(p, part, looks);
    if (panels == 0) return;
    const int64_t which = part / panels, from = part % panels * kCols;
    pack_panels(packed + part * p.cols * kCols, p.matrix(which), 0, p.cols, from, least(kCols, p.n - from));
  });
  if (!look.right(p, bits)) return false;
  parallel(threads, threads, [&](int64_t part) {
    share_tiles(p, part, threads, [&](int64_t first, int64_t last, int64_t from, int64_t to) {
      alignas(64) T a[kBandRows * kRowStride<T>];
      int64_t at[kDepth + kAhead];
      Group groups[kDepth];
      for (int64_t col = from, width = 0; col < to; col += width) {
        width = next_share(to - col, kBandCols, kCols);
        for (int64_t tile = first; tile < last; ++tile) {
          const int64_t top = tile * p.bm, bottom = least(top + p.bm, p.rows);
          const T* const right = packed + top / p.height() * panels * p.cols * kCols;
          for (int64_t row = top, height = 0; row < bottom; row += height) {
            height = next_share(bottom - row, kBandRows, kTileRows);
            Columns<T> columns(p, tile, bits + part * ceil_div(p.cols, 64));
            bool add = false;
            do {
              int64_t group_count;
              const int64_t depth = columns.next(groups, group_count, at);
              for (int64_t r = 0; r < height; ++r) {
                const T* const source = p.a + (row + r) * p.cols;
                T* out = a + r * kRowStride<T>;
                for (int64_t g = 0; g < group_count; ++g) {
                  // The lines are in no order that the hardware would guess: ask for those of the next row.
                  __builtin_prefetch(source + p.cols + groups[g].left);
                  compress_lanes(source + groups[g].left, groups[g].bits, p.cols - groups[g].left, out);
                  out += __builtin_popcount(groups[g].bits);
                }
              }
              for (int64_t j = col; j < col + width; j += kCols) {
                const Panel<T> panel = {right + j * p.cols, 0, at};
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
  return true;
}

// ---- Pieces: for each column of tiles, the rows that have one.

template <class T>
bool multiply_pieces(const Problem<T>& p, int64_t* starts, int32_t* lists, T* workspace, int threads) {
  const int64_t tile_cols = p.tile_cols, used = p.offsets[p.tile_rows];
  const int64_t per_matrix = ceil_div(p.height(), p.bm), looks = useful_threads(used * p.index_size, threads);
  Look look;
  parallel(looks, threads, [&](int64_t part) { look.at(p, part, looks); });
  if (!look.right(p, reinterpret_cast<uint64_t*>(starts))) return false;
  parallel(threads, threads, [&](int64_t part) {
    share_tiles(p, part, threads, [&](int64_t first, int64_t last, int64_t from, int64_t to) {
      int64_t* const start = starts + part * (tile_cols + 1);
      int32_t* const list = lists + part * used;
      for (int64_t row = first * p.bm, end = least(last * p.bm, p.rows); row < end; ++row)
        memset(p.c + row * p.n + from, 0, size_t(to - from) * sizeof(T));
      for (int64_t top = first, bottom = 0; top < last; top = bottom) {  // within one matrix
        const int64_t which = top / per_matrix;
        bottom = least(last, (which + 1) * per_matrix);
        const Matrix<T> b = p.matrix(which);
        // The transposed index, rows ascending: start[j] moves from the beginning of column j to its end.
        memset(start, 0, size_t(tile_cols + 1) * 8);
        for (int64_t slot = p.offsets[top]; slot < p.offsets[bottom]; ++slot) ++start[p.column(slot) + 1];
        for (int64_t j = 0; j < tile_cols; ++j) start[j + 1] += start[j];
        for (int64_t tile = top; tile < bottom; ++tile)
          for (int64_t slot = p.offsets[tile]; slot < p.offsets[tile + 1]; ++slot)
            list[start[p.column(slot)]++] = int32_t(tile);
        for (int64_t j = 0, begin = 0; j < tile_cols; begin = start[j++]) {
          const int64_t count = start[j] - begin, left = j * p.bn, depth = least(p.bn, p.cols - left);
          if (count == 0) continue;
          const int32_t* const mine = list + begin;
          const auto row_of = [&](int64_t i) { return mine[i / p.bm] * p.bm + i % p.bm; };
          const int64_t rows = (count - 1) * p.bm + least(p.bm, p.rows - mine[count - 1] * p.bm);
          const auto pack_a = [&](T* out, int64_t i, int64_t many, int64_t at, int64_t deep) {
            for (int64_t r = 0; r < many; ++r)
              memcpy(out + r * kRowStride<T>, p.a + row_of(i + r) * p.cols + left + at, size_t(deep) * sizeof(T));
          };
          const auto pack_b = [&](T* out, int64_t at, int64_t deep, int64_t col, int64_t width) {
            pack_panels(out, b, left + at, deep, col, width);
          };
          multiply<T, Order::kRows>(rows, depth, pack_a, pack_b, from, to,
                                    [&](int64_t i) { return p.c + row_of(i) * p.n; }, true,
                                    workspace + part * kBlockWorkspace<T>);
        }
      }
    });
  });
  return true;
}

template <class T>
int64_t workspace_bytes(const Index& s, int64_t batch, int64_t n, int threads) {
  const int64_t blocks = threads * kBlockWorkspace<T> * int64_t(sizeof(T));
  switch (algorithm(s.cols, s.bn)) {
    case Algorithm::kRows: return blocks + (s.rows + batch + 1) * 8;
    case Algorithm::kBands:
      return batch * s.cols * padded<T>(n) * int64_t(sizeof(T)) + threads * ceil_div(s.cols, 64) * 8;
    case Algorithm::kPieces: return blocks + threads * ((ceil_div(s.cols, s.bn) + 1) * 8 + s.capacity * 4);
  }
  return 0;
}

template <class T>
bool multiply(const Problem<T>& p, T* workspace, int threads) {
  int64_t* const numbers = reinterpret_cast<int64_t*>(workspace + threads * kBlockWorkspace<T>);
  switch (algorithm(p.cols, p.bn)) {
    case Algorithm::kRows: return multiply_rows(p, numbers, numbers + p.batch + 1, workspace, threads);
    case Algorithm::kBands:
      return multiply_bands(p, workspace, reinterpret_cast<uint64_t*>(workspace + p.batch * p.cols * padded<T>(p.n)),
                            threads);
    case Algorithm::kPieces:
      return multiply_pieces(p, numbers, reinterpret_cast<int32_t*>(numbers + threads * (p.tile_cols + 1)), workspace,
                             threads);
  }
  return false;
}

}  // namespace

int64_t gather_mm_workspace(int element_size, const Index& index, int64_t batch, int64_t n, int threads) {
  return element_size == 4 ? workspace_bytes<float>(index, batch, n, threads)
                           : workspace_bytes<double>(index, batch, n, threads);
}

bool gather_mm(const void* a, int element_size, const Index& index, const Operand& b, int64_t batch, int64_t b_batch,
               int64_t n, void* c, void* transposed, void* workspace, int threads) {
  const Slots slots(index);
  if (!slots.offsets_are_right()) return false;
  const int64_t rows = index.rows;
  const auto run = [&]<class T>(T* out) {
    const Problem<T> p = {slots, static_cast<const T*>(a), matrix<T>(b), batch, b_batch, n, out};
    const int team = useful_threads((rows * index.cols + rows * n + index.cols * n) * element_size, threads);
    if (!multiply(p, static_cast<T*>(workspace), team)) return false;
    constexpr int64_t kStrip = 64;
    parallel(transposed == nullptr ? 0 : ceil_div(rows, kStrip), team, [&](int64_t part) {
      const int64_t row = part * kStrip;
      transpose(out + row * n, n, static_cast<T*>(transposed) + row, rows, least(kStrip, rows - row), n);
    });
    return true;
  };
  return element_size == 4 ? run(static_cast<float*>(c)) : run(static_cast<double*>(c));
}

}  // namespace gossamer::GOSSAMER_ISA
