"""Scatter (PIT's SWrite): clear the matrix, then one launch writes the present tiles to their places.

No two slots share a tile, so there are no atomics and the result does not depend on the order of programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.bits import as_bits
from gossamer.kernels.triton.rows import cut, on_device, row_of


@triton.jit
def scatter_tiles(
    values, offsets, indices, dense, rows, cols, tile_rows, capacity,
    BM: tl.constexpr, BN: tl.constexpr, SLOTS: tl.constexpr, ELEMENTS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64) * SLOTS + tl.arange(0, SLOTS)
    row = row_of(slot, offsets, tile_rows, STEPS)
    present = (slot < capacity) & (row < tile_rows)
    column = tl.load(indices + slot, mask=present, other=0)

    element = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    i = row[:, None].to(tl.int64) * BM + (element // BN)[None, :]
    j = column[:, None].to(tl.int64) * BN + (element % BN)[None, :]
    moved = present[:, None] & (element < BM * BN)[None, :] & (i < rows) & (j < cols)
    tile = tl.load(values + slot[:, None] * (BM * BN) + element[None, :], mask=moved, other=0)
    tl.store(dense + i * cols + j, tile, mask=moved)


def scatter(values: Tensor, offsets: Tensor, indices: Tensor, rows: int, cols: int) -> Tensor:
    """values[capacity, bm, bn] -> dense[rows, cols]; see `gossamer.kernels.reference.scatter`."""
    (capacity, bm, bn), tile_rows = values.shape, offsets.numel() - 1
    dense = torch.zeros(rows, cols, dtype=values.dtype, device=values.device)
    if values.numel() and dense.numel():
        slots, elements = cut(bm, bn)
        grid = (triton.cdiv(capacity, slots), triton.cdiv(bm * bn, elements))
        with on_device(values):
            scatter_tiles[grid](
                as_bits(values), offsets, indices, as_bits(dense), rows, cols, tile_rows, capacity,
                BM=bm, BN=bn, SLOTS=slots, ELEMENTS=elements, STEPS=tile_rows.bit_length(),
            )  # fmt: skip
    return dense
