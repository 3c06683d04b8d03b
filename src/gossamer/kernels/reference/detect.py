"""Detect: which tiles of a dense matrix hold a nonzero (`-0.0` is zero, NaN is not)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def detect(x: Tensor, bm: int, bn: int, capacity: int, ordered: bool) -> tuple[Tensor, Tensor]:
    """x[rows, cols] -> offsets int64[tile_rows + 1] (the true counts), indices[capacity] (the first tiles, then 0).

    Always ordered, which `ordered=False` allows.
    """
    rows, cols = x.shape
    tile_rows, tile_cols = (rows + bm - 1) // bm, (cols + bn - 1) // bn
    padded = pad(x != 0, (0, tile_cols * bn - cols, 0, tile_rows * bm - rows))
    tiles = padded.view(tile_rows, bm, tile_cols, bn).any(dim=3).any(dim=1)
    offsets = pad(tiles.sum(dim=1).cumsum(0), (1, 0))
    slot = torch.where(tiles, tiles.flatten().cumsum(0).view_as(tiles) - 1, capacity).clamp(max=capacity)
    column = torch.arange(tile_cols, device=x.device).expand_as(tiles)
    indices = torch.zeros(capacity + 1, dtype=torch.int64, device=x.device)
    indices.scatter_(0, slot.flatten(), column.flatten())
    return offsets, indices[:capacity].to(torch.uint16 if tile_cols <= 65536 else torch.int32)
