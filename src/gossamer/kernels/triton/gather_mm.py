"""gather_mm: dense memory that holds zeros, times dense; only the tiles of a pattern are read, where they lie (PIT).

Tiles of one whole row (the m-axis): the rows of a matrix that are present form a list, and a program multiplies BM of
them. Any other tile: the columns of a tile row form the list, as in dsd (tiles [bm, 1]: the k-axis).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.dsd import dsd_rows, empty_result
from gossamer.kernels.triton.launch import blocks, check_float, launch, precision
from gossamer.kernels.triton.products import add_panels, no_sum, summed
from gossamer.kernels.triton.rows import block_of, on_device, row_of


@triton.jit
def listed_rows(
    a, offsets, b, c, rows, inner, n, batch, per_matrix, b_matrix, b_row, b_col, c_row, c_col,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, STEPS: tl.constexpr, BATCH_STEPS: tl.constexpr,
):  # fmt: skip
    matrix, first, end = block_of(tl.program_id(0), offsets, per_matrix, batch, 1, BM, BATCH_STEPS)
    if first < end:
        slot = first + tl.arange(0, BM)
        row = row_of(slot, offsets, rows, STEPS).to(tl.int64)
        up = (slot < end) & (row < rows)
        j = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
        b += matrix.to(tl.int64) * b_matrix
        acc = no_sum(b, BM, BN, BK)
        acc = add_panels(acc, a + row * inner, up, 1, b + j * b_col, j < n, b_row, inner, BK, PRECISION)
        at = c + row[:, None] * c_row + j[None, :] * c_col
        tl.store(at, summed(acc, BM).to(c.dtype.element_ty), mask=up[:, None] & (j < n)[None, :])


def gather_mm(a: Tensor, offsets: Tensor, indices: Tensor, bm: int, bk: int, b: Tensor, column_major: bool) -> Tensor:
    """c[rows, n] = (a[rows, k] at the pattern's tiles) @ b[batch, k, n]; see `gossamer.kernels.reference.gather_mm`."""
    check_float("b", b)
    (rows, inner), (batch, _, n) = a.shape, b.shape
    tile_rows, capacity = offsets.numel() - 1, indices.numel()
    c = empty_result(rows, n, b, column_major)
    if c.numel() == 0:
        return c
    if capacity == 0 or inner == 0:
        return c.zero_()
    per_matrix = tile_rows // batch
    with on_device(b):
        if bm == 1 and bk >= inner:
            c.zero_()
            launch(
                listed_rows, lambda x: (capacity // x["BM"] + batch, triton.cdiv(n, x["BN"])),
                blocks(max(capacity // batch, 2), n, b), a, offsets, b, c, rows, inner, n, batch, per_matrix,
                *b.stride(), *c.stride(), PRECISION=precision(b), STEPS=rows.bit_length(),
                BATCH_STEPS=batch.bit_length(),
            )  # fmt: skip
        else:
            launch(
                dsd_rows, lambda x: (tile_rows, triton.cdiv(n, x["BN"]), triton.cdiv(bm, x["BM"])),
                blocks(bm, n, b, deep=indices.itemsize == 4),
                a, offsets, indices, None, None, b, c, rows, inner, n, per_matrix, inner, *b.stride(), *c.stride(),
                TM=bm, TK=bk, TRANSPOSED=False, IN_PLACE=True, PRECISION=precision(b),
            )  # fmt: skip
    return c
