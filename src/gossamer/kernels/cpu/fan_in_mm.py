"""The fan-in product: every row of the matrix has k elements, which lie side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def fan_in_mm(x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """Return `y[batch, rows]`, transposed; see `gossamer.kernels.reference.fan_in_mm`. x is read in either order."""
    operand = _call.matrix(x, "x", dtypes=(torch.float32, torch.float64))
    _call.tensor(values, "values", ndim=2, dtypes=(x.dtype,))
    _call.tensor(indices, "indices", ndim=2, dtypes=(torch.uint16, torch.int32))
    if indices.shape != values.shape:
        raise ValueError(f"indices must have the shape {tuple(values.shape)} of values, got {tuple(indices.shape)}")
    (batch, cols), (rows, k) = x.shape, values.shape
    y = memory.empty((rows, batch), x.dtype)
    workspace = torch.empty(_call.native.fan_in_mm_workspace(x.itemsize, batch, cols), dtype=torch.uint8, device="cpu")
    if not _call.native.fan_in_mm(
        operand, batch, cols, values.data_ptr(), x.itemsize, indices.data_ptr(), indices.itemsize, rows, k,
        y.data_ptr(), workspace.data_ptr(), torch.get_num_threads(),
    ):  # fmt: skip
        _call.check_bounds("indices", "column", indices.reshape(-1), 0, cols)
        _call.refuse_changed("indices")
    return y.t()
