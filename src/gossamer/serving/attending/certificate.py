"""How wrong attention over chosen pages can be, from what is known of the others.

A page's extremes bound the score of each of its keys. So with D = sum over pages that are not read of
(tokens * exp(bound - lse of what is read)), at most m = D / (1 + D) of the softmax is missing. The output is at most
m * (|v| of what is missing + |v| of what is read) away from the dense one: 2 m of the longest value vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer import ops
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.pattern import Pattern

# Bounds and scores are sums of up to 512 float32 products each; their rounding stays below this share of a bound.
SLACK = 2.0**-10
# Weights that are rounded to bfloat16 move the logarithm of their sum by so much at most.
ROUNDED = 2.0**-8


def page_bounds(
    q: Tensor, pool: PagePool, batch: Batch, *, heads: Tensor, group: int, scale: float, cap: float = 0.0
) -> Tensor:
    """Upper bounds of the scores of each page's keys: float32[requests, heads of the pool, group, pages]; -inf where
    there is no page."""
    bounds = ops.page_scores(q, pool, batch, by="extremes", heads=heads, group=group, scale=scale)
    bounds = bounds[:, heads[:, None] + torch.arange(group, device=q.device)]
    bounds = bounds + SLACK * (1 + bounds.abs().nan_to_num(posinf=0.0))
    return cap * (bounds / cap).tanh() if cap else bounds


def error_bound(bounds: Tensor, lse: Tensor, lists: Pattern, page: int) -> Tensor:
    """At most so far is the output from the dense one, in lengths of the longest value: [requests, heads, group].

    Args:
        bounds: of `page_bounds`. lse: float32[requests, heads, group], the logarithm of the sum of exp(score) of what
            was read.
        lists: what was read, rows (request, head).

    Source: the identity of truncated attention (arXiv 2512.07647) with Quest's bound of a page (arXiv 2406.10774).
    """
    requests, heads, _, pages = bounds.shape
    read = lists.to_tile_mask().view(requests, heads, 1, -1)[..., :pages]
    dropped = bounds.masked_fill(read, -torch.inf).logsumexp(3) + math.log(page)
    missing = torch.sigmoid(dropped - lse + ROUNDED)  # D / (1 + D)
    return 2 * missing.nan_to_num(nan=1.0)
