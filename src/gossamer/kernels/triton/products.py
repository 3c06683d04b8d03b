"""The inner loops of the products: where operands are read by index, and how a step multiplies.

A block of the result has BM x BN elements and sums over BK positions a step. With BM = 1 a step is a multiplication
and an addition per element of [BK, BN], summed over BK at the end; else it is `tl.dot`, on tensor cores for 16-bit
numbers. Positions that do not exist enter as zeros on both sides, so whatever lies in padding or slack (NaN too) does
not take part.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def no_sum(b, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The accumulator before the first step, float32 (float64 for a float64 b)."""
    if b.dtype.element_ty == tl.float64:
        acc = tl.zeros([BK if BM == 1 else BM, BN], dtype=tl.float64)
    else:
        acc = tl.zeros([BK if BM == 1 else BM, BN], dtype=tl.float32)
    return acc


@triton.jit
def add_product(acc, left, right, PRECISION: tl.constexpr):
    """acc + left[BM, BK] @ right[BK, BN]; for BM = 1, acc is [BK, BN] and not yet summed."""
    if left.shape[0] == 1:
        acc += tl.trans(left).to(acc.dtype) * right.to(acc.dtype)
    else:
        acc = tl.dot(left, right, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def summed(acc, BM: tl.constexpr):
    """The accumulator as [BM, BN]."""
    if BM == 1:
        acc = tl.sum(acc, axis=0)[None, :]
    return acc


@triton.jit
def add_tiles(
    acc, a, order, scale, indices, b, first, end, i, j, top, rows, inner, n, a_row, b_row, b_col,
    TM: tl.constexpr, TK: tl.constexpr, BK: tl.constexpr,
    TRANSPOSED: tl.constexpr, IN_PLACE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + the tiles in slots [first, end) of one tile row, times the rows of b under them, columns j.

    The columns of all these tiles form one list, of which a step takes BK: several narrow tiles or a piece of a wide
    one. i are rows within the tile. IN_PLACE: a is the matrix itself and the tile row begins at its row `top`;
    else a holds tiles [TM, TK] (TRANSPOSED: [TK, TM]), tile order[slot] times its scale.
    """
    length = ((end - first) * TK).to(tl.int32)
    for start in range(0, length, BK):
        p = start + tl.arange(0, BK)
        slot = first + p // TK
        within = p % TK
        column = tl.load(indices + slot, mask=p < length, other=0).to(tl.int64) * TK + within
        live = (p < length) & (column < inner)
        if IN_PLACE:
            here = (i < TM) & (top + i < rows)
            left = tl.load(
                a + (top + i)[:, None] * a_row + column[None, :], mask=here[:, None] & live[None, :], other=0
            )
        else:
            tile = slot
            if order is not None:
                tile = tl.load(order + slot, mask=p < length, other=0).to(tl.int64)
            if TRANSPOSED:
                element = within[None, :] * TM + i[:, None]
            else:
                element = i[:, None] * TK + within[None, :]
            left = tl.load(a + tile[None, :] * (TM * TK) + element, mask=(i < TM)[:, None] & live[None, :], other=0)
            if scale is not None:
                left = left.to(tl.float32) * tl.load(scale + tile, mask=live, other=0)[None, :]
        right = tl.load(
            b + column[:, None] * b_row + j[None, :] * b_col, mask=live[:, None] & (j < n)[None, :], other=0
        )
        acc = add_product(acc, left.to(right.dtype), right, PRECISION)
    return acc


@triton.jit
def add_panels(acc, a, a_live, a_step, b, b_live, b_step, inner, BK: tl.constexpr, PRECISION: tl.constexpr):
    """acc + A @ B over all `inner` positions: a[BM] points at the rows of A, b[BN] at the columns of B."""
    for start in range(0, inner, BK):
        p = start + tl.arange(0, BK)
        live = p < inner
        p = p.to(tl.int64)
        left = tl.load(a[:, None] + p[None, :] * a_step, mask=a_live[:, None] & live[None, :], other=0)
        right = tl.load(b[None, :] + p[:, None] * b_step, mask=live[:, None] & b_live[None, :], other=0)
        acc = add_product(acc, left, right, PRECISION)
    return acc
