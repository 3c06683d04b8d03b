"""Which pages a query reads: the best by score, in order."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, _pages


def page_choose(
    scores: Tensor, heads: Tensor, group: int, together: bool, lengths: Tensor, count: int, page: int
) -> Tensor:
    """See `gossamer.kernels.reference.page_choose`."""
    requests, query_heads, cols = _call.tensor(scores, "scores", ndim=3, dtypes=(torch.float32,)).shape
    if not 1 <= group <= query_heads or not 1 <= page <= _pages.MOST_PAGE or not 1 <= count <= cols:
        raise ValueError(
            f"group, page and count must be from 1 to the {query_heads} heads and {cols} pages of scores and to 256, "
            f"got {group}, {page} and {count}"
        )
    if cols > _pages.HUGE:
        raise ValueError(f"scores must be of at most 2**40 pages, got {tuple(scores.shape)}")
    if _call.tensor(lengths, "lengths", ndim=1, dtypes=(torch.int64,)).numel() != requests:
        raise ValueError(f"lengths must have {requests} entries, one for each request, got {lengths.numel()}")
    chosen = _pages.heads(heads, "heads", heads.numel())
    rows = heads.numel() * (1 if together else group)
    out = torch.empty((requests, rows, count), dtype=torch.int32, device="cpu")
    if not _call.native.page_choose(
        scores.data_ptr(), query_heads, group, chosen, heads.numel(), together, lengths.data_ptr(), requests, cols,
        page, count, out.data_ptr(), torch.get_num_threads(),
    ):  # fmt: skip
        _pages.refuse_heads(heads, "heads", query_heads - group + 1)
        _pages.refuse_choice(lengths, count, cols, page)
        _call.refuse_changed("heads and lengths")
    return out
