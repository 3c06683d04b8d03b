"""Scatter (PIT's SWrite): write tiles back to their places in a matrix that is zero elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.bits import as_bits
from gossamer.kernels.reference._slots import slots


def scatter(values: Tensor, offsets: Tensor, indices: Tensor, rows: int, cols: int) -> Tensor:
    """values[capacity, bm, bn] -> dense[rows, cols]; absent tiles are zero, slack and ragged padding are dropped."""
    _, bm, bn = values.shape
    tile_rows, tile_cols = (rows + bm - 1) // bm, (cols + bn - 1) // bn
    row, column, present = slots(offsets, indices, tile_cols)
    tile = torch.where(present, row * tile_cols + column, tile_rows * tile_cols)
    bits = as_bits(values)
    tiles = bits.new_zeros(tile_rows * tile_cols + 1, bm, bn)  # one more, where the slack goes
    tiles[tile] = bits
    padded = tiles[:-1].view(tile_rows, tile_cols, bm, bn).transpose(1, 2).reshape(tile_rows * bm, tile_cols * bn)
    return padded[:rows, :cols].contiguous().view(values.dtype)
