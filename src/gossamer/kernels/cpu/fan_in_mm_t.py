"""The gradient of the fan-in product by x."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call


def fan_in_mm_t(dy: Tensor, values: Tensor, indices: Tensor, cols: int) -> Tensor:
    """Return `dx[batch, cols]`; see `gossamer.kernels.reference.fan_in_mm_t`. dy is read in either order."""
    operand = _call.matrix(dy, "dy", dtypes=(torch.float32, torch.float64))
    _call.tensor(values, "values", ndim=2, dtypes=(dy.dtype,))
    _call.tensor(indices, "indices", ndim=2, dtypes=(torch.uint16, torch.int32))
    _call.count(cols, "cols")
    (batch, rows), k = dy.shape, values.shape[1]
    if indices.shape != values.shape:
        raise ValueError(f"indices must have the shape {tuple(values.shape)} of values, got {tuple(indices.shape)}")
    if values.shape[0] != rows:
        raise ValueError(f"values must have a row for each of dy's {rows} columns, got {values.shape[0]}")
    if max(batch, 1) * max(cols, 1) > _call.MOST:
        raise ValueError(f"batch * cols must be at most 2**56, got {batch} * {cols}")
    threads = torch.get_num_threads()
    dx = torch.empty((batch, cols), dtype=dy.dtype, device="cpu")
    room = _call.native.fan_in_mm_t_workspace(dy.itemsize, batch, rows, cols, k, threads)
    workspace = torch.empty(room, dtype=torch.uint8, device="cpu")
    if not _call.native.fan_in_mm_t(
        operand, batch, rows, values.data_ptr(), dy.itemsize, indices.data_ptr(), indices.itemsize, k, dx.data_ptr(),
        cols, workspace.data_ptr(), threads,
    ):  # fmt: skip
        _call.check_bounds("indices", "column", indices.reshape(-1), 0, cols)
        _call.refuse_changed("indices")
    return dx
