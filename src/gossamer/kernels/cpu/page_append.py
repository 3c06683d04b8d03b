"""New keys and values into their pages, and the summaries of those."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, _pages


def page_append(
    keys: Tensor, values: Tensor, heads: Tensor, pool_keys: Tensor, pool_values: Tensor, key_scales: Tensor | None,
    value_scales: Tensor | None, stored: str, extremes: Tensor | None, moments: Tensor | None,
    sketches: Tensor | None, sketch_scales: Tensor | None, offsets: Tensor, lengths: Tensor, table: Tensor,
) -> None:  # fmt: skip
    """See `gossamer.kernels.reference.page_append`."""
    pages = _pages.pages(pool_keys, pool_values, key_scales, value_scales, stored)
    count, pool_heads, width, page = pages[4:8]
    tokens, key_heads, _ = _call.tensor(keys, "keys", ndim=3, dtypes=(torch.float32,)).shape
    _call.tensor(values, "values", ndim=3, dtypes=(torch.float32,))
    if values.shape != keys.shape or keys.shape[2] != width:
        raise ValueError(
            f"keys and values must have one shape [tokens, heads, {width}], got {tuple(keys.shape)} and "
            f"{tuple(values.shape)}"
        )
    requests = _pages.requests(offsets, lengths, table, tokens)
    sizes = count, pool_heads, width, page
    kept = _pages.summaries(extremes, "extremes", *sizes), _pages.summaries(moments, "moments", *sizes)
    sketched = _pages.key_codes(sketches, sketch_scales, ("sketches", "sketch_scales"), *sizes)
    chosen = _pages.heads(heads, "heads", pool_heads)
    if not _call.native.page_append(
        keys.data_ptr(),
        values.data_ptr(),
        key_heads,
        chosen,
        pages,
        requests,
        *kept,
        sketched,
        torch.get_num_threads(),
    ):
        _pages.refuse_heads(heads, "heads", key_heads)
        _pages.refuse_requests(offsets, lengths, table, tokens, count, page)
        _call.refuse_changed("heads, offsets, lengths and table")
