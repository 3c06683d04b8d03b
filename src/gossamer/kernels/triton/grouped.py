"""grouped_mm and grouped_outer: one weight matrix per group, groups of any length, lengths known to the device only.

The grid has room for every way the positions can fall into groups; a program finds its block by binary search and
leaves at once when there is none. Rows are gathered as they are loaded and scattered as they are stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.launch import blocks, check_float, launch, precision
from gossamer.kernels.triton.products import add_panels, add_product, no_sum, summed
from gossamer.kernels.triton.rows import block_of, on_device


@triton.jit
def named(list_, p, live):
    """What position p names: list_[p], or p itself without a list."""
    row = p
    if list_ is not None:
        row = tl.load(list_ + p, mask=live, other=0).to(tl.int64)
    return row


@triton.jit
def grouped_rows(
    x, source, target, offsets, weights, y, inner, n, groups, x_row, x_col, w_group, w_row, w_col, y_row,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    group, first, end = block_of(tl.program_id(0), offsets, 1, groups, 1, BM, STEPS)
    if first < end:
        p = first + tl.arange(0, BM)
        up = p < end
        j = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
        across = weights + group.to(tl.int64) * w_group + j * w_col
        acc = no_sum(weights, BM, BN, BK)
        acc = add_panels(acc, x + named(source, p, up) * x_row, up, x_col, across, j < n, w_row, inner, BK, PRECISION)
        at = y + named(target, p, up)[:, None] * y_row + j[None, :]
        tl.store(at, summed(acc, BM).to(y.dtype.element_ty), mask=up[:, None] & (j < n)[None, :])


@triton.jit
def grouped_squares(
    x, dy, source, target, offsets, dw, k, n, x_row, x_col, dy_row, dy_col,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    i = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    j = tl.program_id(2).to(tl.int64) * BN + tl.arange(0, BN)
    first = tl.load(offsets + group)
    end = tl.load(offsets + group + 1)
    acc = no_sum(dy, BM, BN, BK)
    for start in range(0, (end - first).to(tl.int32), BK):
        p = first + start + tl.arange(0, BK)
        live = p < end
        left = x + named(source, p, live)[None, :] * x_row + i[:, None] * x_col
        right = dy + named(target, p, live)[:, None] * dy_row + j[None, :] * dy_col
        acc = add_product(
            acc, tl.load(left, mask=(i < k)[:, None] & live[None, :], other=0),
            tl.load(right, mask=live[:, None] & (j < n)[None, :], other=0), PRECISION,
        )  # fmt: skip
    at = dw + (group.to(tl.int64) * k + i)[:, None] * n + j[None, :]
    tl.store(at, summed(acc, BM).to(dw.dtype.element_ty), mask=(i < k)[:, None] & (j < n)[None, :])


def grouped_mm(
    x: Tensor,
    source: Tensor | None,
    target: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    transposed: bool,
    out_rows: int,
) -> Tensor:
    """y[target[p]] = x[source[p]] @ weights[group of p]; see `gossamer.kernels.reference.grouped_mm`."""
    check_float("weights", weights)
    weights = weights.transpose(1, 2) if transposed else weights
    groups, inner, n = weights.shape
    y = torch.zeros(out_rows, n, dtype=weights.dtype, device=weights.device)
    lists = [each.numel() for each in (source, target) if each is not None]
    positions = min(lists or [x.shape[0], out_rows])
    if y.numel() and positions and inner and groups:
        choices = blocks(max(positions // groups, 2), n, weights)
        with on_device(weights):
            launch(
                grouped_rows, lambda z: (positions // z["BM"] + groups, triton.cdiv(n, z["BN"])), choices,
                x, source, target, offsets, weights, y, inner, n, groups, *x.stride(), *weights.stride(), n,
                PRECISION=precision(weights), STEPS=groups.bit_length(),
            )  # fmt: skip
    return y


def grouped_outer(x: Tensor, dy: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor) -> Tensor:
    """dw[g] = sum over p of x[source[p]]^T dy[target[p]]; see `gossamer.kernels.reference.grouped_outer`."""
    check_float("dy", dy)
    groups, k, n = offsets.numel() - 1, x.shape[1], dy.shape[1]
    dw = torch.empty(groups, k, n, dtype=dy.dtype, device=dy.device)
    if dw.numel():
        choices = blocks(max(k, 2), n, dy, deep=source is not None or target is not None)
        with on_device(dy):
            launch(
                grouped_squares, lambda z: (groups, triton.cdiv(k, z["BM"]), triton.cdiv(n, z["BN"])), choices,
                x, dy, source, target, offsets, dw, k, n, *x.stride(), *dy.stride(), PRECISION=precision(dy),
            )  # fmt: skip
    return dw
