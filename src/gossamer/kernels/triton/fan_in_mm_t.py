"""The gradient of the fan-in product by x: a product with the transposed index, so that sums have one order."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.triton.dsd import dsd
from gossamer.kernels.triton.transpose import transpose


def fan_in_mm_t(dy: Tensor, values: Tensor, indices: Tensor, cols: int) -> Tensor:
    """dy[batch, rows], values[rows, k] -> dx[batch, cols]; see `gossamer.kernels.reference.fan_in_mm_t`."""
    rows, k = values.shape
    offsets = torch.arange(rows + 1, device=dy.device) * k
    offsets_t, indices_t, order = transpose(offsets, indices.reshape(-1), cols)
    single = values.reshape(-1, 1, 1)
    return dsd(single, offsets_t, indices_t, order, None, dy.t(), cols, True, True, None).t()
