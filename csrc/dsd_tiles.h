// dsd of tiles with several rows: some rows x vectors of the result stay in registers over all slots of a run.
#pragma once
#include "dsd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t kSlotsAhead = 2;  // tiles that are asked for before they are multiplied

template <class T, int kR, int kV, bool kTransposed>
void multiply(const Tiles& s, const Run<T>& run, const Panel<T>& panel, T* out, int64_t out_stride) {
  for (int r = 0; r < kR; ++r)  // asked for now, written after all slots
    for (int v = 0; v < kV * kLanes<T>; v += kLine<T>) __builtin_prefetch(out + r * out_stride + v, 1);
  Lanes<T> sum[kR][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v)
      sum[r][v] = run.more ? load_lanes(out + r * out_stride + v * kLanes<T>) : Lanes<T>{};
  const int64_t step = kTransposed ? run.col : run.row;
  const bool far = kR * s.bn >= kLine<T>;  // less is what the hardware expects
  for (int64_t slot = run.slot; slot < run.end; ++slot) {
    const int64_t left = s.column(slot) * s.bn;
    const T* a = run.a + (run.ordered ? source_of(s, slot) : slot - run.first) * run.tile;
    if (far && slot + kSlotsAhead < run.end) {
      const int64_t ahead = slot + kSlotsAhead;
      const T* const next = run.a + (run.ordered ? source_of(s, ahead) : ahead - run.first) * run.tile;
      for (int64_t i = 0; i < (kTransposed ? s.bn * step : kR * s.bn); i += kTransposed ? step : kLine<T>) __builtin_prefetch(next + i);
    }
    const T* b = panel.b + (left + run.from) * panel.stride;
    const T* const end = b + (least(run.to, s.cols - left) - run.from) * panel.stride;
    for (; b < end; b += panel.stride, a += kTransposed ? step : 1) {
      Lanes<T> x[kV];
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) x[v] = load_lanes(b + v * kLanes<T>);
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        const Lanes<T> w = broadcast(a[kTransposed ? r : r * step]);
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) store_lanes(out + r * out_stride + v * kLanes<T>, sum[r][v]);
}

template <class T, int kR, int kV>
Multiply<T> multiply_of(int vectors, bool transposed) {
  if constexpr (kV > 1) {
    if (vectors < kV) return multiply_of<T, kR, kV - 1>(vectors, transposed);
  }
  return transposed ? multiply<T, kR, kV, true> : multiply<T, kR, kV, false>;
}

// `height` rows of a tile row, a few at a time; run.a moves on with them. A copy of `run`, which was just written, would
// wait until that has left the pipeline, with all products before it.
template <class T>
void multiply_rows(const Tiles& s, Run<T>& run, int64_t height, const Panel<T>& panel, T* out, int64_t out_stride) {
  int64_t r = 0;
  const auto rows = [&](auto count, Multiply<T> kernel) {
    for (; r + count <= height; r += count, run.a += count * run.row, out += count * out_stride)
      kernel(s, run, panel, out, out_stride);
  };
  if constexpr (kMostRows == 8)
    if (panel.vectors <= most_vectors(8)) rows(8, multiply_of<T, 8, most_vectors(8)>(panel.vectors, s.transposed));
  if (panel.vectors <= most_vectors(4)) rows(4, multiply_of<T, 4, most_vectors(4)>(panel.vectors, s.transposed));
  rows(2, multiply_of<T, 2, kMostVectors>(panel.vectors, s.transposed));
  rows(1, multiply_of<T, 1, kMostVectors>(panel.vectors, s.transposed));
}

constexpr int64_t kConverted = 4096;  // elements of tiles converted at once

// Rows of a tile as T, times its scale.
template <class T, class Stored>
void convert(const Stored* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows, int64_t cols, T scale) {
  if (in_stride == cols && out_stride == cols) {  // one long row
    cols *= rows;
    rows = 1;
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) out[i * out_stride + j] = T(widen(in[i * in_stride + j])) * scale;
}

// multiply_rows of tiles that are stored in another way: some at a time are converted to T in L1.
template <class T>
void multiply_converted(const Tiles& s, int64_t slot, int64_t end, int64_t top, int64_t height, const Panel<T>& panel,
                        T* out, int64_t out_stride) {
  alignas(64) T tiles[kConverted];
  const int64_t cols = least(s.bn, kConverted / height), batch = kConverted / (height * cols);
  Run<T> run = {tiles, height * cols, s.transposed ? 1 : cols, s.transposed ? height : 1,
                slot,  false, slot, slot, 0, 0, false};
  if (slot == end) return multiply_rows(s, run, height, panel, out, out_stride);
  for (; slot < end; slot = run.end) {
    run.first = run.slot = slot;
    run.end = least(end, slot + batch);
    for (run.from = 0; run.from < s.bn; run.from = run.to) {
      run.to = least(s.bn, run.from + cols);
      for (int64_t i = slot; i < run.end; ++i) {
        const int64_t source = source_of(s, i), width = run.to - run.from;
        const int64_t at = source * s.bm * s.bn + (s.transposed ? run.from * s.bm + top : top * s.bn + run.from);
        const T scale = s.scale != nullptr ? T(s.scale[source]) : T(1);
        T* const tile = tiles + (i - slot) * run.tile;
        const auto from = [&](auto* stored) {
          if (s.transposed) convert(stored + at, s.bm, tile, run.col, width, height, scale);
          else convert(stored + at, s.bn, tile, run.row, height, width, scale);
        };
        if constexpr (sizeof(T) == 8) {
          from(static_cast<const double*>(s.values));
        } else {
          if (s.storage == Storage::kFloat) from(static_cast<const float*>(s.values));
          if (s.storage == Storage::kBFloat16) from(static_cast<const BFloat16*>(s.values));
          if (s.storage == Storage::kInt8) from(static_cast<const int8_t*>(s.values));
        }
      }
      run.a = tiles;
      multiply_rows(s, run, height, panel, out, out_stride);
      run.more = true;
    }
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
