"""page_scores: what each page of a request may matter to its query; two rankings, linear in what is kept of a page."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gossamer.ops.paged.append import heads_or_first
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.ops.registration import Backend, check_backend, register

PageScore = Literal["moments", "extremes"]


def _fake(
    form: Tensor, heads: Tensor, group: int, summaries: Tensor, lengths: Tensor, table: Tensor, page: int
) -> Tensor:
    return form.new_empty((form.shape[0], form.shape[1], table.shape[1]))


page_scores_on = register(
    "page_scores",
    "(Tensor form, Tensor heads, int group, Tensor summaries, Tensor lengths, Tensor table, int page) -> Tensor",
    _fake,
)


def page_scores(
    q: Tensor,
    pool: PagePool,
    batch: Batch,
    *,
    by: PageScore = "moments",
    heads: Tensor | None = None,
    group: int = 1,
    scale: float | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """A score for each page of each request: the largest of its stretches.

    Args:
        q: floats [requests, query heads, width]: one query a request, the newest.
        by: "extremes": no scaled product of q with a key of the page is above the score. "moments": about the logarithm
            of the mean of exp(scale * q . k), q . mean + q^2 . variance / 2 with scaled q.
        heads, group, scale: as in `page_attention`.

    Returns:
        float32[requests, query heads, pages of the table]; -inf where a request has no page.

    Raises:
        ValueError: naming the argument; the pool keeps no such summaries.

    Source: Quest (arXiv 2406.10774) for extremes; the second cumulant of the scores of a page for moments.

    >>> pool, batch = PagePool.allocate(2, 1, 16), Batch.of([1], [1], [[1]])
    >>> from gossamer.ops.paged.append import page_append
    >>> page_append(torch.ones(1, 1, 16), torch.zeros(1, 1, 16), pool, batch)
    >>> page_scores(torch.ones(1, 1, 16), pool, batch, by="extremes", scale=1.0).tolist()
    [[[16.0]]]
    """
    check_backend(backend, "pool", pool.keys)
    if by not in ("moments", "extremes"):
        raise ValueError(f"by must be 'moments' or 'extremes', got {by!r}")
    summaries = pool.moments if by == "moments" else pool.extremes
    if summaries is None:
        raise ValueError(f"pool keeps no {by}; expected one that was allocated with {by}=")
    if tuple(q.shape[::2]) != (batch.requests, pool.width) or q.dim() != 3 or not q.is_floating_point():
        raise ValueError(f"q must be floats [{batch.requests}, heads, {pool.width}], got {q.dtype}{list(q.shape)}")
    scaled = q.detach().float() * (pool.width**-0.5 if scale is None else scale)
    form = (scaled, scaled.square() / 2) if by == "moments" else (scaled.clamp(min=0), scaled.clamp(max=0))
    return page_scores_on(backend)(
        torch.cat(form, -1), heads_or_first(heads, pool, q.shape[1], group), group, summaries, batch.lengths,
        batch.table, pool.page,
    )  # fmt: skip
