"""The gradient of the fan-in product by its values: a program owns some rows, and the whole batch for each element."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.fan_in_mm import ELEMENTS
from gossamer.kernels.triton.launch import check_float, power
from gossamer.kernels.triton.rows import on_device


@triton.jit
def sample_columns(
    dy, x, indices, values, batch, rows, k,
    BR: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """values[r, j] = the sum over b of dy[r, b] * x[indices[r, j], b]; dy is [rows, batch], x [cols, batch]."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    kind: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    for j in range(0, k):
        column = tl.load(indices + r * k + j, mask=r < rows, other=0).to(tl.int64)
        total = tl.zeros([BR, BB], dtype=kind)
        for first in range(0, batch, BB):
            b = first + tl.arange(0, BB)
            inside = (r < rows)[:, None] & (b < batch)[None, :]
            taken = tl.load(x + column[:, None] * batch + b[None, :], mask=inside, other=0).to(kind)
            total += taken * tl.load(dy + r[:, None] * batch + b[None, :], mask=inside, other=0).to(kind)
        tl.store(values + r * k + j, tl.sum(total, 1).to(values.dtype.element_ty), mask=r < rows)


def fan_in_sdd(dy: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """dy[batch, rows], x[batch, cols] -> values[rows, k]; see `gossamer.kernels.reference.fan_in_sdd`."""
    check_float("x", x)
    (batch, _), (rows, k) = x.shape, indices.shape
    values = torch.empty(rows, k, dtype=x.dtype, device=x.device)
    if values.numel():
        bb = power(batch, 16, 128)
        br = power(rows, 1, ELEMENTS // bb)
        with on_device(x):
            sample_columns[(triton.cdiv(rows, br),)](
                dy.t().contiguous(), x.t().contiguous(), indices, values, batch, rows, k, BR=br, BB=bb
            )
    return values
