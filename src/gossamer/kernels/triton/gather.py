"""Gather (PIT's SRead) in one launch: every program finds its slots' tile rows in `offsets` and copies.

Slack and ragged padding are stored as zeros by the same program, so the output is never cleared first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.bits import as_bits
from gossamer.kernels.triton.rows import cut, on_device, row_of


@triton.jit
def gather_tiles(
    x, offsets, indices, values, rows, cols, tile_rows, capacity,
    BM: tl.constexpr, BN: tl.constexpr, SLOTS: tl.constexpr, ELEMENTS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64) * SLOTS + tl.arange(0, SLOTS)
    row = row_of(slot, offsets, tile_rows, STEPS)
    present = (slot < capacity) & (row < tile_rows)
    column = tl.load(indices + slot, mask=present, other=0)

    element = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = element < BM * BN
    i = row[:, None].to(tl.int64) * BM + (element // BN)[None, :]
    j = column[:, None].to(tl.int64) * BN + (element % BN)[None, :]
    source = present[:, None] & inside[None, :] & (i < rows) & (j < cols)
    tile = tl.load(x + i * cols + j, mask=source, other=0)
    target = (slot < capacity)[:, None] & inside[None, :]
    tl.store(values + slot[:, None] * (BM * BN) + element[None, :], tile, mask=target)


def gather(x: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    """x[rows, cols] -> values[capacity, bm, bn]; see `gossamer.kernels.reference.gather`."""
    (rows, cols), tile_rows, capacity = x.shape, offsets.numel() - 1, indices.numel()
    values = torch.empty(capacity, bm, bn, dtype=x.dtype, device=x.device)
    if values.numel():
        slots, elements = cut(bm, bn)
        grid = (triton.cdiv(capacity, slots), triton.cdiv(bm * bn, elements))
        with on_device(x):
            gather_tiles[grid](
                as_bits(x), offsets, indices, as_bits(values), rows, cols, tile_rows, capacity,
                BM=bm, BN=bn, SLOTS=slots, ELEMENTS=elements, STEPS=tile_rows.bit_length(),
            )  # fmt: skip
    return values
