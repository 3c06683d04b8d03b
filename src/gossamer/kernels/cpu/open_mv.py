"""Which outputs of a linear layer may be above zero, for few rows (csrc/open_mv.cc)."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def open_mv(x: Tensor, whole: Tensor, edges: Tensor, bias: Tensor | None) -> Tensor:
    """Return gate float32[B, K]; see `gossamer.kernels.reference.open_mv`. float32 and int8."""
    _call.tensor(x, "x", ndim=2, dtypes=(torch.float32,))
    _call.tensor(whole, "whole", ndim=2, dtypes=(torch.int8,))
    _call.tensor(edges, "edges", ndim=2, dtypes=(torch.float32,))
    (batch, inner), (rows, columns) = x.shape, whole.shape
    if columns != inner:
        raise ValueError(f"whole must have {inner} columns like x has, got shape {tuple(whole.shape)}")
    if tuple(edges.shape) != (2, rows):
        raise ValueError(f"edges must have shape {(2, rows)}, got {tuple(edges.shape)}")
    if bias is not None:
        _call.bias(bias, rows, (torch.float32,))
    gate = memory.empty((batch, rows), torch.float32)
    norms = torch.empty(batch, dtype=torch.float32, device="cpu")
    _call.native.open_mv(
        x.data_ptr(), batch, inner, whole.data_ptr(), edges.data_ptr(), edges.data_ptr() + 4 * rows, rows,
        _call.address(bias), gate.data_ptr(), norms.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return gate
