"""The index of the transposed pattern, and the slot that each of its tiles has in the original."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import slots


def transpose(offsets: Tensor, indices: Tensor, tile_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> (offsets_t int64[tile_cols + 1], indices_t[capacity], order int32[capacity]).

    Rows ascend within each new row; in the slack the index is 0 and `order[s] = s`.
    """
    tile_rows = offsets.shape[0] - 1
    row, column, present = slots(offsets, indices, tile_cols)
    after = tile_rows * tile_cols
    key, order = torch.where(present, column * tile_rows + row, after).sort(stable=True)
    starts = torch.arange(tile_cols + 1, device=offsets.device) * tile_rows
    dtype = torch.uint16 if tile_rows <= 65536 else torch.int32
    return torch.searchsorted(key, starts), (key % max(tile_rows, 1)).to(dtype), order.to(torch.int32)
