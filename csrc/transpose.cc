// The index of the transposed pattern, by a counting sort of the slots by tile column.
#include "slots.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// The slots are cut into `parts` in slot order and each counts its columns alone. Once the counts are sums, part p of
// column c knows where its first entry goes: after those of the columns before c, and of the parts before p in c. So
// slots of one column keep their order, rows ascending, whatever the number of parts.
template <class Column, class Row>
bool sort_slots(const Slots& s, int64_t parts, uint32_t* counts, int64_t* offsets_t, Row* indices_t, int32_t* order) {
  const Column* const indices = static_cast<const Column*>(s.indices);
  const int64_t used = s.used(), tile_cols = s.tile_cols;
  Verdict verdict;
  parallel(parts, int(parts), [&](int64_t part) {
    uint32_t* const mine = counts + part * tile_cols;
    memset(mine, 0, size_t(tile_cols) * sizeof(uint32_t));
    const int64_t end = part_begin(used, part + 1, parts);
    if (!verdict.add(s.columns_exist(part_begin(used, part, parts), end))) return;
    for (int64_t slot = part_begin(used, part, parts); slot < end; ++slot) ++mine[indices[slot]];
  });
  if (!verdict.right()) return false;
  uint32_t sum = 0;
  for (int64_t c = 0; c < tile_cols; ++c) {
    offsets_t[c] = int64_t(sum);
    for (int64_t part = 0; part < parts; ++part) {
      const uint32_t count = counts[part * tile_cols + c];
      counts[part * tile_cols + c] = sum;
      sum += count;
    }
  }
  offsets_t[tile_cols] = int64_t(sum);
  parallel(parts, int(parts), [&](int64_t part) {
    uint32_t* const next = counts + part * tile_cols;
    s.for_each_row(part_begin(used, part, parts), part_begin(used, part + 1, parts),
                   [=](int64_t i, int64_t slot, int64_t end) {
                     for (; slot < end; ++slot) {
                       const uint32_t to = next[indices[slot]]++;
                       indices_t[to] = Row(i);
                       order[to] = int32_t(slot);
                     }
                   });
  });
  return true;
}

}  // namespace

bool transpose(const Index& index, uint32_t* counts, int64_t* offsets_t, void* indices_t, int index_size_t,
               int32_t* order, int threads) {
  const Slots s(index);
  if (!s.offsets_are_right()) return false;
  const int64_t used = s.used();
  // A part pays for clearing and summing its own counts, and random stores are some ten times as slow as streams.
  const int64_t parts = used < 2 * s.tile_cols ? 1 : useful_threads(used * 16, threads);
  const auto sort = [&]<class Column, class Row>(Column, Row) {
    return sort_slots<Column>(s, parts, counts, offsets_t, static_cast<Row*>(indices_t), order);
  };
  const bool right = s.index_size == 2
                         ? index_size_t == 2 ? sort(uint16_t(), uint16_t()) : sort(uint16_t(), int32_t())
                         : index_size_t == 2 ? sort(int32_t(), uint16_t()) : sort(int32_t(), int32_t());
  if (!right) return false;
  memset(static_cast<char*>(indices_t) + used * index_size_t, 0, size_t((s.capacity - used) * index_size_t));
  for (int64_t slot = used; slot < s.capacity; ++slot) order[slot] = int32_t(slot);
  return true;
}

}  // namespace gossamer::GOSSAMER_ISA
