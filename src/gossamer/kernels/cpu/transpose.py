"""The index of the transposed pattern: a counting sort of the slots by tile column."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call


def transpose(offsets: Tensor, indices: Tensor, tile_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `(offsets_t, indices_t, order)`; see `gossamer.kernels.reference.transpose`."""
    _call.tensor(offsets, "offsets", ndim=1, dtypes=(torch.int64,))
    tile_rows, capacity = offsets.numel() - 1, indices.numel()
    if tile_rows < 0:
        raise ValueError("offsets must have one entry more than there are tile rows, got 0 entries")
    _call.count(tile_cols, "tile_cols")
    index = _call.check_pattern(offsets, indices, tile_rows, tile_cols, 1, 1)
    if capacity > torch.iinfo(torch.int32).max:
        raise ValueError(f"indices must have fewer than 2^31 entries, the range of order, got {capacity}")
    offsets_t = torch.empty(tile_cols + 1, dtype=torch.int64, device="cpu")
    indices_t = torch.empty(capacity, dtype=_call.index_dtype(tile_rows), device="cpu")
    order = torch.empty(capacity, dtype=torch.int32, device="cpu")
    threads = torch.get_num_threads()
    counts = torch.empty(threads * tile_cols, dtype=torch.int32, device="cpu")  # memory that few slots never touch
    if not _call.native.transpose(
        index, counts.data_ptr(), offsets_t.data_ptr(), indices_t.data_ptr(), indices_t.itemsize, order.data_ptr(),
        threads,
    ):  # fmt: skip
        _call.refuse_pattern(offsets, indices, index)
    return offsets_t, indices_t, order
