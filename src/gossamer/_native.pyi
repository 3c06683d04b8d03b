"""The compiled extension. Addresses are integers (`tensor.data_ptr()`); sizes are elements unless called bytes."""

from collections.abc import Sequence

def isa() -> str: ...
def set_isa(name: str) -> None: ...
def available_isas() -> list[str]: ...
def built_isas() -> list[str]: ...
def compiler() -> str: ...
def openmp_library() -> str: ...
def detect(
    x: int, rows: int, cols: int, element_size: int, is_float: bool, bm: int, bn: int, capacity: int,
    flags: int, offsets: int, indices: int, index_size: int, cleared: bool, threads: int, /,
) -> None: ...  # fmt: skip
def gather(
    x: int, rows: int, cols: int, element_size: int, offsets: int, indices: int, index_size: int, bm: int, bn: int,
    capacity: int, values: int, threads: int, /,
) -> None: ...  # fmt: skip
def gather_mm_scratch(
    element_size: int, rows: int, k: int, capacity: int, bk: int, batch: int, n: int, threads: int, /
) -> int: ...
def gather_mm(
    a: int, element_size: int, rows: int, k: int, offsets: int, indices: int, index_size: int, bm: int, bk: int,
    capacity: int, b: int, batch: int, b_batch: int, b_row: int, b_col: int, n: int, c: int, transposed: int,
    scratch: int, threads: int, /,
) -> None: ...  # fmt: skip
def grouped_scratch(element_size: int, threads: int, /) -> int: ...
def grouped_mm(
    x: int, element_size: int, k: int, source: int, source_size: int, target: int, target_size: int, offsets: int,
    groups: int, weights: int, flip: bool, n: int, y: int, out_rows: int, scratch: int, threads: int, /,
) -> None: ...  # fmt: skip
def grouped_outer(
    x: int, element_size: int, k: int, dy: int, n: int, source: int, source_size: int, target: int,
    target_size: int, offsets: int, groups: int, dw: int, scratch: int, threads: int, /,
) -> None: ...  # fmt: skip
def scatter(
    values: int, rows: int, cols: int, element_size: int, offsets: int, indices: int, index_size: int, bm: int,
    bn: int, capacity: int, dense: int, threads: int, /,
) -> None: ...  # fmt: skip
def mask(x: int, mask: int, n: int, element_size: int, threads: int, /) -> None: ...
def select_scratch(n: int, threads: int, /) -> int: ...
def select(
    scores: int, allowed: int, n: int, k: int, largest: bool, mask: int, scratch: int, threads: int, /
) -> int: ...
def dsd_scratch(
    storage: int, in_place: bool, offsets: int, capacity: int, bm: int, bk: int, rows: int, k: int, n: int, work: int,
    segments: int, threads: int, /,
) -> int: ...  # fmt: skip
def dsd(
    values: int, storage: int, scale: int, offsets: int, indices: int, index_size: int, order: int, order_size: int,
    capacity: int, bm: int, bk: int, flip: bool, rows: int, k: int, b: int, n: int, b_stride: int, b_transposed: bool,
    c: int, column_major: bool, work: int, segments: int, scratch: int, threads: int, /,
) -> None: ...  # fmt: skip
def sdd(
    a: int, a_stride: int, a_transposed: bool, b: int, b_stride: int, b_transposed: bool, m: int, k: int, n: int,
    element_size: int, offsets: int, indices: int, index_size: int, bm: int, bn: int, capacity: int, values: int,
    packed: int, next: int, threads: int, /,
) -> None: ...  # fmt: skip
def skip_conv_weight_scratch(
    images: int, channels: int, outputs: int, down: Sequence[int], along: Sequence[int], skip_dy: bool, threads: int, /
) -> int: ...
def skip_conv_weight(
    x: int, dy: int, bits: int, images: int, channels: int, outputs: int, down: Sequence[int], along: Sequence[int],
    skip_dy: bool, dw: int, channels_last: bool, counts: int, scratch: int, threads: int, /,
) -> None: ...  # fmt: skip
def in_range(
    offsets: int, count: int, from_zero: bool, numbers: int, size: int, n: int, bound: int, threads: int, /
) -> bool: ...
def named_once(offsets: int, count: int, numbers: int, size: int, bound: int, bits: int, /) -> bool: ...
def repeated(
    offsets: int, tile_rows: int, indices: int, index_size: int, tile_cols: int, bits: int, threads: int, /
) -> int: ...
def work_in_range(offsets: int, tile_rows: int, work: int, segments: int, bits: int, /) -> int: ...
def transpose(
    offsets: int, indices: int, index_size: int, tile_rows: int, tile_cols: int, capacity: int, counts: int,
    offsets_t: int, indices_t: int, index_size_t: int, order: int, threads: int, /,
) -> None: ...  # fmt: skip
def skip_mv_scratch(c: int, /) -> int: ...
def skip_mv(
    x: int, batch: int, c: int, w: int, bfloat16: bool, k: int, bias: int, threshold: float, y: int, counts: int,
    scratch: int, threads: int, /,
) -> None: ...  # fmt: skip
def gated_mv_scratch(k: int, /) -> int: ...
def gated_mv(
    x: int, batch: int, c: int, w: int, bfloat16: bool, k: int, bias: int, gate: int, y: int, scratch: int,
    threads: int, /,
) -> None: ...  # fmt: skip
def skip_pack_outs(out: int, /) -> int: ...
def skip_pack(
    weight: int, out: int, in_: int, r: int, s: int, out_stride: int, in_stride: int, r_stride: int, s_stride: int,
    packed: int, threads: int, /,
) -> None: ...  # fmt: skip
def skip_pack_lanes(channels: int, r: int, /) -> int: ...
def skip_conv_scratch(
    n: int, h: int, w: int, c: int, out: int, r: int, s: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dil_h: int, dil_w: int, transposed: bool, oh: int, ow: int, threads: int, /,
) -> int: ...  # fmt: skip
def skip_conv(
    x: int, n: int, h: int, w: int, c: int, packed: int, bias: int, bits: int, out: int, r: int, s: int,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, dil_h: int, dil_w: int, transposed: bool, oh: int, ow: int,
    relu: bool, y: int, y_bits: int, counts: int, scratch: int, threads: int, /,
) -> None: ...  # fmt: skip
def relu_bits(x: int, rows: int, cols: int, y: int, bits: int, threads: int, /) -> None: ...
def keep_bits(x: int, bits: int, rows: int, cols: int, y: int, threads: int, /) -> None: ...
def read(x: int, bytes: int, threads: int, /) -> int: ...
