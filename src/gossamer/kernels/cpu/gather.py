"""PIT's SRead: the present tiles of a matrix, packed one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def gather(x: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    """Return `values[capacity, bm, bn]`; see `gossamer.kernels.reference.gather`."""
    _call.tensor(x, "x", ndim=2)
    rows, cols = x.shape
    index = _call.check_pattern(offsets, indices, rows, cols, bm, bn)
    values = memory.empty((indices.numel(), bm, bn), x.dtype)
    if not _call.native.gather(x.data_ptr(), x.itemsize, index, values.data_ptr(), torch.get_num_threads()):
        _call.refuse_pattern(offsets, indices, index)
    return values
