"""Which pages a query reads: the oracle, by sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._pages import check_group, check_heads
from gossamer.kernels.reference._slots import demand


def page_choose(
    scores: Tensor, heads: Tensor, group: int, together: bool, lengths: Tensor, count: int, page: int
) -> Tensor:
    """int32[requests, rows, count]: the pages of the highest scores[requests, query heads, pages] of each request,
    ascending; of equal ones the earlier. Rows are `heads`, of which each has `group` query heads and what they want
    most counts, or, not together, all of these query heads. The first page and the newest are always chosen.
    """
    check_group(group, scores.shape[1])
    check_heads(heads, heads.numel(), scores.shape[1] - group + 1)
    if lengths.numel() != len(scores) or not 1 <= count <= scores.shape[2] or page < 1:
        raise ValueError(
            f"lengths, count and page must be {len(scores)} numbers, from 1 to {scores.shape[2]} and at least 1, got "
            f"{lengths.numel()}, {count} and {page}"
        )
    used = -(-lengths // page)
    demand(
        ((lengths >= 0) & (used <= scores.shape[2]) & (used >= count)).all(),
        f"lengths must be of {count} to {scores.shape[2]} pages",
    )
    members = scores[:, heads[:, None] + torch.arange(group, device=scores.device)]
    best = members.nan_to_num(nan=-torch.inf, posinf=torch.finfo(scores.dtype).max, neginf=-torch.inf)
    best = best.amax(2) if together else best.flatten(1, 2)
    best[:, :, 0] = torch.inf
    last = (used - 1).clamp(min=0)[:, None, None].expand(-1, best.shape[1], 1)
    best.scatter_(2, last, torch.inf)
    beyond = torch.arange(scores.shape[2], device=scores.device) >= used[:, None, None]
    # Pages that are none come after those of minus infinity: the sort is stable, and they are the later ones.
    order = best.masked_fill(beyond, -torch.inf).sort(dim=2, descending=True, stable=True).indices
    return order[:, :, :count].sort(2).values.int()
