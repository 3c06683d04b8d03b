"""Attention over pages: the oracle, in float64, a request and a head at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._pages import (
    check_group,
    check_heads,
    check_lists,
    check_requests,
    numbers,
    page_row,
    tokens_of,
)
from gossamer.kernels.reference._slots import demand


def page_attention(
    q: Tensor, out: Tensor, lse: Tensor | None, heads: Tensor, group: int, keys: Tensor, values: Tensor,
    key_scales: Tensor | None, value_scales: Tensor | None, stored: str, offsets: Tensor, lengths: Tensor,
    table: Tensor, list_offsets: Tensor | None, list_pages: Tensor | None, list_tokens: int, window: int | None,
    sink: int, scale: float, cap: float,
) -> None:  # fmt: skip
    """out[tokens, query heads, width] = softmax(scale * q @ keys^T) @ values for the heads heads[h] + [0, group) of
    head h of the pages, over the keys that a token sees; lse[tokens, query heads] the logarithm of the sum of
    exp(score).

    A token at place i sees the keys j <= i, of which j < sink or j > i - window; and with lists, those of the pages
    that the row (block of list_tokens tokens of its request, head) names. cap > 0: scores are cap * tanh(score / cap).
    """
    count, pool_heads = keys.shape[:2]
    page = values.shape[2]
    check_requests(offsets, lengths, table, len(q), page)
    check_group(group, q.shape[1])
    check_heads(heads, pool_heads, q.shape[1], group)
    if list_offsets is not None and list_pages is not None:
        check_lists(list_offsets, list_pages, offsets, list_tokens, pool_heads)
    row = 0
    for r, first, end, place in tokens_of(offsets, lengths):
        used = -(-(place + end - first) // page)
        pages = page_row(table, r, used, count)
        for begin in range(first, end, list_tokens):
            stop = min(end, begin + list_tokens)
            at = torch.arange(place + begin - first, place + stop - first, device=q.device)[:, None]
            for h in range(pool_heads):
                j = torch.arange(used * page, device=q.device)
                seen = (j <= at) & ((j < sink) | (j > at - (window if window is not None else 2**56)))
                if list_offsets is not None and list_pages is not None:
                    named = list_pages[list_offsets[row + h] : list_offsets[row + h + 1]].long()
                    demand(
                        ((named >= 0) & (named < used)).all() & (named.diff() > 0).all(),
                        "lists must name pages of their own request, in ascending order in each row, each once",
                    )
                    seen &= torch.isin(j // page, named)
                needed = seen.any(0).view(used, page).any(1).nonzero()[:, 0]
                demand(((pages[needed] >= 0) & (pages[needed] < count)).all(), f"table must name pages below {count}")
                here = pages[needed]
                k, v = (
                    numbers(x[here, h], None if s is None else s[here, h], stored, keys=is_keys).flatten(0, 1).double()
                    for x, s, is_keys in ((keys, key_scales, True), (values, value_scales, False))
                )
                seen = seen.view(-1, used, page)[:, needed].flatten(1)[:, None]
                mine = slice(int(heads[h]), int(heads[h]) + group)
                scores = scale * torch.einsum("tgd,jd->tgj", q[begin:stop, mine].double(), k)
                scores = (cap * torch.tanh(scores / cap) if cap > 0 else scores).masked_fill(~seen, -torch.inf)
                weights = (
                    torch.softmax(scores, -1).nan_to_num() if not seen.any(-1).all() else torch.softmax(scores, -1)
                )
                v = torch.where(seen.any((0, 1))[:, None], v, 0)  # what nobody sees was perhaps never written
                out[begin:stop, mine] = torch.einsum("tgj,jd->tgd", weights, v).to(out.dtype)
                if lse is not None:
                    lse[begin:stop, mine] = torch.logsumexp(scores, -1).to(lse.dtype)
            row += pool_heads
