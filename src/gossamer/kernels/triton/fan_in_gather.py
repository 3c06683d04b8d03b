"""The step of a classifier by gathering: labels meet the rows of x^T that they name. Labels of a group gather once.

x^T is [cols, batch], so that one index serves a row of loads; g is [labels of a block, batch]: targets at first, then
gradients by the logits. A unit is a row of indices, of GROUP labels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gossamer.kernels.triton.fan_in_rules import along_batch, keep_gradient, update, update_bias


@triton.jit
def row_logits(xt, values, indices, bias, r, b, exists, batch, k, BR: tl.constexpr, BB: tl.constexpr):
    """bias[r] + the sum over j of values[r, j] * xt[indices[r, j], b]: labels with indices of their own."""
    inside = exists[:, None] & (b < batch)[None, :]
    z = tl.zeros([BR, BB], dtype=tl.float32)
    if bias is not None:
        z += tl.load(bias + r, mask=exists, other=0)[:, None]
    for j in range(0, k):
        column = tl.load(indices + r * k + j, mask=exists, other=0).to(tl.int64)
        value = tl.load(values + r * k + j, mask=exists, other=0).to(tl.float32)
        z += value[:, None] * tl.load(xt + column[:, None] * batch + b[None, :], mask=inside, other=0)
    return z


@triton.jit
def group_logits(xt, values, indices, bias, unit, r, b, exists, batch, k,
                 BR: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The same of the labels of one unit: the rows of x^T are gathered once, and multiplied as a dense tile."""
    z = tl.zeros([BR, BB], dtype=tl.float32)
    if bias is not None:
        z += tl.load(bias + r, mask=exists, other=0)[:, None]
    for left in range(0, k, BK):
        j = left + tl.arange(0, BK)
        column = tl.load(indices + unit * k + j, mask=j < k, other=0).to(tl.int64)
        x = tl.load(xt + column[:, None] * batch + b[None, :], mask=(j < k)[:, None] & (b < batch)[None, :], other=0)
        w = tl.load(values + r[:, None] * k + j[None, :], mask=exists[:, None] & (j < k)[None, :], other=0)
        z = tl.dot(w.to(tl.float32), x, z, input_precision=PRECISION)
    return z


@triton.jit(do_not_specialize=["begin"])
def gather_logits(
    xt, values, indices, bias, g, losses, begin, labels, batch, k, scale,
    BR: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, LOSS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """g[r - begin, b] = the gradient of the loss by the logits, for labels [begin, labels)."""
    here = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    r = begin.to(tl.int64) + here
    exists = r < labels
    if GROUP == 1:
        z = row_logits(xt, values, indices, bias, r, b, exists, batch, k, BR, BB)
    else:
        unit = begin.to(tl.int64) // GROUP + tl.program_id(0)
        z = group_logits(xt, values, indices, bias, unit, r, b, exists, batch, k, BR, BB, BK, PRECISION)
    at = g + here[:, None] * batch + b[None, :]
    keep_gradient(z, at, exists[:, None] & (b < batch)[None, :], scale, losses, LOSS)


@triton.jit(do_not_specialize=["begin"])
def spread(
    values, indices, g, partial, begin, labels, batch, k, cols, blocks, per_part,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """partial[part, column, b] += the sum over its labels of values * g. A program owns its part and its b.

    A block is MEMBERS labels of one unit. One row at a time is read, added to and written: a unit may name a column
    twice. Every lane has a b of its own (BB is the threads of the program), so no lane reads what another wrote; the
    barrier holds whatever layout is chosen.
    """
    part = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    inside = b < batch
    to = partial + part * cols * batch + b
    for u in range(part * per_part, tl.minimum((part + 1) * per_part, blocks)):
        here = u * MEMBERS + tl.arange(0, MEMBERS)
        r = begin.to(tl.int64) + here
        exists = r < labels
        each = tl.load(g + here[:, None] * batch + b[None, :], mask=exists[:, None] & inside[None, :], other=0)
        if tl.sum(tl.sum((each != 0).to(tl.int32), 1), 0) > 0:
            row = begin.to(tl.int64) // GROUP + u * MEMBERS // GROUP
            for j in range(0, k):
                column = tl.load(indices + row * k + j).to(tl.int64)
                w = tl.load(values + r * k + j, mask=exists, other=0).to(tl.float32)
                share = tl.sum(w[:, None] * each, 0)
                at = to + column * batch
                tl.store(at, tl.load(at, mask=inside, other=0) + share, mask=inside)
                tl.debug_barrier()


@triton.jit
def sample_row(xt, indices, g, here, r, j, exists, batch, k, BR: tl.constexpr, BB: tl.constexpr):
    """The sum over b of g[r, b] * xt[indices[r, j], b]."""
    column = tl.load(indices + r * k + j, mask=exists, other=0).to(tl.int64)
    sums = tl.zeros([BR, BB], dtype=tl.float32)
    for first in range(0, batch, BB):
        b = first + tl.arange(0, BB)
        inside = exists[:, None] & (b < batch)[None, :]
        each = tl.load(g + here[:, None] * batch + b[None, :], mask=inside, other=0)
        sums += each * tl.load(xt + column[:, None] * batch + b[None, :], mask=inside, other=0)
    return tl.sum(sums, 1)


@triton.jit(do_not_specialize=["begin", "low", "high"])
def gather_update(
    xt, values, indices, bias, value_first, value_second, bias_first, bias_second, g, begin, labels, batch, k, low,
    high, rate, decay, beta1, gain1, beta2, gain2, root, eps,
    BR: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, OPTIMIZER: tl.constexpr,
    RESTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """values, bias and states of BR labels by the gradient of each element: the sum over b of g * xt.

    RESTS: a label whose gradient is zero stays as it is.
    """
    here = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    r = begin.to(tl.int64) + here
    exists = r < labels
    by_bias, live = along_batch(g, here, exists, batch, BR, BB)
    update_bias(
        bias, by_bias, bias_first, bias_second, r, exists, rate, beta1, gain1, beta2, gain2, root, eps, OPTIMIZER
    )
    if RESTS:
        exists = exists & live
    if tl.sum(exists.to(tl.int32), 0) > 0:
        unit = begin.to(tl.int64) // GROUP + tl.program_id(0)
        for left in range(0, k, BK):
            j = left + tl.arange(0, BK)
            total = tl.zeros([BR, BK], dtype=tl.float32)
            if GROUP == 1:
                for i in range(0, tl.minimum(k - left, BK)):  # slots side by side are stored together
                    sums = sample_row(xt, indices, g, here, r, left + i, exists, batch, k, BR, BB)
                    total = tl.where((j == left + i)[None, :], sums[:, None], total)
            else:
                column = tl.load(indices + unit * k + j, mask=j < k, other=0).to(tl.int64)
                for first in range(0, batch, BB):
                    b = first + tl.arange(0, BB)
                    each = tl.load(
                        g + here[:, None] * batch + b[None, :], mask=exists[:, None] & (b < batch)[None, :], other=0
                    )
                    x = tl.load(
                        xt + column[None, :] * batch + b[:, None], mask=(j < k)[None, :] & (b < batch)[:, None], other=0
                    )
                    total = tl.dot(each, x, total, input_precision=PRECISION)
            inside = exists[:, None] & (j < k)[None, :]
            update(values, total, value_first, value_second, r, j, inside, k, low, high, rate, decay, beta1, gain1,
                   beta2, gain2, root, eps, OPTIMIZER)  # fmt: skip
