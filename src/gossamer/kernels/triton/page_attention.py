"""page_attention: a program has a block of tokens, one head of the pages and a share of them, with an online softmax.

In decoding, where few tokens look at many pages, these are divided among programs, each leaving its sums; a last launch
adds them in order. A share is so many entries of a token's own list, so that its bits do not depend on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.launch import precision
from gossamer.kernels.triton.pages import FLOAT, blocks_of, load_keys, load_matrix, way
from gossamer.kernels.triton.rows import on_device

SHARE = 64  # pages of a share, in decoding


def rows_of(how: int, precise: str) -> int:
    """Queries of a program: what is widened, or multiplied without tensor cores, takes registers."""
    return 64 if how == FLOAT and precise != "ieee" else 16


@triton.jit
def attend(
    q, out, lse, sums, heads, keys, values, key_scales, value_scales, offsets, lengths, table, list_offsets, list_pages,
    list_rows, block_request, block_number, count, query_heads, pool_heads, cols, list_tokens, window, sink, scale, cap,
    tokens, share,
    GROUP: tl.constexpr, BT: tl.constexpr, M: tl.constexpr, W: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr,
    WAY: tl.constexpr, PRECISION: tl.constexpr, DIVIDED: tl.constexpr,
):  # fmt: skip
    b, h, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    r = tl.load(block_request + b).to(tl.int64)
    if r >= 0:
        begin = tl.load(offsets + r)
        n, length = tl.load(offsets + r + 1) - begin, tl.load(lengths + r)
        t0 = tl.load(block_number + b).to(tl.int64) * BT
        m, d, t = tl.arange(0, M), tl.arange(0, WIDE), tl.arange(0, P)
        token = m // GROUP
        live = (token < BT) & (t0 + token < n)
        first = length - n + t0
        place = first + token
        last = first + tl.minimum(BT, n - t0) - 1
        row = (begin + t0 + token) * query_heads + tl.load(heads + h) + m % GROUP
        mask = live[:, None] & (d < W)[None, :]
        x = tl.load(q + row[:, None] * W + d[None, :], mask=mask, other=0) * scale
        total = tl.sum(x, axis=1)
        low, high = tl.zeros([], tl.int64), last // P + 1
        if list_offsets is not None:
            at_row = (tl.load(list_rows + r) + t0 // list_tokens) * pool_heads + h
            low, high = tl.load(list_offsets + at_row), tl.load(list_offsets + at_row + 1)
        if DIVIDED:
            low = low + s.to(tl.int64) * share
            high = tl.minimum(high, low + share)
        top = tl.full([M], -float("inf"), tl.float32)
        sum_ = tl.zeros([M], tl.float32)
        acc = tl.zeros([M, WIDE], tl.float32)
        for at in range(low, high):
            p = at
            if list_offsets is not None:
                p = tl.load(list_pages + at).to(tl.int64)
            seen_by_any = (p >= 0) & (p * P <= last) & ((p * P < sink) | (p * P + P - 1 > first - window))
            page = tl.load(table + r * cols + p, mask=seen_by_any & (p < cols), other=-1).to(tl.int64)
            if (page >= 0) & (page < count):
                tile = page * pool_heads + h
                size = (W * P) // (2 if WAY == 2 else 1)
                written = p * P + t < length
                k = load_keys(keys, tile, d, t, W, P, (d < W)[:, None] & written[None, :], WAY)
                scores = tl.dot(x, k, input_precision=PRECISION)
                if WAY > 0:
                    by = tl.load(key_scales + tile * 2 * P + t, mask=written, other=0).to(tl.float32)
                    zero = tl.load(key_scales + tile * 2 * P + P + t, mask=written, other=0).to(tl.float32)
                    scores = scores * by[None, :] + total[:, None] * zero[None, :]
                if cap > 0:
                    scores = cap * (1 - 2 / (tl.exp(2 * scores / cap) + 1))
                j = p * P + t
                seen = (j[None, :] <= place[:, None]) & ((j < sink)[None, :] | (j[None, :] > (place - window)[:, None]))
                scores = tl.where(seen, scores, -float("inf"))
                above = tl.maximum(top, tl.max(scores, axis=1))
                safe = tl.where(above == -float("inf"), 0.0, above)
                weights = tl.exp(scores - safe[:, None])
                shrink = tl.exp(top - safe)
                sum_ = sum_ * shrink + tl.sum(weights, axis=1)
                acc = acc * shrink[:, None]
                if WAY > 0:
                    by = tl.load(value_scales + tile * 2 * P + t, mask=written, other=0).to(tl.float32)
                    zero = tl.load(value_scales + tile * 2 * P + P + t, mask=written, other=0).to(tl.float32)
                    acc += tl.sum(weights * zero[None, :], axis=1)[:, None]
                    weights = weights * by[None, :]
                v = load_matrix(values + tile * size, t, d, W, written[:, None] & (d < W)[None, :], WAY)
                acc = tl.dot(weights, v, acc, input_precision=PRECISION)
                top = above
        if DIVIDED:
            to = (s.to(tl.int64) * tokens * query_heads + row) * (W + 2)
            tl.store(sums + to[:, None] + d[None, :], acc, mask=mask)
            tl.store(sums + to + W, top, mask=live)
            tl.store(sums + to + W + 1, sum_, mask=live)
        else:
            tl.store(out + row[:, None] * W + d[None, :], acc / tl.where(sum_ == 0, 1.0, sum_)[:, None], mask=mask)
            if lse is not None:
                tl.store(lse + row, top + tl.log(sum_), mask=live)


@triton.jit
def add_shares(
    sums, out, lse, heads, tokens, query_heads, shares,
    GROUP: tl.constexpr, W: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = (
        tl.program_id(0).to(tl.int64) * query_heads
        + tl.load(heads + tl.program_id(1) // GROUP)
        + tl.program_id(1) % GROUP
    )
    d = tl.arange(0, WIDE)
    top, sum_ = tl.full([], -float("inf"), tl.float32), tl.zeros([], tl.float32)
    acc = tl.zeros([WIDE], tl.float32)
    at = sums + row * (W + 2)
    for _ in range(shares):
        other = tl.load(at + W)
        above = tl.maximum(top, other)
        safe = tl.where(above == -float("inf"), 0.0, above)
        mine, theirs = tl.exp(top - safe), tl.exp(other - safe)
        acc = acc * mine + tl.load(at + d, mask=d < W, other=0) * theirs
        sum_ = sum_ * mine + tl.load(at + W + 1) * theirs
        top = above
        at += tokens * query_heads * (W + 2)
    tl.store(out + row * W + d, acc / tl.where(sum_ == 0, 1.0, sum_), mask=d < W)
    if lse is not None:
        tl.store(lse + row, top + tl.log(sum_))


def page_attention(
    q: Tensor, out: Tensor, lse: Tensor | None, heads: Tensor, group: int, keys: Tensor, values: Tensor,
    key_scales: Tensor | None, value_scales: Tensor | None, stored: str, offsets: Tensor, lengths: Tensor,
    table: Tensor, list_offsets: Tensor | None, list_pages: Tensor | None, list_tokens: int, window: int | None,
    sink: int, scale: float, cap: float,
) -> None:  # fmt: skip
    """See `gossamer.kernels.reference.page_attention`; a page that is none is not seen, without a host sync."""
    (tokens, query_heads, width), (count, pool_heads) = q.shape, keys.shape[:2]
    requests, page, cols = len(lengths), values.shape[2], table.shape[1]
    if not tokens or not pool_heads:
        return
    together = min(max(1, rows_of(way(stored), precision(q)) // group), list_tokens, tokens)
    if list_tokens < tokens:
        together = next(size for size in range(together, 0, -1) if list_tokens % size == 0)
    few = tokens <= 4 * requests
    shares = triton.cdiv(cols, SHARE) if few else 1
    most = tokens // together + requests
    request, number = blocks_of(offsets.diff(), together, most)
    list_rows = torch.nn.functional.pad((-(-offsets.diff() // list_tokens)).cumsum(0), (1, 0))
    wide = triton.next_power_of_2(width)
    sums = q.new_empty((shares, tokens, query_heads, width + 2), dtype=torch.float32) if shares > 1 else None
    with on_device(q):
        attend[(most, pool_heads, shares)](
            q, out, lse, sums, heads, keys, values, key_scales, value_scales, offsets, lengths, table, list_offsets,
            list_pages, list_rows, request, number, count, query_heads, pool_heads, cols, list_tokens,
            2**40 if window is None else window, sink, scale, cap, tokens, SHARE,
            GROUP=group, BT=together, M=max(16, triton.next_power_of_2(together * group)), W=width, WIDE=wide, P=page,
            WAY=way(stored), PRECISION=precision(q), DIVIDED=shares > 1,
        )  # fmt: skip
        if shares > 1:
            add_shares[(tokens, pool_heads * group)](
                sums, out, lse, heads, tokens, query_heads, shares, GROUP=group, W=width, WIDE=wide
            )
