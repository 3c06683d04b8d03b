"""What each page may matter to a query: the oracle, by a gather of the upper four bits of all keys."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._pages import check_group, check_heads, check_lengths, from_planes
from gossamer.kernels.reference._slots import demand


def page_key_scores(
    q: Tensor, heads: Tensor, group: int, codes: Tensor, scales: Tensor, lengths: Tensor, table: Tensor
) -> Tensor:
    """scores[requests, query heads, pages]: the largest product of q[requests, query heads, width], rounded to 8 bits,
    with the keys of each page of a request; -inf where there is none.

    codes[pages, heads, planes, width / 8, page, 4] and scales[pages, heads, 2, page] are those of `page_append`. Of
    codes of eight bits (two planes) the upper four are read: they stand for the middle of what they may be.
    """
    planes, page = codes.shape[2], codes.shape[4]
    check_lengths(lengths, table, page)
    if len(q) != len(table):
        raise ValueError(f"q must have {len(table)} rows, as table, got {len(q)}")
    check_group(group, q.shape[1])
    check_heads(heads, codes.shape[1], q.shape[1], group)
    pages = torch.arange(table.shape[1], device=q.device)
    used = pages < -(-lengths[:, None] // page)
    demand((~used | ((table >= 0) & (table < len(codes)))).all(), f"table must name pages below {len(codes)}")
    filled = pages[:, None] * page + torch.arange(page, device=q.device) < lengths[:, None, None]
    rows = torch.where(used, table.long(), 0)
    # [requests, pages, heads, tokens], codes with a coordinate too
    upper = from_planes(codes[rows, :, :1]).double()
    upper = 16 * upper + 7.5 if planes == 2 else upper
    scale, zero = scales[rows].double().unbind(-2)
    rounded, by = in_eight_bits(q)
    scores = torch.full((*q.shape[:2], table.shape[1]), -torch.inf, dtype=torch.float32, device=q.device)
    for h, head in enumerate(heads.tolist()):
        mine = slice(head, head + group)
        sums = torch.einsum("rgd,rptd->rgpt", rounded[:, mine], upper[:, :, h])
        products = sums * scale[:, None, :, h] + zero[:, None, :, h] * rounded[:, mine].sum(2)[:, :, None, None]
        products = products.float() * by[:, mine, None, None]
        scores[:, mine] = products.masked_fill(products.isnan() | ~filled[:, None], -torch.inf).amax(3)
    return scores


def in_eight_bits(q: Tensor) -> tuple[Tensor, Tensor]:
    """q[..., width] is about codes * scale: integers of -127 to 127 as float64, and float32[...]; NaN makes all NaN."""
    scale = q.abs().amax(-1) / 127 + (q - q).sum(-1)
    codes = torch.where(scale[..., None] > 0, q / torch.where(scale > 0, scale, 1)[..., None], 0).round()
    return codes.nan_to_num().clamp(-127, 127).double(), scale
