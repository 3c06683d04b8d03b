"""page_key_scores: a program has a page of a request and a head, and every query head that shares its keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.rows import on_device


@triton.jit
def rounded_query(q, width, E: tl.constexpr):
    """The halves of a query that meet lower and upper halves of bytes, int32[E], their sum and their scale."""
    e = tl.arange(0, E)
    d = e // 4 * 8 + e % 4
    low = tl.load(q + d, mask=d < width, other=0)
    high = tl.load(q + d + 4, mask=d < width, other=0)
    nothing = tl.sum((low - low) + (high - high), axis=0)
    most = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), axis=0)
    scale = tl.div_rn(most, 127.0) + nothing
    low, high = in_eight_bits(low, scale + 0 * low), in_eight_bits(high, scale + 0 * high)
    return low, high, tl.sum(low + high, axis=0), scale


@triton.jit
def in_eight_bits(x, scale):
    ratio = tl.div_rn(x, tl.where(scale > 0, scale, 1.0))
    near = tl.floor(ratio)
    rest = ratio - near
    up = (rest > 0.5) | ((rest == 0.5) & ((near - 2 * tl.floor(near / 2)) == 1))  # to even
    near = tl.where(up, near + 1, near)
    near = tl.where((scale > 0) & (near == near), near, 0.0)
    return tl.minimum(tl.maximum(near, -127.0), 127.0).to(tl.int32)


@triton.jit
def score_keys(
    q, heads, planes, scales, lengths, table, scores, count, query_heads, pool_heads, cols, width,
    GROUP: tl.constexpr, E: tl.constexpr, P: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    r, p, h = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + r)
    place = tl.load(table + r * cols + p).to(tl.int64)
    tile = tl.where((place >= 0) & (place < count), place, 0) * pool_heads + h
    t, e = tl.arange(0, P), tl.arange(0, E)
    # All of them vectors: the interpreter makes integers of a vector and a scalar.
    filled = (p.to(tl.int64) * P + t < length) & (place + 0 * t >= 0) & (place + 0 * t < count)
    at = tile * (PLANES * (P * width // 2)) + (e // 4 * (P * 4) + e % 4)[None, :] + (t * 4)[:, None]
    codes = tl.load(planes + at, mask=filled[:, None] & (e < width // 2)[None, :], other=0)
    low, high = (codes & 15).to(tl.int32), (codes >> 4).to(tl.int32)
    scale = tl.load(scales + tile * 2 * P + t, mask=filled, other=0).to(tl.float32)
    zero = tl.load(scales + tile * 2 * P + P + t, mask=filled, other=0).to(tl.float32)
    head = tl.load(heads + h)
    for g in range(GROUP):
        row = r * query_heads + head + g
        of_low, of_high, all_of_it, by = rounded_query(q + row * width, width, E)
        sums = tl.sum(low * of_low[None, :] + high * of_high[None, :], axis=1)
        if PLANES == 2:  # twice what the upper bits stand for, the middle: 2 * (16 * code + 7.5)
            whole = (32 * sums + 15 * all_of_it).to(tl.float32) * 0.5
        else:
            whole = sums.to(tl.float32)
        score = tl.fma(scale, whole, zero * all_of_it.to(tl.float32)) * by
        score = tl.where(filled & (score == score), score, -float("inf"))
        tl.store(scores + row * cols + p, tl.max(score, axis=0))


def page_key_scores(
    q: Tensor, heads: Tensor, group: int, codes: Tensor, scales: Tensor, lengths: Tensor, table: Tensor
) -> Tensor:
    """See `gossamer.kernels.reference.page_key_scores`; a page that is none counts as absent, without a host sync."""
    requests, query_heads, width = q.shape
    count, pool_heads, planes, _, page, _ = codes.shape
    cols = table.shape[1]
    scores = torch.full((requests, query_heads, cols), -torch.inf, dtype=torch.float32, device=q.device)
    if scores.numel() and pool_heads:
        with on_device(q):
            score_keys[(requests, cols, pool_heads)](
                q, heads, codes, scales, lengths, table, scores, count, query_heads, pool_heads, cols, width,
                GROUP=group, E=triton.next_power_of_2(width // 2), P=page, PLANES=planes,
            )  # fmt: skip
    return scores
