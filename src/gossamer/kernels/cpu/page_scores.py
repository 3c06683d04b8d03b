"""What each page may matter to a query: products of forms of queries with summaries of keys."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, _pages


def page_scores(
    form: Tensor, heads: Tensor, group: int, summaries: Tensor, lengths: Tensor, table: Tensor, page: int
) -> Tensor:
    """See `gossamer.kernels.reference.page_scores`."""
    requests, query_heads, doubled = _call.tensor(form, "form", ndim=3, dtypes=(torch.float32,)).shape
    count, pool_heads, _, _, width = _call.tensor(summaries, "summaries", ndim=5, dtypes=(torch.bfloat16,)).shape
    if doubled != 2 * width or width % 16 or table.shape[0] != requests:
        raise ValueError(
            f"form must have shape [{table.shape[0]}, heads, {2 * width}] for summaries of width {width}, a multiple "
            f"of 16, got {tuple(form.shape)}"
        )
    if not 1 <= group <= query_heads or not 1 <= page <= _pages.MOST_PAGE:
        raise ValueError(
            f"group and page must be from 1 to the {query_heads} heads of form and 256, got {group}, {page}"
        )
    offsets = torch.zeros(requests + 1, dtype=torch.int64, device="cpu")
    described = _pages.requests(offsets, lengths, table, 0)
    chosen = _pages.heads(heads, "heads", pool_heads)
    kept = _pages.summaries(summaries, "summaries", count, pool_heads, width, page)
    scores = torch.empty((requests, query_heads, table.shape[1]), dtype=torch.float32, device="cpu")
    pages = (0, 0, 0, 0, count, pool_heads, width, page, 0)
    if not _call.native.page_scores(
        form.data_ptr(), query_heads, group, chosen, pages, described, kept, scores.data_ptr(), torch.get_num_threads()
    ):
        _pages.refuse_heads(heads, "heads", query_heads - group + 1, group)
        _pages.refuse_requests(offsets, lengths, table, 0, count, page)
        _call.refuse_changed("heads, lengths and table")
    return scores
