"""Sampled product: of a @ b, only the tiles that a pattern names."""

from __future__ import annotations

from torch import Tensor

from gossamer.kernels.reference._slots import accumulator, bands, inside, slots


def sdd(a: Tensor, b: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    """a[m, k], b[k, n] -> values[capacity, bm, bn]; slack and the padding of ragged tiles are zero."""
    row, column, present = slots(offsets, indices, -(-b.shape[1] // bn))
    kind = accumulator(a.dtype)
    left = bands(a.to(kind), bm)[row]
    right = bands(b.t().to(kind), bn)[column].transpose(1, 2)
    whole = present.view(-1, 1, 1) & inside(row, column, (bm, bn), (a.shape[0], b.shape[1]))
    return (left @ right).masked_fill(~whole, 0).to(a.dtype)
