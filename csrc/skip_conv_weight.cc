// Gradient of a convolution by its weights that skips the zeros of one operand; the idea is SparseTrain's backward by
// weights (arXiv 1911.10175). A block of the sums is a block of sparse channels x dense channels x taps, it stays in L2
// and belongs to one thread. For each tile of pixels the nonzeros are listed by channel, the dense operand is copied to
// L1 some vectors of channels at a time, and every channel's list is run through with its sums in registers.
#include "kernels.h"
#include "skip_conv_weight_visit.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Problem {
  Operand sparse, dense;
  int64_t images;
  Line down, along;
  bool flip;  // dy is the sparse one
  float* dw;
  int64_t taps() const { return down.taps * along.taps; }
};

struct Division {  // of the channels of both operands into blocks
  int64_t sparse_block, dense_block, sparse_blocks, dense_blocks;
};

constexpr int64_t kSumBytes = 393216;

// Where blocks begin changes no sum, so this may depend on the number of threads.
Division divide(const Problem& p, int threads) {
  int64_t vectors = 1;
  for_each_piece(p.down, [&](const Piece& down) {
    for_each_piece(p.along, [&](const Piece& along) {
      const int64_t v = vectors_of(down.taps * along.taps, p.dense.channels);
      if (v > vectors) vectors = v;
    });
  });
  constexpr int64_t kSparseUnit = 16;
  const int64_t dense_unit = vectors * kL;
  const int64_t sparse_units = ceil_div(p.sparse.channels, kSparseUnit), dense_units = ceil_div(p.dense.channels, dense_unit);
  // Cycles, roughly: a multiply-add of a vector, to list an element, to copy an element.
  constexpr double kListing = 1, kCopying = 0.5, kDensity = 0.25, kUneven = 1.05;
  const double sparse_pixels = double(p.images) * double(p.down.sparse * p.along.sparse);
  const double dense_pixels = double(p.images) * double(p.down.dense * p.along.dense);
  const double products = (sparse_pixels < dense_pixels ? sparse_pixels : dense_pixels) * double(p.taps()) / (2 * kL) * kDensity;
  Division best = {};
  double least_cost = -1;
  for (int64_t s = 1; s <= least(sparse_units, 64); ++s) {
    for (int64_t d = 1; d <= least(dense_units, 64); ++d) {
      Division now;
      now.sparse_block = s * kSparseUnit;
      now.dense_block = d * dense_unit;
      if ((s > 1 || d > 1) && now.sparse_block * now.dense_block * p.taps() * 4 > kSumBytes) break;
      now.sparse_blocks = ceil_div(sparse_units, s);
      now.dense_blocks = ceil_div(dense_units, d);
      const double rounds = double(ceil_div(now.sparse_blocks * now.dense_blocks, threads));
      const double uneven = now.dense_blocks % threads == 0 ? 1 : kUneven;  // channels are not equally full
      const double cost = rounds * (uneven * double(now.sparse_block * now.dense_block) * products +
                                    double(now.sparse_block) * sparse_pixels * kListing +
                                    double(now.dense_block) * dense_pixels * kCopying);
      if (least_cost >= 0 && cost >= least_cost) continue;
      least_cost = cost;
      best = now;
    }
  }
  return best;
}

int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// Copies `kV` vectors of channels of every place, and one place of zeros after them.
template <int kV>
void copy_places(const Operand& from, const Places& places, int64_t channel, float* to, int64_t pitch) {
  const int64_t* const pixels = places.dense;
  const bool whole = from.bits == nullptr && channel + kV * kL <= from.channels;
  const float* const data = from.data + channel;
  for (int64_t i = 0; i < places.count; ++i, to += pitch) {
    if (i + kAhead < places.count && pixels[i + kAhead] >= 0) {
#pragma GCC unroll 8
      for (int j = 0; j < kV * kL; j += 16) __builtin_prefetch(data + pixels[i + kAhead] * from.channels + j);
    }
    Floats v[kV] = {};
    if (pixels[i] >= 0) {
#pragma GCC unroll 8
      for (int j = 0; j < kV; ++j)
        v[j] = whole ? load_lanes(data + pixels[i] * from.channels + j * kL) : load_channels(from, pixels[i], channel + j * kL);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kV; ++j) store_lanes(to + j * kL, v[j]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kV; ++j) store_lanes(to + j * kL, Floats{});
}

template <int kV = most_vectors(1)>
void copy_tile(int vectors, const Operand& from, const Places& places, int64_t channel, float* to, int64_t pitch) {
  if constexpr (kV > 1) {
    if (vectors < kV) return copy_tile<kV - 1>(vectors, from, places, channel, to, pitch);
  }
  copy_places<kV>(from, places, channel, to, pitch);
}

constexpr int64_t kTable = kMostPixels + kL;

struct Table {  // Places of a tile
  int64_t count;
  int64_t dense[kTable], sparse[kTable];
  int32_t valid[kTable];
  uint32_t keep[kTable / kL];
  Places places() const { return {count, dense, sparse, valid, keep}; }
};

struct Room {  // one thread's scratch
  float* sums;
  Lists lists;
  char* tile;
  Table* tables;  // of this tile and of the next
  int64_t* counts;

  // From null it is a measure: the last address is the size.
  static char* place(const Problem& p, const Division& d, char* at, Room& room) {
    const auto take = [&](int64_t bytes) {
      char* const mine = at;
      at += aligned(bytes);
      return mine;
    };
    room.sums = reinterpret_cast<float*>(take(d.sparse_block * d.dense_block * p.taps() * 4));
    room.lists.values = reinterpret_cast<float*>(take(d.sparse_block * kValuePitch * 4));
    room.lists.channels = reinterpret_cast<Channel*>(take(d.sparse_block * int64_t(sizeof(Channel))));
    room.tile = take(kTileBytes + 8 * kWidth);
    room.tables = reinterpret_cast<Table*>(take(2 * int64_t(sizeof(Table))));
    room.counts = reinterpret_cast<int64_t*>(take(64));
    return at;
  }
};

struct Tile {  // places of a piece
  int64_t image, images, row, rows, col, cols;
};

struct Share {
  int64_t sparse, sparse_count, dense, dense_count;  // channels
  int64_t vector;                                     // floats of sums of one vector of dense channels
};

// One block of the gradient.
struct Pass {
  const Problem& p;
  const Room& room;
  Share block;
  bool exact;  // no place outside meets anything
  int64_t nonzeros = 0, products = 0;

  void run() {
    for_each_piece(p.down, [&](const Piece& down) {
      for_each_piece(p.along, [&](const Piece& along) { run_piece(down, along); });
    });
  }

  void run_piece(const Piece& down, const Piece& along) {
    const int most = vectors_of(down.taps * along.taps, p.dense.channels);
    const Grid grid = grid_of(down, along, p.images, most);
    const int64_t rows = ceil_div(down.sparse_count, grid.rows), cols = ceil_div(along.sparse_count, grid.cols);
    const int64_t count = ceil_div(p.images, grid.images) * rows * cols;
    const auto tile_at = [&](int64_t i) {
      const int64_t n = i / (rows * cols) * grid.images, r = i / cols % rows * grid.rows, c = i % cols * grid.cols;
      return Tile{n, least(grid.images, p.images - n), r, least(grid.rows, down.sparse_count - r), c,
                  least(grid.cols, along.sparse_count - c)};
    };
    fill(room.tables[0], down, along, tile_at(0));
    for (int64_t i = 0; i < count; ++i) {
      Table& next = room.tables[(i + 1) % 2];
      next.count = 0;
      if (i + 1 < count) fill(next, down, along, tile_at(i + 1));
      run_tile(down, along, tile_at(i).cols, most, room.tables[i % 2].places(), next);
    }
  }

  // By value: what no store can change needs no new look at each place.
  void fill(Table& table, Piece down, Piece along, Tile tile) const {
    const int64_t rows = tile.rows + down.taps - 1, cols = tile.cols + along.taps - 1;
    int64_t at = 0;
    for (int64_t n = tile.image; n < tile.image + tile.images; ++n)
      for (int64_t r = tile.row; r < tile.row + rows; ++r) {
        const int64_t dense_row = r + down.shift, valid = down.valid(r);
        const int64_t dense = (n * p.down.dense + down.dense_first + dense_row * down.dense_step) * p.along.dense;
        const int64_t sparse = (n * p.down.sparse + down.sparse_first + r * down.sparse_step) * p.along.sparse;
        const bool row_is = r < tile.row + tile.rows, row_inside = dense_row >= 0 && dense_row < down.dense_count;
        for (int64_t i = 0; i < cols; ++i) {
          const int64_t c = tile.col + i, dense_col = c + along.shift;
          const bool inside = row_inside && dense_col >= 0 && dense_col < along.dense_count;
          const bool is = row_is && i < tile.cols;
          table.dense[at + i] = inside ? dense + along.dense_first + dense_col * along.dense_step : -1;
          table.sparse[at + i] = is ? sparse + along.sparse_first + c * along.sparse_step : -1;
          table.valid[at + i] = is ? int32_t(valid * along.valid(c)) : 0;
        }
        at += cols;
      }
    table.count = at;
    for (int i = 0; i < kL; ++i) {
      table.sparse[at + i] = -1;
      table.valid[at + i] = 0;
    }
    int64_t some = table.sparse[0];  // where there is none, any that is may be read
    for (int64_t i = 0; i < at; i += kL) {
      uint32_t keep = 0;
      for (int j = 0; j < kL; ++j) {
        keep |= uint32_t(table.sparse[i + j] >= 0) << j;
        some = table.sparse[i + j] >= 0 ? table.sparse[i + j] : some;
        table.sparse[i + j] = some;
      }
      table.keep[i / kL] = keep;
    }
  }

  void run_tile(const Piece& down, const Piece& along, int64_t cols, int most, const Places& places, const Table& next) {
    const int64_t pitch = most * kWidth;
    Visit job;
    job.tile = room.tile;
    job.row = (cols + along.taps - 1) * pitch;
    job.down = down.tap_step * p.along.taps * kL;
    job.along = along.tap_step * kL;
    job.vector = block.vector;
    float* const first = room.sums + (down.tap_first * p.along.taps + along.tap_first) * kL;
    const int64_t visits = ceil_div(block.dense_count, most * kL) * block.sparse_count;
    const int64_t each = ceil_div(next.count, visits);  // places of the next tile to ask for at each visit
    int64_t asked = 0;
    for (int64_t d = 0; d < block.dense_count; d += most * kL) {
      const int vectors = int(least(most, ceil_div(block.dense_count - d, kL)));
      copy_tile(vectors, p.dense, places, block.dense + d, reinterpret_cast<float*>(room.tile), most * kL);
      const VisitFunction visit = visit_of(down.taps, along.taps, vectors, most);
      for (int64_t c = 0; c < block.sparse_count; ++c) {
        if (d == 0 && c % kListed == 0) {
          const Lists lists = {room.lists.values + c * kValuePitch, room.lists.channels + c};
          const int64_t count = least(kListed, block.sparse_count - c);
          const int64_t nonzero = make_lists(p.sparse, block.sparse + c, count, places, lists, products);
          if (down.counts && along.counts) nonzeros += nonzero;
        }
        const int64_t end = least(next.count, asked + each);
        for (; asked < end; ++asked) ask_for(next, asked);
        job.values = room.lists.values + c * kValuePitch;
        job.channel = room.lists.channels + c;
        job.sums = first + (d / kL) * block.vector + c * p.taps() * kL;
        if (exact) visit_inside(job, places, down.taps, along.taps, vectors, pitch);
        else if (job.channel->groups > 0) visit(job);
      }
    }
  }

  // A line that comes from memory while others are multiplied costs nothing.
  void ask_for(const Table& table, int64_t place) const {
    const auto lines = [](const float* from, int64_t count) {
      for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i, 0, 2);
    };
    if (table.dense[place] >= 0)
      lines(p.dense.data + table.dense[place] * p.dense.channels + block.dense, block.dense_count);
    if (table.keep[place / kL] >> (place % kL) & 1)
      lines(p.sparse.data + table.sparse[place] * p.sparse.channels + block.sparse, block.sparse_count);
  }

  bool finite() const {
    const int64_t count = ceil_div(block.dense_count, kL) * block.vector;
    Floats sum = {};  // becomes NaN
    for (int64_t i = 0; i < count; i += kL) sum = fma(load_lanes(room.sums + i), Floats{}, sum);
    return sum_lanes<float>(sum) == 0;
  }

  // Sums are [vector of dense channels][sparse channel, tap][lane]; the gradient is [k, c, tap].
  void put_down() const {
    const int64_t taps = p.taps(), row = (p.flip ? p.dense.channels : p.sparse.channels) * taps;
    for (int64_t d = 0; d < block.dense_count; d += kL) {
      const int64_t lanes = least(kL, block.dense_count - d), channel = block.dense + d;
      const float* const sums = room.sums + (d / kL) * block.vector;
      if (!p.flip) {
        transpose(sums, kL, p.dw + channel * row + block.sparse * taps, row, block.sparse_count * taps, lanes);
        continue;
      }
      for (int64_t k = 0; k < block.sparse_count; ++k)
        transpose(sums + k * taps * kL, kL, p.dw + (block.sparse + k) * row + channel * taps, taps, taps, lanes);
    }
  }
};

// Whether some pixel of the sparse operand has a tap outside the dense one.
bool has_border(const Line& line) {
  bool border = false;
  for_each_piece(line, [&](const Piece& piece) {
    for (int64_t i = 0; i < piece.sparse_count; ++i) border |= piece.valid(i) < piece.taps;
  });
  return border;
}

int64_t nonzeros_of(const Operand& a, int64_t pixel) {
  Ints total = {};
  int64_t count = 0;
  for (int64_t c = 0; c < a.channels; c += kL)
    count += __builtin_popcount(nonzeros(load_channels(a, pixel, c), Ints{}, kAllLanes, total));
  return count;
}

// The nonzeros that no piece holds.
int64_t count_others(const Problem& p, int64_t from_row, int64_t to_row) {
  int64_t count = 0;
  for (int64_t row = from_row; row < to_row; ++row) {
    const bool held = in_a_piece(p.down, row % p.down.sparse);
    for (int64_t col = 0; col < p.along.sparse; ++col)
      if (!held || !in_a_piece(p.along, col)) count += nonzeros_of(p.sparse, row * p.along.sparse + col);
  }
  return count;
}

Problem problem_of(const Convolution& conv, const float* x, const float* dy, const uint32_t* bits, float* dw) {
  Problem p;
  const Operand a = {x, conv.channels, nullptr, 0}, b = {dy, conv.outputs, bits, ceil_div(conv.outputs, 32)};
  p.flip = conv.skip_dy;
  p.sparse = p.flip ? b : a;
  p.dense = p.flip ? a : b;
  p.images = conv.images;
  p.dw = dw;
  const auto line = [&](const int64_t(&of)[6]) {
    const auto [in, out, taps, stride, padding, dilation] = of;
    return Line{p.flip ? out : in, p.flip ? in : out, taps, stride, padding, dilation, p.flip};
  };
  p.down = line(conv.down);
  p.along = line(conv.along);
  const auto plain = [](const Line& l) { return l.taps == 1 && l.stride == 1 && l.padding == 0 && l.sparse == l.dense; };
  if (plain(p.down) && plain(p.along)) {  // one long row of pixels, which is cut as suits best
    p.along.sparse = p.along.dense = p.images * p.down.sparse * p.along.sparse;
    p.images = p.down.sparse = p.down.dense = 1;
  }
  return p;
}

int threads_for(const Problem& p, int threads) {
  const double products = double(p.images) * double(p.down.sparse * p.along.sparse) * double(p.sparse.channels) *
                          double(p.dense.channels) * double(p.taps());
  return products < 500000 ? 1 : threads;
}

}  // namespace

int64_t skip_conv_weight_scratch(const Convolution& conv, int threads) {
  const Problem p = problem_of(conv, nullptr, nullptr, nullptr, nullptr);
  threads = threads_for(p, threads);
  Room room;
  return int64_t(Room::place(p, divide(p, threads), nullptr, room) - static_cast<char*>(nullptr)) * threads + 64;
}

void skip_conv_weight(const float* x, const float* dy, const uint32_t* bits, const Convolution& conv, float* dw,
                      int64_t* counts, void* scratch, int threads) {
  const Problem p = problem_of(conv, x, dy, bits, dw);
  threads = threads_for(p, threads);
  const Division division = divide(p, threads);
  Room none;
  const int64_t size = Room::place(p, division, nullptr, none) - static_cast<char*>(nullptr);
  char* const base = reinterpret_cast<char*>(ceil_div(int64_t(reinterpret_cast<uintptr_t>(scratch)), 64) * 64);
  const bool border = has_border(p.down) || has_border(p.along);
  bool others = false;
  for (int64_t i = 0; i < p.down.sparse; ++i) others |= !in_a_piece(p.down, i);
  for (int64_t i = 0; i < p.along.sparse; ++i) others |= !in_a_piece(p.along, i);
  parallel(threads, threads, [&](int64_t thread) {
    Room room;
    Room::place(p, division, base + thread * size, room);
    room.counts[0] = room.counts[1] = 0;
    for (int64_t i = thread; i < division.sparse_blocks * division.dense_blocks; i += threads) {
      Share block;
      block.sparse = i / division.dense_blocks * division.sparse_block;
      block.dense = i % division.dense_blocks * division.dense_block;
      block.sparse_count = least(division.sparse_block, p.sparse.channels - block.sparse);
      block.dense_count = least(division.dense_block, p.dense.channels - block.dense);
      block.vector = block.sparse_count * p.taps() * kL;
      const int64_t sum_bytes = ceil_div(block.dense_count, kL) * block.vector * 4;
      memset(room.sums, 0, size_t(sum_bytes));
      Pass pass = {p, room, block, false};
      pass.run();
      if (block.dense == 0) {
        room.counts[0] += pass.nonzeros;
        room.counts[1] += pass.products * p.dense.channels;
      }
      if (border && !pass.finite()) {
        memset(room.sums, 0, size_t(sum_bytes));
        pass.exact = true;
        pass.run();
      }
      pass.put_down();
    }
    if (others) {
      const int64_t rows = p.images * p.down.sparse;
      room.counts[0] += count_others(p, part_begin(rows, thread, threads), part_begin(rows, thread + 1, threads));
    }
  });
  counts[0] = counts[1] = 0;
  for (int thread = 0; thread < threads; ++thread) {
    Room room;
    Room::place(p, division, base + thread * size, room);
    counts[0] += room.counts[0];
    counts[1] += room.counts[1];
  }
}

}  // namespace gossamer::GOSSAMER_ISA
