"""Another order of a weight's elements in memory: the same Parameter, the same numbers, other strides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reorder_(weight: Tensor, strides: Sequence[int]) -> None:
    """Store a weight with these strides. Whoever remembers the old ones (a fused optimizer's state) must be told."""
    if weight.stride() == tuple(strides):
        return
    with torch.inference_mode(weight.is_inference()):  # what it was made under stays
        moved = torch.empty_strided(weight.shape, tuple(strides), dtype=weight.dtype, device=weight.device)
        weight.data = moved.copy_(weight.data)
