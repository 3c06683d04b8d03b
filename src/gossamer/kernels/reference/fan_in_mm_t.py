"""The gradient of the fan-in product by x: dy times a matrix of which every row has the same number of elements."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import accumulator, check_places


def fan_in_mm_t(dy: Tensor, values: Tensor, indices: Tensor, cols: int) -> Tensor:
    """dy[batch, rows], values[rows, k], indices[rows, k] below cols -> dx[batch, cols]."""
    columns = indices.to(torch.int64)
    check_places(columns, torch.ones_like(columns, dtype=torch.bool), cols, "indices")
    kind = accumulator(dy.dtype)
    each = dy.to(kind)[:, :, None] * values.to(kind)
    dx = torch.zeros(dy.shape[0], cols, dtype=kind, device=dy.device)
    return dx.index_add_(1, columns.reshape(-1), each.reshape(dy.shape[0], columns.numel())).to(dy.dtype)
