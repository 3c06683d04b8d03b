"""Choosing exactly k units by score, ties to the lowest index, and the drop-and-grow step built from it.

    scores = [3, 1, 3, 2], k = 2, largest  ->  [1, 0, 1, 0]
    scores = [5, 5, 5, 5], k = 2, largest  ->  [1, 1, 0, 0]

torch.topk leaves the order of ties open; a stable choice makes masks equal on every rank, device and run.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from gossamer.kernels.reference import mask as reference_mask
from gossamer.kernels.reference import select as reference_select

# Only a source tree without the compiled module may go on without it; a module that fails to load must say so.
if find_spec("gossamer._native") is not None:
    from gossamer.kernels.cpu import mask as cpu_mask
    from gossamer.kernels.cpu import select as cpu_select
else:
    cpu_mask = cpu_select = None  # type: ignore[assignment]


def topk(scores: Tensor, k: int, *, largest: bool = True, allowed: Tensor | None = None) -> Tensor:
    """bool[n] with exactly k True: the k largest (or smallest) scores[n] among `allowed`, ties to the lowest index.

    Raises:
        ValueError: k outside [0, number allowed].

    Example:
        >>> topk(torch.tensor([3.0, 1.0, 3.0, 2.0]), 2).tolist()
        [True, False, True, False]
    """
    room = scores.numel() if allowed is None else int(torch.count_nonzero(allowed))
    if not 0 <= k <= room:
        raise ValueError(f"cannot choose k={k} of {room} units")
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k == room:
        return torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.clone()
    # A choice by device and dtype, made before the call: the native kernel ranks float32 on the CPU and returns the
    # reference's mask, bit for bit.
    native = cpu_select is not None and scores.device.type == "cpu" and scores.dtype == torch.float32
    kernel = cpu_select.topk_mask if native else reference_select.topk_mask
    return kernel(scores.contiguous(), k, largest=largest, allowed=allowed)


def mask_(x: Tensor, mask: Tensor) -> Tensor:
    """Zero x in place where mask is False, NaN and infinity included (a product would keep NaN)."""
    if x.numel() and x.stride() == mask.stride() and not x.is_contiguous() and _is_dense(x):
        # channels_last: the same bytes, seen in storage order
        flat = [t.as_strided((t.numel(),), (1,)) for t in (x, mask)]
        mask_(*flat)
        return x
    native = cpu_select is not None and x.device.type == "cpu" and x.is_contiguous() and mask.is_contiguous()
    return (cpu_mask.mask_ if native else reference_mask.mask_)(x, mask)


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill one block of memory without holes or overlap."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def rewire(
    active: Tensor,
    *,
    drop: int,
    grow: int,
    drop_scores: Tensor | None = None,
    grow_scores: Tensor | None = None,
    allowed: Tensor | None = None,
    regrow: bool = True,
) -> Tensor:
    """Drop the `drop` active units of smallest drop score, then add the `grow` absent units of largest grow score.

    Args:
        active: bool[n], the units present now.
        drop: number of active units to drop.
        grow: number of units to grow.
        drop_scores: [n], needed when drop > 0.
        grow_scores: [n], needed when grow > 0.
        allowed: bool[n], units that may grow (None: all).
        regrow: whether a unit dropped in this call may grow again, as in RigL (Evci et al., 2020, algorithm 1).

    Returns:
        bool[n], with exactly active.sum() - drop + grow True.

    Raises:
        ValueError: more to drop than there is, or more to grow than there is room for.

    Example:
        >>> rewire(
        ...     torch.tensor([True, True, False, False]), drop=1, grow=1,
        ...     drop_scores=torch.tensor([0.5, 0.1, 0.0, 0.0]), grow_scores=torch.tensor([0.0, 1.0, 3.0, 2.0]),
        ... ).tolist()
        [True, False, True, False]
    """
    kept = active
    if drop:
        assert drop_scores is not None
        kept = active & ~topk(drop_scores, drop, largest=False, allowed=active)
    if not grow:
        return kept.clone()
    assert grow_scores is not None
    candidates = ~(kept if regrow else active)
    if allowed is not None:
        candidates &= allowed
    return kept | topk(grow_scores, grow, allowed=candidates)
