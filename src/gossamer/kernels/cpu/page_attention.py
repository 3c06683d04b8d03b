"""Attention over pages: two dense products a page with the softmax between them, and no score leaves the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, _pages


def page_attention(
    q: Tensor, out: Tensor, lse: Tensor | None, heads: Tensor, group: int, keys: Tensor, values: Tensor,
    key_scales: Tensor | None, value_scales: Tensor | None, stored: str, offsets: Tensor, lengths: Tensor,
    table: Tensor, list_offsets: Tensor | None, list_pages: Tensor | None, list_tokens: int, window: int | None,
    sink: int, scale: float, cap: float,
) -> None:  # fmt: skip
    """See `gossamer.kernels.reference.page_attention`."""
    pages = _pages.pages(keys, values, key_scales, value_scales, stored)
    count, pool_heads, width, page = pages[4:8]
    tokens, query_heads, _ = _call.tensor(q, "q", ndim=3, dtypes=(torch.float32,)).shape
    _call.tensor(out, "out", ndim=3, dtypes=(torch.float32,))
    if out.shape != q.shape or q.shape[2] != width:
        raise ValueError(
            f"q and out must have one shape [tokens, heads, {width}], got {tuple(q.shape)} and {tuple(out.shape)}"
        )
    if lse is not None and tuple(_call.tensor(lse, "lse", ndim=2, dtypes=(torch.float32,)).shape) != tuple(q.shape[:2]):
        raise ValueError(f"lse must have shape {tuple(q.shape[:2])}, got {tuple(lse.shape)}")
    if not 1 <= group <= query_heads:
        raise ValueError(f"group must be from 1 to the {query_heads} heads of q, got {group}")
    if window is not None and not 1 <= window <= _call.MOST:
        raise ValueError(f"window must be from 1 to 2**56, or None, got {window}")
    _call.count(sink, "sink")
    _call.count(list_tokens - 1, "list_tokens - 1")
    requests = _pages.requests(offsets, lengths, table, tokens)
    first = _pages.heads(heads, "heads", pool_heads)
    lists = 0, 0, 0, 0
    if list_offsets is not None and list_pages is not None:
        _call.tensor(list_offsets, "list_offsets", ndim=1, dtypes=(torch.int64,))
        _call.tensor(list_pages, "list_pages", ndim=1, dtypes=(torch.int32,))
        lists = (
            list_offsets.data_ptr(), list_pages.data_ptr() or list_offsets.data_ptr(), list_offsets.numel() - 1,
            list_pages.numel(),
        )  # fmt: skip
    shape = query_heads, group, list_tokens, _call.MOST if window is None else window, sink
    threads = torch.get_num_threads()
    size = _call.native.page_attention_workspace(pages, requests, shape, first, lists, threads)
    workspace = torch.empty(max(size, 0), dtype=torch.uint8, device="cpu")
    if size < 0 or not _call.native.page_attention(
        q.data_ptr(), pages, requests, shape, first, lists, scale, cap, out.data_ptr(), _call.address(lse),
        workspace.data_ptr(), threads,
    ):  # fmt: skip
        _pages.refuse_heads(heads, "heads", query_heads - group + 1, group)
        _pages.refuse_requests(offsets, lengths, table, tokens, count, page)
        if list_offsets is not None and list_pages is not None:
            blocks = int((-(-offsets.diff() // list_tokens)).sum())
            _pages.refuse_lists(list_offsets, list_pages, blocks * pool_heads)
        _call.refuse_changed("heads, offsets, lengths and table")
