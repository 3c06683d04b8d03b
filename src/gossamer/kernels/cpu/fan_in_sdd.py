"""The gradient of the fan-in product by its values."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def fan_in_sdd(dy: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """Return `values[rows, k]`; see `gossamer.kernels.reference.fan_in_sdd`. dy and x are read in either order."""
    left = _call.matrix(dy, "dy", dtypes=(torch.float32, torch.float64))
    right = _call.matrix(x, "x", dtypes=(dy.dtype,))
    _call.tensor(indices, "indices", ndim=2, dtypes=(torch.uint16, torch.int32))
    (batch, rows), cols, k = dy.shape, x.shape[1], indices.shape[1]
    if x.shape[0] != batch:
        raise ValueError(f"x must have the {batch} rows of dy, got {x.shape[0]}")
    if indices.shape[0] != rows:
        raise ValueError(f"indices must have a row for each of dy's {rows} columns, got {indices.shape[0]}")
    values = memory.empty((rows, k), dy.dtype)
    workspace = torch.empty(
        _call.native.fan_in_sdd_workspace(dy.itemsize, batch, cols), dtype=torch.uint8, device="cpu"
    )
    if not _call.native.fan_in_sdd(
        left, right, batch, rows, cols, dy.itemsize, indices.data_ptr(), indices.itemsize, k, values.data_ptr(),
        workspace.data_ptr(), torch.get_num_threads(),
    ):  # fmt: skip
        _call.check_bounds("indices", "column", indices.reshape(-1), 0, cols)
        _call.refuse_changed("indices")
    return values
