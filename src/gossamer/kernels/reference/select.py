"""The k best of n scores, exactly, ties in order of index: the oracle, by a stable sort."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_mask(scores: Tensor, k: int, largest: bool = True, allowed: Tensor | None = None) -> Tensor:
    """Return a bool mask[n] with exactly min(k, number allowed) True: the best scores among those allowed.

    Args:
        scores: float32[n] or float64[n], without NaN where allowed. -0.0 equals 0.0.
        k: how many to take, 0 or more.
        largest: take the largest scores, or else the smallest.
        allowed: bool[n], or None for all; scores outside are never taken (and may be NaN).

    Equal scores are taken in order of index, so the answer is a function of the scores alone, on every machine:
    training methods that add or remove exactly k weights, and ranks that must agree, rest on this.

    Raises ValueError for k < 0, a wrong shape, or NaN; TypeError for a wrong dtype.

    >>> import torch
    >>> topk_mask(torch.tensor([1.0, 3.0, 3.0, 2.0]), 1)
    tensor([False,  True, False, False])
    >>> topk_mask(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2, largest=False, allowed=torch.tensor([False, True, True, True]))
    tensor([False,  True, False,  True])
    """
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scores must have dtype torch.float32 or torch.float64, got {scores.dtype}")
    if scores.ndim != 1:
        raise ValueError(f"scores must have 1 dimension, got shape {tuple(scores.shape)}")
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    if allowed is None:
        allowed = torch.ones_like(scores, dtype=torch.bool)
    if allowed.dtype != torch.bool:
        raise TypeError(f"allowed must be bool, got {allowed.dtype}")
    if allowed.shape != scores.shape:
        raise ValueError(f"allowed must have {scores.numel()} entries like scores, got {allowed.numel()}")
    places = allowed.nonzero().flatten()
    candidates = scores[places]
    if candidates.isnan().any():
        raise ValueError("scores must not contain NaN where allowed: NaN has no rank")
    best = candidates.sort(descending=largest, stable=True).indices[:k]
    return torch.zeros_like(allowed).index_fill_(0, places[best], True)
