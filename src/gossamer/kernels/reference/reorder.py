"""Images between the two orders of memory, planes and pixels: the oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def reorder(x: Tensor) -> Tensor:
    """x[B, rows, cols] -> its matrices transposed, contiguous: [B, cols, rows].

    >>> import torch
    >>> reorder(torch.tensor([[[1.0, 2.0, 3.0]]])).tolist()
    [[[1.0], [2.0], [3.0]]]
    """
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
