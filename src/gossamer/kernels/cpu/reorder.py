"""Images between the two orders of memory, planes and pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def reorder(x: Tensor) -> Tensor:
    """Return `x[B, rows, cols]` as contiguous [B, cols, rows]; see `gossamer.kernels.reference.reorder`."""
    _call.tensor(x, "x", ndim=3, dtypes=(torch.float32,))
    batch, rows, cols = x.shape
    y = memory.empty((batch, cols, rows), torch.float32)
    _call.native.reorder(x.data_ptr(), batch, rows, cols, y.data_ptr(), torch.get_num_threads())
    return y
