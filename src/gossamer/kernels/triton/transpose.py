"""transpose: the index of the transposed pattern, by a stable sort of the columns; the host learns nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def transpose(offsets: Tensor, indices: Tensor, tile_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """(offsets_t int64[tile_cols + 1], indices_t[capacity], order int32[capacity]); see the reference.

    Slots are in row order, so a stable sort by column leaves rows ascending; slack sorts last, in its own places.
    """
    tile_rows = offsets.numel() - 1
    slot = torch.arange(indices.numel(), device=offsets.device)
    row = torch.searchsorted(offsets[1:], slot, right=True)
    present = row < tile_rows
    columns, order = torch.where(present, indices.to(torch.int32), tile_cols).sort(stable=True)
    offsets_t = torch.searchsorted(columns, torch.arange(tile_cols + 1, dtype=torch.int32, device=offsets.device))
    rows = torch.where(present, row[order], 0)
    return offsets_t, rows.to(torch.uint16 if tile_rows <= 65536 else torch.int32), order.to(torch.int32)
