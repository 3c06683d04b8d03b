"""What each page may matter to a query: the oracle, by a gather of all summaries."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._pages import check_group, check_heads, check_lengths
from gossamer.kernels.reference._slots import demand


def page_scores(
    form: Tensor, heads: Tensor, group: int, summaries: Tensor, lengths: Tensor, table: Tensor, page: int
) -> Tensor:
    """scores[requests, query heads, pages]: the largest product of form[requests, query heads, 2 * width] with the
    summaries[pages, heads, n, 2, width] of the filled stretches of each page of a request; -inf where there is none."""
    n, width = summaries.shape[2], summaries.shape[4]
    check_lengths(lengths, table, page)
    if len(form) != len(table):
        raise ValueError(f"form must have {len(table)} rows, as table, got {len(form)}")
    check_group(group, form.shape[1])
    check_heads(heads, summaries.shape[1], form.shape[1], group)
    pages = torch.arange(table.shape[1], device=form.device)
    used = pages < -(-lengths[:, None] // page)
    demand((~used | ((table >= 0) & (table < len(summaries)))).all(), f"table must name pages below {len(summaries)}")
    filled = pages[:, None] * page + torch.arange(n, device=form.device) * (page // n) < lengths[:, None, None]
    kept = summaries[torch.where(used, table.long(), 0)].double()  # [requests, pages, heads, n, 2, width]
    scores = torch.full((len(form), form.shape[1], table.shape[1]), -torch.inf, dtype=torch.float64, device=form.device)
    for h, head in enumerate(heads.tolist()):
        mine = slice(head, head + group)
        products = torch.einsum(
            "rgd,rpnd->rgpn", form[:, mine].double(), kept[:, :, h].reshape(*kept.shape[:2], n, 2 * width)
        )
        scores[:, mine] = products.masked_fill(~filled[:, None], -torch.inf).amax(-1)
    return scores.float()
