"""PIT's SWrite: packed tiles back in their places, zero where no tile is."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def scatter(values: Tensor, offsets: Tensor, indices: Tensor, rows: int, cols: int) -> Tensor:
    """Return `dense[rows, cols]` from `values[capacity, bm, bn]`; see `gossamer.kernels.reference.scatter`."""
    _call.tensor(values, "values", ndim=3)
    _, bm, bn = values.shape
    if rows < 0 or cols < 0:
        raise ValueError(f"rows and cols must be at least 0, got {rows} and {cols}")
    index = _call.check_pattern(offsets, indices, rows, cols, bm, bn)
    if values.shape[0] != indices.numel():
        raise ValueError(f"values must hold one tile per index: {indices.numel()} indices, got {values.shape[0]} tiles")
    dense = memory.empty((rows, cols), values.dtype)
    if not _call.native.scatter(values.data_ptr(), values.itemsize, index, dense.data_ptr(), torch.get_num_threads()):
        _call.refuse_pattern(offsets, indices, index)
    return dense
