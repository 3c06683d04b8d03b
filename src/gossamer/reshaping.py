"""Data of another shape for a parameter that stays the same object. May import torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def set_data(tensor: Tensor, data: Tensor, grad: Tensor | None = None) -> None:
    """Give a parameter data of another shape, and a gradient of that shape or none.

    A gradient accumulator that an earlier loss still holds remembers the old shape and fails the next backward;
    passing through another dtype makes autograd drop it.

    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> loss = weight.sum()
    >>> set_data(weight, torch.ones(2))
    >>> weight.sum().backward()
    >>> weight.grad
    tensor([1., 1.])
    """
    tensor.grad = None
    other = torch.float32 if data.dtype != torch.float32 else torch.float64
    tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data
    tensor.grad = grad
