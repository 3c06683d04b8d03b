"""The gradient of the fan-in product by its values: dy^T x, at the elements of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import accumulator, check_places


def fan_in_sdd(dy: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """dy[batch, rows], x[batch, cols], indices[rows, k] -> values[rows, k]."""
    columns = indices.to(torch.int64)
    check_places(columns, torch.ones_like(columns, dtype=torch.bool), x.shape[1], "indices")
    kind = accumulator(x.dtype)
    return torch.einsum("rkb,br->rk", x.to(kind).t()[columns], dy.to(kind)).to(x.dtype)
