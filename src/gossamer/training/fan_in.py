"""Constant fan-in: the same number of weights in every living row, kept ones first, then the best newcomers."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.training.select import topk


def fill_rows(kept: Tensor, magnitude: Tensor, growth: Tensor, k: int, allowed: Tensor | None = None) -> Tensor:
    """bool[rows, cols] with exactly k True in every row that has room, none elsewhere.

    A row with more than k kept weights keeps its k of largest magnitude; a row with fewer is filled with the allowed
    weights of largest growth. Ties go to the lowest column.

    Args:
        kept: bool[rows, cols].
        magnitude: [rows, cols], >= 0; read where kept.
        growth: [rows, cols], >= 0; read where allowed and not kept.
        k: weights per living row.
        allowed: bool[rows, cols]; a row of False is dead. None: all of them.

    Raises:
        ValueError: a living row with fewer than k allowed weights.

    Example:
        >>> kept = torch.tensor([[True, True, False], [False, False, False]])
        >>> w, g = torch.tensor([[1.0, 3.0, 0.0]] * 2), torch.tensor([[0.0, 0.0, 2.0]] * 2)
        >>> fill_rows(kept, w, g, 1).int().tolist()
        [[0, 1, 0], [0, 0, 1]]
    """
    rows, cols = kept.shape
    capacity = torch.full((rows,), cols, dtype=torch.int64, device=kept.device) if allowed is None else allowed.sum(1)
    living = capacity > 0
    if bool((capacity[living] < k).any()):
        raise ValueError(f"cannot place k={k} weights in rows that have room for {int(capacity[living].min())}")
    kept = kept if allowed is None else kept & allowed
    counts = kept.sum(1)
    crowded = counts > k
    if bool(crowded.any()):
        kept = torch.where(crowded[:, None], _largest(torch.where(kept, magnitude, -1.0), crowded * k), kept)
        counts = counts.clamp(max=k)
    candidates = ~kept if allowed is None else allowed & ~kept
    return kept | _largest(torch.where(candidates, growth, -1.0), (k - counts) * living)


def exchange_in_rows(active: Tensor, share: float, drop_scores: Tensor, grow_scores: Tensor, *, regrow: bool) -> Tensor:
    """bool[rows, cols]: drop the floor(share * nnz) of smallest drop score, then every row grows as many as it lost.

    Args:
        active: bool[rows, cols], as many in each row.
        drop_scores, grow_scores: [rows * cols]; grow scores are at least 0.
        regrow: whether what was dropped may grow again; if not, it does only where a row has nothing else.

    Example:
        >>> active = torch.tensor([[True, True, False], [True, False, True]])
        >>> drop, grow = torch.tensor([1.0, 2.0, 0.0, 3.0, 0.0, 4.0]), torch.tensor([9.0, 0.0, 1.0, 0.0, 1.0, 0.0])
        >>> exchange_in_rows(active, 0.25, drop, grow, regrow=False).int().tolist()
        [[0, 1, 1], [1, 0, 1]]
    """
    flat = active.reshape(-1)
    count = int(share * int(torch.count_nonzero(flat)))
    kept = flat & ~topk(drop_scores, count, largest=False, allowed=flat)
    growth = grow_scores if regrow else torch.where(flat, 0, grow_scores + 1)
    fan_in = int(active[0].sum())
    return fill_rows(kept.view_as(active), torch.zeros_like(growth).view_as(active), growth.view_as(active), fan_in)


def _largest(scores: Tensor, need: Tensor) -> Tensor:
    """bool[rows, cols] with the need[row] largest of every row, ties to the lowest column.

    One selection per row instead of a sort of all of it. The smallest score that is chosen says which are; only in rows
    where the score after it is the same one must ties be counted.
    """
    rows, cols = need.nonzero().squeeze(1), scores.shape[1]
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if not len(rows):
        return chosen
    if len(rows) < len(scores):
        scores, need = scores[rows], need[rows]
    best = torch.topk(scores, min(int(need.max()) + 1, cols), dim=1).values
    least = best.gather(1, need[:, None] - 1)
    after = best.gather(1, need.clamp(max=best.shape[1] - 1)[:, None])
    found = scores >= least
    tied = ((after == least).squeeze(1) & (need < cols)).nonzero().squeeze(1)
    if len(tied):
        above, equal = scores[tied] > least[tied], scores[tied] == least[tied]
        left = need[tied] - above.sum(1)
        found[tied] = above | equal & (equal.cumsum(1) <= left[:, None])
    if len(rows) == len(chosen):
        return found
    chosen[rows] = found
    return chosen
