"""Gather (PIT's SRead): copy the present tiles of a matrix, in slot order."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from gossamer.kernels.bits import as_bits
from gossamer.kernels.reference._slots import slots


def gather(x: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    """x[rows, cols] -> values[capacity, bm, bn]; slack slots and the padding of ragged tiles are zero."""
    rows, cols = x.shape
    tile_rows, tile_cols = (rows + bm - 1) // bm, (cols + bn - 1) // bn
    if tile_rows * tile_cols == 0:
        return x.new_zeros(indices.numel(), bm, bn)
    row, column, present = slots(offsets, indices, tile_cols)
    padded = pad(as_bits(x), (0, tile_cols * bn - cols, 0, tile_rows * bm - rows))
    tiles = padded.view(tile_rows, bm, tile_cols, bn)[row, :, column, :]
    return (tiles * present.view(-1, 1, 1)).view(x.dtype)
