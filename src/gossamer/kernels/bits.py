"""Numbers as the integers of their width: moving tiles is the same for every dtype of one size."""

from __future__ import annotations

import torch
from torch import Tensor

_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(x: Tensor) -> Tensor:
    """The same memory as integers of 1, 2, 4 or 8 bytes."""
    size = x.element_size()
    if size not in _OF_SIZE:
        raise TypeError(f"dtype must have 1, 2, 4 or 8 bytes an element, got {x.dtype} with {size}")
    return x.view(_OF_SIZE[size])
