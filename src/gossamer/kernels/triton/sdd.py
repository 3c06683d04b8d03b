"""sdd: the product of two dense matrices at the tiles of a pattern. Tiles of a row share the rows of a.

The columns under the tiles of one tile row form a list; a program takes BN of it, so narrow tiles fill a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.launch import blocks, check_float, launch, precision, side_of_block
from gossamer.kernels.triton.products import add_panels, no_sum, summed
from gossamer.kernels.triton.rows import block_of, on_device


@triton.jit
def sdd_blocks(
    a, b, offsets, indices, values, rows, inner, cols, tile_rows, a_row, a_col, b_row, b_col,
    TM: tl.constexpr, TN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    tile_row, first, end = block_of(tl.program_id(0), offsets, 1, tile_rows, TN, BN, STEPS)
    if first < end:
        i = tl.program_id(1) * BM + tl.arange(0, BM)
        row = tile_row.to(tl.int64) * TM + i
        q = first + tl.arange(0, BN)
        slot = q // TN
        column = tl.load(indices + slot, mask=q < end, other=0).to(tl.int64) * TN + q % TN
        up = (i < TM) & (row < rows)
        left = (q < end) & (column < cols)
        acc = no_sum(b, BM, BN, BK)
        acc = add_panels(acc, a + row * a_row, up, a_col, b + column * b_col, left, b_row, inner, BK, PRECISION)
        at = values + slot[None, :] * (TM * TN) + i[:, None] * TN + (q % TN)[None, :]
        tl.store(at, summed(acc, BM).to(values.dtype.element_ty), mask=up[:, None] & left[None, :])


def sdd(a: Tensor, b: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    """values[capacity, bm, bn] = (a[m, k] @ b[k, n]) at the pattern; see `gossamer.kernels.reference.sdd`."""
    check_float("a", a)
    (rows, inner), cols = a.shape, b.shape[1]
    tile_rows, capacity = offsets.numel() - 1, indices.numel()
    values = torch.zeros(capacity, bm, bn, dtype=a.dtype, device=a.device)
    if values.numel() and inner and tile_rows:
        side = side_of_block(b, bn if b.stride(0) != 1 else inner)
        with on_device(a):
            launch(
                sdd_blocks, lambda x: (capacity * bn // x["BN"] + tile_rows, triton.cdiv(bm, x["BM"])),
                blocks(min(bm, side), min(capacity * bn, side), a),
                a, b, offsets, indices, values, rows, inner, cols, tile_rows, *a.stride(), *b.stride(),
                TM=bm, TN=bn, PRECISION=precision(a), STEPS=tile_rows.bit_length(),
            )  # fmt: skip
    return values
