"""dsd: sparse times dense. A program owns a block of the result: some rows of one tile row, some columns.

With `work`, a program takes the segments of one part instead. A segment that is a whole tile row is stored at once.
Others leave a partial sum, at most PARTIALS of them a part (a part that is a range of slots has two), and note in a
table of slots where they end; a second launch walks each tile row along that table and adds the partial sums in slot
order, computing itself what no part had room to keep. So there are no atomics, the memory is fixed, and the result
does not depend on which program ran first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.launch import blocks, check_float, launch, precision, side_of_block
from gossamer.kernels.triton.products import add_tiles, no_sum, summed
from gossamer.kernels.triton.rows import on_device

PARTIALS = 2
JOINED = 64  # rows and columns of a block that adds partial sums: it holds two accumulators


@triton.jit
def store_block(c, acc, tile_row, i, j, rows, n, c_row, c_col, TM: tl.constexpr, BM: tl.constexpr):
    """Store a block of the result: rows i of a tile row, columns j."""
    row = tile_row.to(tl.int64) * TM + i
    inside = ((i < TM) & (row < rows))[:, None] & (j < n)[None, :]
    tl.store(c + row[:, None] * c_row + j[None, :] * c_col, summed(acc, BM).to(c.dtype.element_ty), mask=inside)


@triton.jit
def dsd_rows(
    a, offsets, indices, order, scale, b, c, rows, inner, n, per_matrix, a_row, b_matrix, b_row, b_col, c_row, c_col,
    TM: tl.constexpr, TK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TRANSPOSED: tl.constexpr, IN_PLACE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile_row = tl.program_id(0)
    i = tl.program_id(2) * BM + tl.arange(0, BM)
    j = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    first = tl.load(offsets + tile_row)
    end = tl.load(offsets + tile_row + 1)
    b += (tile_row // per_matrix).to(tl.int64) * b_matrix
    acc = add_tiles(
        no_sum(b, BM, BN, BK), a, order, scale, indices, b, first, end, i, j, tile_row.to(tl.int64) * TM, rows,
        inner, n, a_row, b_row, b_col, TM, TK, BK, TRANSPOSED, IN_PLACE, PRECISION,
    )  # fmt: skip
    store_block(c, acc, tile_row, i, j, rows, n, c_row, c_col, TM, BM)


@triton.jit
def dsd_parts(
    a, offsets, indices, order, scale, b, c, work, ends, places, partials,
    rows, inner, n, segments, b_row, b_col, c_row, c_col,
    TM: tl.constexpr, TK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    i = tl.program_id(2) * BM + tl.arange(0, BM)
    j = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    kept = 0
    for segment in range(0, segments):
        entry = work + (part.to(tl.int64) * segments + segment) * 3
        tile_row = tl.load(entry)
        first = tl.load(entry + 1)
        end = tl.load(entry + 2)
        used = (tile_row >= 0) & (first < end)
        whole = (tl.load(offsets + tile_row, mask=used, other=0) == first) & (
            tl.load(offsets + tile_row + 1, mask=used, other=0) == end
        )
        if used:
            tl.store(ends + first, end.to(tl.int32))
            if whole | (kept < PARTIALS):
                acc = add_tiles(
                    no_sum(b, BM, BN, BK), a, order, scale, indices, b, first, end, i, j, tile_row * TM, rows,
                    inner, n, 0, b_row, b_col, TM, TK, BK, TRANSPOSED, False, PRECISION,
                )  # fmt: skip
                if whole:
                    store_block(c, acc, tile_row, i, j, rows, n, c_row, c_col, TM, BM)
                else:
                    place = part * PARTIALS + kept
                    tl.store(places + first, place + 1)
                    kept += 1
                    at = partials + (place.to(tl.int64) * TM + i)[:, None] * n + j[None, :]
                    tl.store(at, summed(acc, BM), mask=(i < TM)[:, None] & (j < n)[None, :])


@triton.jit
def dsd_joined(
    a, offsets, indices, order, scale, b, c, ends, places, partials,
    rows, inner, n, b_row, b_col, c_row, c_col,
    TM: tl.constexpr, TK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile_row = tl.program_id(0)
    i = tl.program_id(2) * BM + tl.arange(0, BM)
    j = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    slot = tl.load(offsets + tile_row)
    last = tl.load(offsets + tile_row + 1)
    if (slot == last) | (tl.load(ends + slot, mask=slot < last, other=0) != last):  # else stored as a whole
        total = tl.zeros([BM, BN], dtype=partials.dtype.element_ty)
        while slot < last:
            place = tl.load(places + slot)
            end = tl.load(ends + slot).to(tl.int64)
            end = tl.where((end > slot) & (end < last), end, last)
            if place > 0:
                at = partials + ((place - 1).to(tl.int64) * TM + i)[:, None] * n + j[None, :]
                total += tl.load(at, mask=(i < TM)[:, None] & (j < n)[None, :], other=0)
            else:
                total += summed(
                    add_tiles(
                        no_sum(b, BM, BN, BK), a, order, scale, indices, b, slot, end, i, j,
                        tile_row.to(tl.int64) * TM, rows, inner, n, 0, b_row, b_col, TM, TK, BK, TRANSPOSED, False,
                        PRECISION,
                    ), BM,
                )  # fmt: skip
            slot = end
        store_block(c, total, tile_row, i, j, rows, n, c_row, c_col, TM, BM)


def empty_result(rows: int, n: int, like: Tensor, column_major: bool) -> Tensor:
    """[rows, n], or the transposed view of a contiguous [n, rows]; not initialised."""
    shape = (n, rows) if column_major else (rows, n)
    c = torch.empty(shape, dtype=like.dtype, device=like.device)
    return c.t() if column_major else c


def dsd(
    values: Tensor, offsets: Tensor, indices: Tensor, order: Tensor | None, scale: Tensor | None, b: Tensor,
    rows: int, transposed: bool, column_major: bool, work: Tensor | None,
) -> Tensor:  # fmt: skip
    """c[rows, n] = S @ b[k, n]; see `gossamer.kernels.reference.dsd`. A scaled tile is rounded to the dtype of b."""
    check_float("b", b)
    inner, n = b.shape
    tm, tk = (values.shape[2], values.shape[1]) if transposed else (values.shape[1], values.shape[2])
    tile_rows = offsets.numel() - 1
    c = empty_result(rows, n, b, column_major)
    if c.numel() == 0:
        return c
    if values.numel() == 0 or inner == 0:
        return c.zero_()
    tile = {"TM": tm, "TK": tk, "TRANSPOSED": transposed, "PRECISION": precision(b)}
    operands = (values, offsets, indices, order, scale, b, c)
    strides = (*b.stride(), *c.stride())
    side = side_of_block(b, tk if b.stride(1) != 1 else n)

    def run(kernel: Any, programs: int, *args: Any, side: int = side, **constants: Any) -> None:
        launch(
            kernel, lambda x: (programs, triton.cdiv(n, x["BN"]), triton.cdiv(tm, x["BM"])),
            blocks(min(tm, side), min(n, side), b, deep=order is not None or indices.itemsize == 4),
            *operands, *args, **tile, **constants,
        )  # fmt: skip

    with on_device(b):
        if work is None:
            run(dsd_rows, tile_rows, rows, inner, n, tile_rows, 0, 0, *strides, IN_PLACE=False)
            return c
        parts, segments = work.shape[:2]
        ends, places = torch.zeros(2, indices.numel(), dtype=torch.int32, device=b.device)
        wide = torch.float64 if b.dtype == torch.float64 else torch.float32
        partials = torch.empty(parts * PARTIALS, tm, n, dtype=wide, device=b.device)
        table = (ends, places, partials)
        if parts * segments:
            run(dsd_parts, parts, work, *table, rows, inner, n, segments, *strides, PARTIALS=PARTIALS)
        run(dsd_joined, tile_rows, *table, rows, inner, n, *strides, side=JOINED)
    return c
