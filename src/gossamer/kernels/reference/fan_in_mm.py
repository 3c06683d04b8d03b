"""The fan-in product: a matrix of which every row has the same number of elements, times a dense one."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import accumulator, check_places


def fan_in_mm(x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """x[batch, cols], values[rows, k], indices[rows, k] -> y[batch, rows], the transposed view of a contiguous one."""
    columns = indices.to(torch.int64)
    check_places(columns, torch.ones_like(columns, dtype=torch.bool), x.shape[1], "indices")
    kind = accumulator(x.dtype)
    y = torch.einsum("rkb,rk->rb", x.to(kind).t()[columns], values.to(kind))
    return y.to(x.dtype).t()
