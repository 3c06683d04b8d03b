"""page_scores: a program has a block of pages of a request and a head, and every query head that shares them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.rows import on_device

PAGES = 16


@triton.jit
def score_pages(
    form, heads, summaries, lengths, table, scores, count, query_heads, pool_heads, cols, page,
    GROUP: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, STRETCHES: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    r, h = tl.program_id(0).to(tl.int64), tl.program_id(2)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    length = tl.load(lengths + r)
    place = tl.load(table + r * cols + p, mask=p < cols, other=-1).to(tl.int64)
    exists = (p.to(tl.int64) * page < length) & (place >= 0) & (place < count)
    d = tl.arange(0, WIDE)
    head = tl.load(heads + h)
    for g in range(GROUP):
        x = tl.load(form + (r * query_heads + head + g) * N + d, mask=d < N, other=0)
        best = tl.full([BP], -float("inf"), tl.float32)
        for j in range(STRETCHES):
            filled = exists & (p.to(tl.int64) * page + j * (page // STRETCHES) < length)
            at = ((tl.where(exists, place, 0) * pool_heads + h) * STRETCHES + j) * N
            kept = tl.load(summaries + at[:, None] + d[None, :], mask=filled[:, None] & (d < N)[None, :], other=0)
            best = tl.where(filled, tl.maximum(best, tl.sum(kept.to(tl.float32) * x[None, :], axis=1)), best)
        tl.store(scores + (r * query_heads + head + g) * cols + p, best, mask=p < cols)


def page_scores(
    form: Tensor, heads: Tensor, group: int, summaries: Tensor, lengths: Tensor, table: Tensor, page: int
) -> Tensor:
    """See `gossamer.kernels.reference.page_scores`; a page that is none counts as absent, without a host sync."""
    requests, query_heads, n = form.shape
    count, pool_heads, stretches = summaries.shape[:3]
    cols = table.shape[1]
    scores = torch.full((requests, query_heads, cols), -torch.inf, dtype=torch.float32, device=form.device)
    if scores.numel() and pool_heads:
        with on_device(form):
            score_pages[(requests, triton.cdiv(cols, PAGES), pool_heads)](
                form, heads, summaries, lengths, table, scores, count, query_heads, pool_heads, cols, page,
                GROUP=group, N=n, WIDE=triton.next_power_of_2(n), STRETCHES=stretches, BP=PAGES,
            )  # fmt: skip
    return scores
