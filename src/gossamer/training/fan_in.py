"""Constant fan-in: the same number of weights in every living row, kept ones first, then the best newcomers."""

from __future__ import annotations

import torch
from torch import Tensor


def fill_rows(kept: Tensor, magnitude: Tensor, growth: Tensor, k: int, allowed: Tensor) -> Tensor:
    """bool[rows, cols] with exactly k True in every row that has room, none elsewhere.

    A row with more than k kept weights keeps its k of largest magnitude; a row with fewer is filled with the allowed
    weights of largest growth. Ties go to the lowest column.

    Args:
        kept: bool[rows, cols].
        magnitude: [rows, cols], >= 0; read where kept.
        growth: [rows, cols], >= 0; read where allowed and not kept.
        k: weights per living row.
        allowed: bool[rows, cols]; a row of False is dead.

    Raises:
        ValueError: a living row with fewer than k allowed weights.

    Example:
        >>> kept = torch.tensor([[True, True, False], [False, False, False]])
        >>> w, g = torch.tensor([[1.0, 3.0, 0.0]] * 2), torch.tensor([[0.0, 0.0, 2.0]] * 2)
        >>> fill_rows(kept, w, g, 1, torch.ones_like(kept)).int().tolist()
        [[0, 1, 0], [0, 0, 1]]
    """
    capacity = allowed.sum(1)
    living = capacity > 0
    if bool((capacity[living] < k).any()):
        raise ValueError(f"cannot place k={k} weights in rows that have room for {int(capacity[living].min())}")
    kept = kept & allowed
    if bool((kept.sum(1) > k).any()):
        kept = kept & (_rank(torch.where(kept, magnitude, -1.0)) < k)
    need = (k - kept.sum(1)) * living
    candidates = allowed & ~kept
    return kept | candidates & (_rank(torch.where(candidates, growth, -1.0)) < need[:, None])


def _rank(scores: Tensor) -> Tensor:
    """Place of each element in the descending, stable order of its row."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(order).scatter_(1, order, places)
