// Gradient of a convolution by its weights that skips the zeros of one operand; the idea is SparseTrain's backward by
// weights (arXiv 1911.10175). A block of the sums is a block of sparse channels x dense channels x taps, it stays in L2
// and belongs to one thread. For each tile of pixels the nonzeros are listed by channel, the dense operand is copied to
// L1 some vectors of channels at a time, and every channel's list is run through with its sums in registers.
#include "kernels.h"
#include "skip_conv_weight_division.h"
#include "skip_conv_weight_points.h"
#include "skip_conv_weight_visit.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Copies `kV` vectors of channels of every place, and one place of zeros after them.
template <int kV>
void copy_places(const Pixels& from, const Places& places, int64_t channel, float* to, int64_t pitch) {
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
        v[j] = whole ? load_lanes(data + pixels[i] * from.channels + j * kL)
                     : load_channels(from, pixels[i], channel + j * kL);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kV; ++j) store_lanes(to + j * kL, v[j]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kV; ++j) store_lanes(to + j * kL, Floats{});
}

template <int kV = most_vectors(1)>
void copy_tile(int vectors, const Pixels& from, const Places& places, int64_t channel, float* to, int64_t pitch) {
  if constexpr (kV > 1) {
    if (vectors < kV) return copy_tile<kV - 1>(vectors, from, places, channel, to, pitch);
  }
  copy_places<kV>(from, places, channel, to, pitch);
}

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
  int64_t stretch, stretches;
  bool exact;  // no place outside meets anything
  int64_t nonzeros = 0, products = 0;

  void run() {
    if (p.points) return run_points();
    for_each_piece(p.down, [&](const Piece& down) {
      for_each_piece(p.along, [&](const Piece& along) { run_piece(down, along); });
    });
  }

  void run_points() {
    Table& table = room.tables[0];
    const int64_t pixels = pixels_that_meet(p), end = part_begin(pixels, stretch + 1, stretches);
    for (int64_t begin = part_begin(pixels, stretch, stretches); begin < end; begin += kMostPixels) {
      fill_points(table, p, begin, least(kMostPixels, end - begin));
      for (int64_t d = 0; d < block.dense_count; d += kPointVectors * kL) {
        const int vectors = int(least(kPointVectors, ceil_div(block.dense_count - d, kL)));
        const int64_t most = least(kPointChannels, kPointSumBytes / (vectors * kWidth) / 64 * 64);
        for (int64_t c = 0; c < block.sparse_count; c += most) {
          const Points job = {p.sparse, p.dense, table, block.sparse + c, least(most, block.sparse_count - c),
                              block.dense + d, room.sums + d / kL * block.vector + c * kL, block.vector};
          const int64_t count = add_points_of(vectors, exact, job);
          if (d == 0) nonzeros += count, products += count;
        }
      }
    }
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
    const int64_t begin = part_begin(count, stretch, stretches), end = part_begin(count, stretch + 1, stretches);
    if (begin < end) fill(room.tables[begin % 2], down, along, tile_at(begin));
    for (int64_t i = begin; i < end; ++i) {
      Table& next = room.tables[(i + 1) % 2];
      next.count = 0;
      if (i + 1 < end) fill(next, down, along, tile_at(i + 1));
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

  void run_tile(const Piece& down, const Piece& along, int64_t cols, int most, const Places& places,
                const Table& next) {
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

  int64_t vectors() const { return ceil_div(block.dense_count, kL); }
  int64_t sums() const { return vectors() * block.vector; }

  void clear() const { memset(room.sums, 0, size_t(sums()) * 4); }

  // Of vector v of the dense channels.
  bool finite(int64_t v) const {
    Floats sum = {};  // becomes NaN
    for (int64_t i = v * block.vector; i < (v + 1) * block.vector; i += kL)
      sum = fma(load_lanes(room.sums + i), Floats{}, sum);
    return sum_lanes<float>(sum) == 0;
  }

  bool finite() const {
    bool all = true;
    for (int64_t v = 0; v < vectors(); ++v) all &= finite(v);
    return all;
  }

  // Adds the sums of the other stretches, `apart` floats from one to the next, to those of the first.
  void add_up(int64_t v, int64_t apart) const {
    for (int64_t i = v * block.vector; i < (v + 1) * block.vector; i += kL) {
      Floats sum = load_lanes(room.sums + i);
      for (int64_t other = 1; other < stretches; ++other) sum += load_lanes(room.sums + other * apart + i);
      store_lanes(room.sums + i, sum);
    }
  }

  // Sums are [vector of dense channels][sparse channel, tap][lane]; the gradient is [k, c, tap], or [k, tap, c].
  void put_down(int64_t v) const {
    const int64_t taps = p.taps(), channels = p.skip_dy ? p.dense.channels : p.sparse.channels, row = channels * taps;
    const int64_t lanes = least(kL, block.dense_count - v * kL), channel = block.dense + v * kL;
    const float* const sums = room.sums + v * block.vector;
    if (p.skip_dy) {
      for (int64_t k = 0; k < block.sparse_count; ++k) {
        float* const to = p.dw + (block.sparse + k) * row;
        if (!p.channels_last) transpose(sums + k * taps * kL, kL, to + channel * taps, taps, taps, lanes);
        for (int64_t tap = 0; p.channels_last && tap < taps; ++tap)
          store_first(to + tap * channels + channel, load_lanes(sums + (k * taps + tap) * kL), int(lanes));
      }
    } else if (p.channels_last) {
      for (int64_t tap = 0; tap < taps; ++tap)
        transpose(sums + tap * kL, taps * kL, p.dw + channel * row + tap * channels + block.sparse, row,
                  block.sparse_count, lanes);
    } else {
      transpose(sums, kL, p.dw + channel * row + block.sparse * taps, row, block.sparse_count * taps, lanes);
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

// Places of the sparse operand that are looked at.
int64_t places_of(const Line& line) {
  int64_t count = 0;
  for_each_piece(line, [&](const Piece& piece) { count += piece.counts ? piece.sparse_count : 0; });
  return count;
}

int threads_for(const Problem& p, int threads) {
  const double products = double(p.images) * double(p.down.sparse * p.along.sparse) * double(p.sparse.channels) *
                          double(p.dense.channels) * double(p.taps());
  return products < 500000 ? 1 : threads;
}

// One call: its blocks, and where each thread's memory and each stretch's sums are.
struct Call {
  const Problem& p;
  Division division;
  int threads;
  bool border;  // whether zeros meet what should meet nothing, which shows where that is not finite
  char* base;
  int64_t size, apart;  // bytes of a thread, floats of a stretch of a block

  Call(const Problem& p, void* workspace, int threads)
      : p(p), division(divide(p, threads)), threads(threads),
        border(p.points || has_border(p.down) || has_border(p.along)), apart(sums_of(p, division)) {
    Room none;
    size = Room::place(p, division, nullptr, none) - static_cast<char*>(nullptr);
    base = reinterpret_cast<char*>(ceil_div(int64_t(reinterpret_cast<uintptr_t>(workspace)), 64) * 64);
  }

  int64_t blocks() const { return division.sparse_blocks * division.dense_blocks; }
  Room room_of(int64_t thread) const {
    Room room;
    Room::place(p, division, base + thread * size, room);
    return room;
  }
  float* sums_of_item(int64_t item) const { return reinterpret_cast<float*>(base + threads * size) + item * apart; }
  Share block_of(int64_t i) const {
    Share block;
    block.sparse = i / division.dense_blocks * division.sparse_block;
    block.dense = i % division.dense_blocks * division.dense_block;
    block.sparse_count = least(division.sparse_block, p.sparse.channels - block.sparse);
    block.dense_count = least(division.dense_block, p.dense.channels - block.dense);
    block.vector = block.sparse_count * p.taps() * kL;
    return block;
  }

  // The items of a thread, each a stretch of a block.
  void run(int64_t thread) const {
    const int64_t stretches = division.stretches, end = part_begin(division.items(), thread + 1, threads);
    Room room = room_of(thread);
    for (int i = 0; i < 3; ++i) room.counts[i] = 0;
    for (int64_t i = part_begin(division.items(), thread, threads); i < end; ++i) {
      if (stretches > 1) room.sums = sums_of_item(i);
      Pass pass = {p, room, block_of(i / stretches), i % stretches, stretches, false};
      pass.clear();
      pass.run();
      if (pass.block.dense == 0) {
        room.counts[0] += pass.nonzeros;
        room.counts[1] += pass.products * p.dense.channels;
      }
      if (stretches > 1) continue;
      if (border && !pass.finite()) {
        pass.clear();
        pass.exact = true;
        pass.run();
      }
      for (int64_t v = 0; v < pass.vectors(); ++v) pass.put_down(v);
    }
  }

  // The stretches of a block, vector by vector. Returns whether all sums are finite.
  bool add_up(const Pass& pass, int64_t from, int64_t to) const {
    bool finite = true;
    for (int64_t v = from; v < to; ++v) {
      pass.add_up(v, apart);
      finite &= pass.finite(v);
      pass.put_down(v);
    }
    return finite;
  }

  void add_stretches() const {
    const int64_t stretches = division.stretches;
    parallel(threads, threads, [&](int64_t thread) {
      Room room = room_of(thread);
      for (int64_t i = 0; i < blocks(); ++i) {
        room.sums = sums_of_item(i * stretches);
        const Pass pass = {p, room, block_of(i), 0, stretches, false};
        const int64_t count = pass.vectors();
        room.counts[2] |= !add_up(pass, part_begin(count, thread, threads), part_begin(count, thread + 1, threads));
      }
    });
    bool finite = true;
    for (int thread = 0; thread < threads; ++thread) finite &= room_of(thread).counts[2] == 0;
    for (int64_t i = 0; border && !finite && i < blocks(); ++i) {
      Room room = room_of(0);
      for (int64_t stretch = stretches - 1; stretch >= 0; --stretch) {
        room.sums = sums_of_item(i * stretches + stretch);
        Pass pass = {p, room, block_of(i), stretch, stretches, true};
        pass.clear();
        pass.run();
      }
      const Pass pass = {p, room, block_of(i), 0, stretches, true};
      add_up(pass, 0, pass.vectors());
    }
  }
};

}  // namespace

int64_t skip_conv_weight_workspace(const Convolution& conv, bool skip_dy, int threads) {
  const Problem p = problem_of(conv, skip_dy, nullptr, nullptr, nullptr, nullptr, false);
  threads = threads_for(p, threads);
  const Division d = divide(p, threads);
  Room room;
  const int64_t own = int64_t(Room::place(p, d, nullptr, room) - static_cast<char*>(nullptr)) * threads;
  return own + (d.stretches > 1 ? d.items() * sums_of(p, d) * 4 : 0) + 64;
}

void skip_conv_weight(const float* x, const float* dy, const uint32_t* bits, const Convolution& conv, bool skip_dy,
                      float* dw, bool channels_last, int64_t* counts, void* workspace, int threads) {
  Problem p = problem_of(conv, skip_dy, x, dy, bits, dw, channels_last);
  p.points = are_points(p);
  threads = threads_for(p, threads);
  const Call call(p, workspace, threads);
  parallel(threads, threads, [&call](int64_t thread) { call.run(thread); });
  if (call.division.stretches > 1) call.add_stretches();
  counts[0] = counts[1] = 0;
  counts[2] = p.images * places_of(p.down) * places_of(p.along) * p.sparse.channels;
  for (int thread = 0; thread < threads; ++thread)
    for (int i = 0; i < 2; ++i) counts[i] += call.room_of(thread).counts[i];
}

}  // namespace gossamer::GOSSAMER_ISA
