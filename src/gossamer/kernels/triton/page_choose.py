"""page_choose: a program has a row of scores, and searches the last one that is taken bit by bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.rows import on_device


@triton.jit
def choose_pages(
    scores, heads, lengths, chosen, query_heads, pool_heads, cols, page, count,
    MEMBERS: tl.constexpr, OF_HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    r, h = row // (pool_heads * OF_HEAD), row // OF_HEAD % pool_heads
    used = (tl.load(lengths + r) + page - 1) // page
    head = tl.load(heads + h) + row % OF_HEAD
    p = tl.arange(0, BLOCK)
    exists = p < tl.minimum(used, cols)
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    for g in range(MEMBERS):
        score = tl.load(scores + (r * query_heads + head + g) * cols + p, mask=exists, other=-float("inf"))
        best = tl.where(score > best, score, best)
    bits = (tl.minimum(best, 3.4028234663852886e38) + 0.0).to(tl.int32, bitcast=True)
    # Integers of the order of the scores, from 0 to 2^32 - 1; -1 is a place that is none.
    wide = bits.to(tl.int64)
    rank = tl.where(wide < 0, -1 - wide, wide + 2147483648)
    rank = tl.where((p == 0) | (p == used - 1), 4294967295, rank)
    rank = tl.where(exists, rank, -1)
    least = tl.zeros([1], tl.int64)
    for i in range(32):
        more = least + (tl.full([1], 1, tl.int64) << (31 - i))
        enough = tl.sum((rank >= more).to(tl.int32), axis=0) >= count
        least = tl.where(enough, more, least)
    above, equal = rank > least, rank == least
    room = count - tl.sum(above.to(tl.int32), axis=0)
    taken = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))
    place = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(chosen + row * count + place, p, mask=taken & (place < count))


def page_choose(
    scores: Tensor, heads: Tensor, group: int, together: bool, lengths: Tensor, count: int, page: int
) -> Tensor:
    """See `gossamer.kernels.reference.page_choose`; lengths are not looked at on the host. Rows of requests with fewer
    pages have page 0 at their end."""
    requests, query_heads, cols = scores.shape
    members = group if together else 1
    rows = heads.numel() * (group // members)
    chosen = torch.zeros((requests, rows, count), dtype=torch.int32, device=scores.device)
    if chosen.numel():
        block = triton.next_power_of_2(cols)
        with on_device(scores):
            choose_pages[(requests * rows,)](
                scores, heads, lengths, chosen, query_heads, heads.numel(), cols, page, count,
                MEMBERS=members, OF_HEAD=group // members, BLOCK=block,
                num_warps=min(max(block // 512, 4), 16),
            )  # fmt: skip
    return chosen
