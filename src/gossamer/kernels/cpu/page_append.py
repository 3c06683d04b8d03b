"""New keys and values into their pages, and the summaries of those."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, _pages


def page_append(
    new_keys: Tensor, new_values: Tensor, sources: Tensor, keys: Tensor, values: Tensor, key_scales: Tensor | None,
    value_scales: Tensor | None, stored: str, extremes: Tensor | None, moments: Tensor | None,
    sketches: Tensor | None, sketch_scales: Tensor | None, offsets: Tensor, lengths: Tensor, table: Tensor,
) -> None:  # fmt: skip
    """See `gossamer.kernels.reference.page_append`."""
    pages = _pages.pages(keys, values, key_scales, value_scales, stored)
    count, heads, width, page = pages[4:8]
    tokens, key_heads, _ = _call.tensor(new_keys, "new_keys", ndim=3, dtypes=(torch.float32,)).shape
    _call.tensor(new_values, "new_values", ndim=3, dtypes=(torch.float32,))
    if new_values.shape != new_keys.shape or new_keys.shape[2] != width:
        raise ValueError(
            f"new_keys and new_values must have one shape [tokens, heads, {width}], got {tuple(new_keys.shape)} and "
            f"{tuple(new_values.shape)}"
        )
    requests = _pages.requests(offsets, lengths, table, tokens)
    sizes = count, heads, width, page
    kept = _pages.summaries(extremes, "extremes", *sizes), _pages.summaries(moments, "moments", *sizes)
    sketched = _pages.key_codes(sketches, sketch_scales, ("sketches", "sketch_scales"), *sizes)
    chosen = _pages.heads(sources, "sources", heads)
    if not _call.native.page_append(
        new_keys.data_ptr(),
        new_values.data_ptr(),
        key_heads,
        chosen,
        pages,
        requests,
        *kept,
        sketched,
        torch.get_num_threads(),
    ):
        _pages.refuse_heads(sources, "sources", key_heads)
        _pages.refuse_requests(offsets, lengths, table, tokens, count, page)
        _call.refuse_changed("sources, offsets, lengths and table")
