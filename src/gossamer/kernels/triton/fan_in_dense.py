"""The step of a classifier by dense tiles: a block of labels is scattered into a tile, which tensor cores multiply.

The tile is [labels of a block, cols] in memory, small enough for the L2 of a large GPU. It first holds the weights,
then their gradient, of which the elements that are there are gathered.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gossamer.kernels.triton.fan_in_rules import along_batch, keep_gradient, update, update_bias


@triton.jit(do_not_specialize=["begin"])
def densify(values, indices, tile, begin, labels, k, cols, BR: tl.constexpr):
    """tile[r - begin, indices[r, j]] += values[r, j]; a lane has a row of its own, which may name a column twice."""
    here = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    r = begin.to(tl.int64) + here
    exists = r < labels
    for j in range(0, k):
        at = tile + here * cols + tl.load(indices + r * k + j, mask=exists, other=0).to(tl.int64)
        value = tl.load(values + r * k + j, mask=exists, other=0).to(tl.float32)
        tl.store(at, tl.load(at, mask=exists, other=0) + value, mask=exists)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["begin"])
def dense_logits(
    xt, tile, bias, g, losses, begin, labels, batch, cols, scale,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LOSS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """g = the gradient of the loss by the logits tile @ xt + bias."""
    here = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    b = tl.program_id(1) * BN + tl.arange(0, BN)
    r = begin.to(tl.int64) + here
    exists = r < labels
    z = tl.zeros([BM, BN], dtype=tl.float32)
    for left in range(0, cols, BK):
        c = left + tl.arange(0, BK)
        w = tl.load(tile + here[:, None] * cols + c[None, :], mask=exists[:, None] & (c < cols)[None, :], other=0)
        x = tl.load(xt + c[:, None] * batch + b[None, :], mask=(c < cols)[:, None] & (b < batch)[None, :], other=0)
        z = tl.dot(w, x, z, input_precision=PRECISION)
    if bias is not None:
        z += tl.load(bias + r, mask=exists, other=0)[:, None]
    at = g + here[:, None] * batch + b[None, :]
    keep_gradient(z, at, exists[:, None] & (b < batch)[None, :], scale, losses, LOSS)


@triton.jit
def dense_spread(
    tile, g, partial, rows, batch, cols, per_part,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial[part, column, b] += the sum over the rows of a part of tile * g: one program for each block of them."""
    c = tl.program_id(0) * BM + tl.arange(0, BM)
    b = tl.program_id(1) * BN + tl.arange(0, BN)
    part = tl.program_id(2).to(tl.int64)
    inside = (c < cols)[:, None] & (b < batch)[None, :]
    end = tl.minimum((part + 1) * per_part, rows)
    at = partial + (part * cols + c[:, None]) * batch + b[None, :]
    total = tl.load(at, mask=inside, other=0)
    for first in range(part * per_part, end, BK):
        r = (first + tl.arange(0, BK)).to(tl.int64)
        w = tl.load(tile + r[None, :] * cols + c[:, None], mask=(c < cols)[:, None] & (r < end)[None, :], other=0)
        each = tl.load(g + r[:, None] * batch + b[None, :], mask=(r < end)[:, None] & (b < batch)[None, :], other=0)
        total = tl.dot(w, each, total, input_precision=PRECISION)
    tl.store(at, total, mask=inside)


@triton.jit
def dense_sample(
    xt, tile, g, rows, batch, cols,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """tile = g @ x: the gradient of every weight of the block, there or not."""
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], dtype=tl.float32)
    for left in range(0, batch, BK):
        b = left + tl.arange(0, BK)
        each = tl.load(g + r[:, None] * batch + b[None, :], mask=(r < rows)[:, None] & (b < batch)[None, :], other=0)
        x = tl.load(xt + c[None, :] * batch + b[:, None], mask=(c < cols)[None, :] & (b < batch)[:, None], other=0)
        total = tl.dot(each, x, total, input_precision=PRECISION)
    tl.store(tile + r[:, None] * cols + c[None, :], total, mask=(r < rows)[:, None] & (c < cols)[None, :])


@triton.jit(do_not_specialize=["begin", "low", "high"])
def dense_update(
    tile, values, indices, bias, value_first, value_second, bias_first, bias_second, g, begin, labels, batch, k, cols,
    low, high, rate, decay, beta1, gain1, beta2, gain2, root, eps,
    BR: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, OPTIMIZER: tl.constexpr, RESTS: tl.constexpr,
):  # fmt: skip
    """values, bias and states of BR labels by the gradients in the tile, gathered where the values lie."""
    here = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    r = begin.to(tl.int64) + here
    exists = r < labels
    by_bias, live = along_batch(g, here, exists, batch, BR, BB)
    update_bias(
        bias, by_bias, bias_first, bias_second, r, exists, rate, beta1, gain1, beta2, gain2, root, eps, OPTIMIZER
    )
    if RESTS:
        exists = exists & live
    for left in range(0, k, BK):
        j = left + tl.arange(0, BK)
        inside = exists[:, None] & (j < k)[None, :]
        column = tl.load(indices + r[:, None] * k + j[None, :], mask=inside, other=0).to(tl.int64)
        gradient = tl.load(tile + here[:, None] * cols + column, mask=inside, other=0)
        update(values, gradient, value_first, value_second, r, j, inside, k, low, high, rate, decay, beta1, gain1,
               beta2, gain2, root, eps, OPTIMIZER)  # fmt: skip
