// Python's door: addresses come as integers, the cheapest way across; the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace gossamer;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

nb::list isas(bool (*wanted)(int)) {
  nb::list names;
  for (int i = 0; i < isa_count(); ++i)
    if (wanted(i)) names.append(isa_name(i));
  return names;
}

std::string joined(bool (*wanted)(int)) {
  std::string names;
  for (int i = 0; i < isa_count(); ++i)
    if (wanted(i)) names += (names.empty() ? "" : ", ") + std::string(isa_name(i));
  return names;
}

using Axis = std::array<int64_t, 6>;

Convolution convolution(int64_t images, int64_t channels, int64_t outputs, const Axis& down, const Axis& along,
                        bool skip_dy) {
  Convolution conv = {images, channels, outputs, {}, {}, skip_dy};
  for (int i = 0; i < 6; ++i) {
    conv.down[i] = down[i];
    conv.along[i] = along[i];
  }
  return conv;
}

// `who` is how the user asked, for the message.
void require_isa(const std::string& name, const std::string& who) {
  const char* why = nullptr;
  switch (select_isa(name.c_str())) {
    case IsaStatus::kOk: return;
    case IsaStatus::kUnknown: why = " is not a known instruction set"; break;
    case IsaStatus::kNotBuilt: why = " was not built for this processor family"; break;
    case IsaStatus::kNotSupported: why = " is not supported by this CPU"; break;
  }
  throw nb::value_error((who + "'" + name + "'" + why + "; available here: " + joined(isa_supported)).c_str());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The C++ kernels on raw addresses. Call them through gossamer.kernels.cpu, which checks its arguments.";
  select_best();
  if (const char* forced = std::getenv("GOSSAMER_ISA")) require_isa(forced, "GOSSAMER_ISA=");

  m.def("isa", [] { return std::string(active_name()); }, "The instruction set in use.");
  m.def("set_isa", [](const std::string& name) { require_isa(name, "isa "); }, nb::arg("name"),
        "Switch every later call to `name`; ValueError when this machine cannot run it.");
  m.def("available_isas", [] { return isas(isa_supported); }, "Built, and run by this CPU; narrow to wide.");
  m.def("built_isas", [] { return isas(isa_built); });
  m.def("openmp_library", [] { return std::string(openmp_library()); },
        "The file of the OpenMP runtime in use; empty when built without OpenMP.");
  m.def("compiler", [] { return std::string(GOSSAMER_COMPILER); });

  const nb::call_guard<nb::gil_scoped_release> unlocked;
  m.def("detect",
        [](uintptr_t x, int64_t rows, int64_t cols, int element_size, bool is_float, int64_t bm, int64_t bn,
           int64_t capacity, uintptr_t flags, uintptr_t offsets, uintptr_t indices, int index_size, bool cleared,
           int threads) {
          active().detect(at<const void>(x), rows, cols, element_size, is_float, bm, bn, capacity,
                          at<uint64_t>(flags), at<int64_t>(offsets), at<void>(indices), index_size, cleared, threads);
        },
        unlocked);
  m.def("gather",
        [](uintptr_t x, int64_t rows, int64_t cols, int element_size, uintptr_t offsets, uintptr_t indices,
           int index_size, int64_t bm, int64_t bn, int64_t capacity, uintptr_t values, int threads) {
          active().gather(at<const void>(x), rows, cols, element_size, at<const int64_t>(offsets),
                          at<const void>(indices), index_size, bm, bn, capacity, at<void>(values), threads);
        },
        unlocked);
  m.def("gather_mm_scratch",
        [](int element_size, int64_t rows, int64_t k, int64_t capacity, int64_t bk, int64_t batch, int64_t n,
           int threads) {
          return active().gather_mm_scratch(element_size, rows, k, capacity, bk, batch, n, threads);
        });
  m.def("gather_mm",
        [](uintptr_t a, int element_size, int64_t rows, int64_t k, uintptr_t offsets, uintptr_t indices,
           int index_size, int64_t bm, int64_t bk, int64_t capacity, uintptr_t b, int64_t batch, int64_t b_batch,
           int64_t b_row, int64_t b_col, int64_t n, uintptr_t c, uintptr_t transposed, uintptr_t scratch,
           int threads) {
          active().gather_mm(at<const void>(a), element_size, rows, k, at<const int64_t>(offsets),
                             at<const void>(indices), index_size, bm, bk, capacity, at<const void>(b), batch, b_batch,
                             b_row, b_col, n, at<void>(c), at<void>(transposed), at<void>(scratch), threads);
        },
        unlocked);
  m.def("grouped_scratch",
        [](int element_size, int threads) { return active().grouped_scratch(element_size, threads); });
  m.def("grouped_mm",
        [](uintptr_t x, int element_size, int64_t k, uintptr_t source, int source_size, uintptr_t target,
           int target_size, uintptr_t offsets, int64_t groups, uintptr_t weights, bool flip, int64_t n, uintptr_t y,
           int64_t out_rows, uintptr_t scratch, int threads) {
          active().grouped_mm(at<const void>(x), element_size, k, at<const void>(source), source_size,
                              at<const void>(target), target_size, at<const int64_t>(offsets), groups,
                              at<const void>(weights), flip, n, at<void>(y), out_rows, at<void>(scratch), threads);
        },
        unlocked);
  m.def("grouped_outer",
        [](uintptr_t x, int element_size, int64_t k, uintptr_t dy, int64_t n, uintptr_t source, int source_size,
           uintptr_t target, int target_size, uintptr_t offsets, int64_t groups, uintptr_t dw, uintptr_t scratch,
           int threads) {
          active().grouped_outer(at<const void>(x), element_size, k, at<const void>(dy), n, at<const void>(source),
                                 source_size, at<const void>(target), target_size, at<const int64_t>(offsets), groups,
                                 at<void>(dw), at<void>(scratch), threads);
        },
        unlocked);
  m.def("scatter",
        [](uintptr_t values, int64_t rows, int64_t cols, int element_size, uintptr_t offsets, uintptr_t indices,
           int index_size, int64_t bm, int64_t bn, int64_t capacity, uintptr_t dense, int threads) {
          active().scatter(at<const void>(values), rows, cols, element_size, at<const int64_t>(offsets),
                           at<const void>(indices), index_size, bm, bn, capacity, at<void>(dense), threads);
        },
        unlocked);
  m.def("mask",
        [](uintptr_t x, uintptr_t mask, int64_t n, int element_size, int threads) {
          active().mask(at<void>(x), at<const uint8_t>(mask), n, element_size, threads);
        },
        unlocked);
  m.def("select_scratch", [](int64_t n, int threads) { return active().select_scratch(n, threads); });
  m.def("select",
        [](uintptr_t scores, uintptr_t allowed, int64_t n, int64_t k, bool largest, uintptr_t mask, uintptr_t scratch,
           int threads) {
          return active().select(at<const float>(scores), at<const uint8_t>(allowed), n, k, largest,
                                 at<uint8_t>(mask), at<void>(scratch), threads);
        },
        unlocked);
  m.def("dsd_scratch",
        [](int storage, bool in_place, uintptr_t offsets, int64_t capacity, int64_t bm, int64_t bk, int64_t rows,
           int64_t k, int64_t n, uintptr_t work, int64_t segments, int threads) {
          return active().dsd_scratch(storage, in_place, at<const int64_t>(offsets), capacity, bm, bk, rows, k, n,
                                      at<const int64_t>(work), segments, threads);
        });
  m.def("dsd",
        [](uintptr_t values, int storage, uintptr_t scale, uintptr_t offsets, uintptr_t indices, int index_size,
           uintptr_t order, int order_size, int64_t capacity, int64_t bm, int64_t bk, bool flip, int64_t rows,
           int64_t k, uintptr_t b, int64_t n, int64_t b_stride, bool b_transposed, uintptr_t c, bool column_major,
           uintptr_t work, int64_t segments, uintptr_t scratch, int threads) {
          active().dsd(at<const void>(values), storage, at<const float>(scale), at<const int64_t>(offsets),
                       at<const void>(indices), index_size, at<const void>(order), order_size, capacity, bm, bk, flip,
                       rows, k, at<const void>(b), n, b_stride, b_transposed, at<void>(c), column_major,
                       at<const int64_t>(work), segments, at<void>(scratch), threads);
        },
        unlocked);
  m.def("sdd",
        [](uintptr_t a, int64_t a_stride, bool a_transposed, uintptr_t b, int64_t b_stride, bool b_transposed,
           int64_t m, int64_t k, int64_t n, int element_size, uintptr_t offsets, uintptr_t indices, int index_size,
           int64_t bm, int64_t bn, int64_t capacity, uintptr_t values, uintptr_t packed, uintptr_t next,
           int threads) {
          active().sdd(at<const void>(a), a_stride, a_transposed, at<const void>(b), b_stride, b_transposed, m, k, n,
                       element_size, at<const int64_t>(offsets), at<const void>(indices), index_size, bm, bn, capacity,
                       at<void>(values), at<void>(packed), at<int64_t>(next), threads);
        },
        unlocked);
  m.def("skip_conv_weight_scratch",
        [](int64_t images, int64_t channels, int64_t outputs, const Axis& down, const Axis& along, bool skip_dy,
           int threads) {
          return active().skip_conv_weight_scratch(convolution(images, channels, outputs, down, along, skip_dy),
                                                   threads);
        });
  m.def("skip_conv_weight",
        [](uintptr_t x, uintptr_t dy, uintptr_t bits, int64_t images, int64_t channels, int64_t outputs,
           const Axis& down, const Axis& along, bool skip_dy, uintptr_t dw, bool channels_last, uintptr_t counts,
           uintptr_t scratch, int threads) {
          active().skip_conv_weight(at<const float>(x), at<const float>(dy), at<const uint32_t>(bits),
                                    convolution(images, channels, outputs, down, along, skip_dy), at<float>(dw),
                                    channels_last, at<int64_t>(counts), at<void>(scratch), threads);
        },
        unlocked);
  m.def("in_range",
        [](uintptr_t offsets, int64_t count, bool from_zero, uintptr_t numbers, int size, int64_t n, int64_t bound,
           int threads) {
          return active().in_range(at<const int64_t>(offsets), count, from_zero, at<const void>(numbers), size, n,
                                   bound, threads);
        },
        unlocked);
  m.def("named_once",
        [](uintptr_t offsets, int64_t count, uintptr_t numbers, int size, int64_t bound, uintptr_t bits) {
          return active().named_once(at<const int64_t>(offsets), count, at<const void>(numbers), size, bound,
                                     at<uint64_t>(bits));
        },
        unlocked);
  m.def("repeated",
        [](uintptr_t offsets, int64_t tile_rows, uintptr_t indices, int index_size, int64_t tile_cols,
           uintptr_t bits, int threads) {
          return active().repeated(at<const int64_t>(offsets), tile_rows, at<const void>(indices), index_size,
                                   tile_cols, at<uint64_t>(bits), threads);
        },
        unlocked);
  m.def("work_in_range",
        [](uintptr_t offsets, int64_t tile_rows, uintptr_t work, int64_t segments, uintptr_t bits) {
          return active().work_in_range(at<const int64_t>(offsets), tile_rows, at<const int64_t>(work), segments,
                                        at<uint64_t>(bits));
        },
        unlocked);
  m.def("transpose",
        [](uintptr_t offsets, uintptr_t indices, int index_size, int64_t tile_rows, int64_t tile_cols,
           int64_t capacity, uintptr_t counts, uintptr_t offsets_t, uintptr_t indices_t, int index_size_t,
           uintptr_t order, int threads) {
          active().transpose(at<const int64_t>(offsets), at<const void>(indices), index_size, tile_rows, tile_cols,
                             capacity, at<uint32_t>(counts), at<int64_t>(offsets_t), at<void>(indices_t),
                             index_size_t, at<int32_t>(order), threads);
        },
        unlocked);
  m.def("skip_mv_scratch", [](int64_t c) { return active().skip_mv_scratch(c); });
  m.def("skip_mv",
        [](uintptr_t x, int64_t batch, int64_t c, uintptr_t w, bool bfloat16, int64_t k, uintptr_t bias,
           float threshold, uintptr_t y, uintptr_t counts, uintptr_t scratch, int threads) {
          active().skip_mv(at<const float>(x), batch, c, at<const void>(w), bfloat16, k, at<const float>(bias),
                           threshold, at<float>(y), at<int64_t>(counts), at<void>(scratch), threads);
        },
        unlocked);
  m.def("gated_mv_scratch", [](int64_t k) { return active().gated_mv_scratch(k); });
  m.def("gated_mv",
        [](uintptr_t x, int64_t batch, int64_t c, uintptr_t w, bool bfloat16, int64_t k, uintptr_t bias,
           uintptr_t gate, uintptr_t y, uintptr_t scratch, int threads) {
          active().gated_mv(at<const float>(x), batch, c, at<const void>(w), bfloat16, k, at<const float>(bias),
                            at<const float>(gate), at<float>(y), at<void>(scratch), threads);
        },
        unlocked);
  m.def("skip_pack_outs", [](int64_t out) { return active().skip_pack_outs(out); });
  m.def("skip_pack",
        [](uintptr_t weight, int64_t out, int64_t in, int64_t r, int64_t s, int64_t out_stride, int64_t in_stride,
           int64_t r_stride, int64_t s_stride, uintptr_t packed, int threads) {
          active().skip_pack(at<const float>(weight), out, in, r, s, out_stride, in_stride, r_stride, s_stride,
                             at<float>(packed), threads);
        },
        unlocked);
  m.def("skip_pack_lanes", [](int64_t in, int64_t r) { return active().skip_pack_lanes(in, r); });
  m.def("skip_conv_scratch",
        [](int64_t n, int64_t h, int64_t w, int64_t c, int64_t out, int64_t r, int64_t s, int64_t stride_h,
           int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dil_h, int64_t dil_w, bool transposed, int64_t oh,
           int64_t ow, int threads) {
          return active().skip_conv_scratch(n, h, w, c, out, r, s, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
                                            transposed, oh, ow, threads);
        });
  m.def("skip_conv",
        [](uintptr_t x, int64_t n, int64_t h, int64_t w, int64_t c, uintptr_t packed, uintptr_t bias, uintptr_t bits,
           int64_t out, int64_t r, int64_t s, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
           int64_t dil_h, int64_t dil_w, bool transposed, int64_t oh, int64_t ow, bool relu, uintptr_t y,
           uintptr_t y_bits, uintptr_t counts, uintptr_t scratch, int threads) {
          active().skip_conv(at<const float>(x), n, h, w, c, at<const float>(packed), at<const float>(bias),
                             at<const void>(bits), out, r, s, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
                             transposed, oh, ow, relu, at<float>(y), at<void>(y_bits), at<int64_t>(counts),
                             at<void>(scratch), threads);
        },
        unlocked);
  m.def("relu_bits",
        [](uintptr_t x, int64_t rows, int64_t cols, uintptr_t y, uintptr_t bits, int threads) {
          active().relu_bits(at<const float>(x), rows, cols, at<float>(y), at<void>(bits), threads);
        },
        unlocked);
  m.def("keep_bits",
        [](uintptr_t x, uintptr_t bits, int64_t rows, int64_t cols, uintptr_t y, int threads) {
          active().keep_bits(at<const float>(x), at<const void>(bits), rows, cols, at<float>(y), threads);
        },
        unlocked);
  m.def("read",
        [](uintptr_t x, int64_t bytes, int threads) { return active().read(at<const void>(x), bytes, threads); },
        unlocked);
}
