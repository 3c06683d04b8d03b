"""page_scores: what each page of a request may matter to its query, by summaries of its keys or four bits of each."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from gossamer.ops.checks import check_integer, check_number, described
from gossamer.ops.paged.arguments import check_pages, check_rows, heads_or_first
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.ops.registration import Backend, register
from gossamer.ops.transforms import check_transforms

PageScore = Literal["keys", "extremes", "moments"]


def _fake(
    form: Tensor, heads: Tensor, group: int, summaries: Tensor, lengths: Tensor, table: Tensor, page: int
) -> Tensor:
    return form.new_empty((form.shape[0], form.shape[1], table.shape[1]))


page_scores_on = register(
    "page_scores",
    "(Tensor form, Tensor heads, int group, Tensor summaries, Tensor lengths, Tensor table, int page) -> Tensor",
    _fake,
)


def _fake_of_keys(
    q: Tensor, heads: Tensor, group: int, codes: Tensor, scales: Tensor, lengths: Tensor, table: Tensor
) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[1], table.shape[1]))


page_key_scores_on = register(
    "page_key_scores",
    "(Tensor q, Tensor heads, int group, Tensor codes, Tensor scales, Tensor lengths, Tensor table) -> Tensor",
    _fake_of_keys,
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
    """A score for each page of each request: the largest of its stretches, or of its keys.

    Args:
        q: floats [requests, query heads, width]: one query a request, the newest.
        by: "keys": the largest scaled product of q with a key, where both are rounded, keys to four bits and q to
            eight. It ranks nearly as the keys themselves do, and reads an eighth of what they take in float32. Of keys
            stored as codes these are their own upper bits; others need a pool that is `sketched`.
            "extremes": no scaled product of q with a key of the page is above the score. "moments": about the logarithm
            of the mean of exp(scale * q . k), q . mean + q^2 . variance / 2 with scaled q.
        heads, group, scale: as in `page_attention`.

    Returns:
        float32[requests, query heads, pages of the table]; -inf where a request has no page.

    Raises:
        TypeError, ValueError: naming the argument; the pool keeps no such summaries.

    Source: keys in four bits as in Twilight (arXiv 2502.02770); Quest (arXiv 2406.10774) for extremes;
    the second cumulant of the scores of a page for moments.

    >>> pool, batch = PagePool.allocate(2, 1, 16), Batch.of([1], [1], [[1]])
    >>> from gossamer.ops.paged.append import page_append
    >>> page_append(torch.ones(1, 1, 16), torch.zeros(1, 1, 16), pool, batch)
    >>> page_scores(torch.ones(1, 1, 16), pool, batch, by="extremes", scale=1.0).tolist()
    [[[16.0]]]
    """
    check_transforms("gossamer.ops.page_scores", q)
    check_pages(pool, batch, backend)
    if by not in get_args(PageScore):
        raise ValueError(f"by must be one of {', '.join(get_args(PageScore))}, got {by!r}")
    codes, scales = pool.key_codes
    kept = {"keys": codes, "extremes": pool.extremes, "moments": pool.moments}[by]
    if kept is None:
        asked = "sketched=True" if by == "keys" else f"{by}="
        raise ValueError(f"pool keeps no {'sketches' if by == 'keys' else by}; expected one allocated with {asked}")
    check_rows("q", q, pool.width, "requests")
    if q.shape[0] != batch.requests:
        raise ValueError(f"q must have a row for each of {batch.requests} requests, got {described(q)}")
    check_integer("group", group, 1)
    # Checked for transforms before, since a detached tensor has lost its tangent.
    scaled = q.detach().float() * (pool.width**-0.5 if scale is None else check_number("scale", scale))
    first = heads_or_first(heads, pool, "q", q.shape[1], group)
    if by == "keys":
        return page_key_scores_on(backend)(scaled, first, group, kept, scales, batch.lengths, batch.table)
    form = (scaled, scaled.square() / 2) if by == "moments" else (scaled.clamp(min=0), scaled.clamp(max=0))
    return page_scores_on(backend)(torch.cat(form, -1), first, group, kept, batch.lengths, batch.table, pool.page)
