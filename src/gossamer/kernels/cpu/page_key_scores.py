"""What each page may matter to a query: products with the upper four bits of its keys."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, _pages


def page_key_scores(
    q: Tensor, heads: Tensor, group: int, codes: Tensor, scales: Tensor, lengths: Tensor, table: Tensor
) -> Tensor:
    """See `gossamer.kernels.reference.page_key_scores`."""
    requests, query_heads, width = _call.tensor(q, "q", ndim=3, dtypes=(torch.float32,)).shape
    count, pool_heads, planes, _, page, _ = _call.tensor(codes, "codes", ndim=6, dtypes=(torch.uint8,)).shape
    if width % 16 or not 16 <= width <= _pages.MOST_WIDTH or table.shape[0] != requests:
        raise ValueError(
            f"q must have shape [{table.shape[0]}, heads, width], a multiple of 16 up to {_pages.MOST_WIDTH}, got "
            f"{tuple(q.shape)}"
        )
    if page % 32 or not 32 <= page <= _pages.MOST_PAGE:
        raise ValueError(f"codes must be of a page that is a multiple of 32 up to 256, got {tuple(codes.shape)}")
    if planes not in (1, 2):
        raise ValueError(f"codes must have one plane or two, got {tuple(codes.shape)}")
    if not 1 <= group <= query_heads:
        raise ValueError(f"group must be from 1 to the {query_heads} heads of q, got {group}")
    offsets = torch.zeros(requests + 1, dtype=torch.int64, device="cpu")
    described = _pages.requests(offsets, lengths, table, 0)
    chosen = _pages.heads(heads, "heads", pool_heads)
    kept = _pages.key_codes(codes, scales, ("codes", "scales"), count, pool_heads, width, page, planes)
    scores = torch.empty((requests, query_heads, table.shape[1]), dtype=torch.float32, device="cpu")
    pages = (0, 0, 0, 0, count, pool_heads, width, page, 0)
    if not _call.native.page_key_scores(
        q.data_ptr(), query_heads, group, chosen, pages, described, kept, scores.data_ptr(), torch.get_num_threads()
    ):
        _pages.refuse_heads(heads, "heads", query_heads - group + 1, group)
        _pages.refuse_requests(offsets, lengths, table, 0, count, page)
        _call.refuse_changed("heads, lengths and table")
    return scores
