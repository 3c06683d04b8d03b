"""The fan-in product: a program owns some rows of the matrix and some of the batch, and gathers x by its columns.

x is read transposed, so that what a column holds for the batch lies side by side: one index serves a row of loads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.launch import check_float, power
from gossamer.kernels.triton.rows import on_device

ELEMENTS = 4096  # of an accumulator: 32 registers for each thread of 4 warps


@triton.jit
def add_columns(
    x, values, indices, y, batch, rows, k,
    BR: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """y[r, b] = the sum over j of values[r, j] * x[indices[r, j], b]; x is [cols, batch], y [rows, batch]."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    inside = (r < rows)[:, None] & (b < batch)[None, :]
    kind: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([BR, BB], dtype=kind)
    for j in range(0, k):
        column = tl.load(indices + r * k + j, mask=r < rows, other=0).to(tl.int64)
        value = tl.load(values + r * k + j, mask=r < rows, other=0).to(kind)
        taken = tl.load(x + column[:, None] * batch + b[None, :], mask=inside, other=0).to(kind)
        total += value[:, None] * taken
    tl.store(y + r[:, None] * batch + b[None, :], total.to(y.dtype.element_ty), mask=inside)


def fan_in_mm(x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """x[batch, cols], values[rows, k] -> y[batch, rows]; see `gossamer.kernels.reference.fan_in_mm`."""
    check_float("x", x)
    (batch, _), (rows, k) = x.shape, values.shape
    y = torch.empty(rows, batch, dtype=x.dtype, device=x.device)
    if y.numel():
        bb = power(batch, 16, 128)
        br = power(rows, 1, ELEMENTS // bb)
        grid = (triton.cdiv(rows, br), triton.cdiv(batch, bb))
        with on_device(x):
            add_columns[grid](x.t().contiguous(), values, indices, y, batch, rows, k, BR=br, BB=bb)
    return y.t()
