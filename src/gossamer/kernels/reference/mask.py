"""Zero, in place, what a mask leaves out: the oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_(x: Tensor, mask: Tensor) -> Tensor:
    """Zero every element of `x` where `mask` is false, in place, and return `x`.

    Args:
        x: any shape, any real dtype.
        mask: bool, the shape of `x`.

    Not a product: 0 * NaN is NaN, and a gradient that overflowed must not come back through a hole. The zeros are +0.

    Raises ValueError when the shapes differ and TypeError when `mask` is not bool; `x` is then untouched.

    >>> import torch
    >>> x = torch.tensor([1.0, float("nan"), -3.0])
    >>> mask_(x, torch.tensor([True, False, True]))
    tensor([ 1.,  0., -3.])
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if mask.shape != x.shape:
        raise ValueError(f"mask must have the shape of x, {tuple(x.shape)}, got {tuple(mask.shape)}")
    with torch.no_grad():
        return x.masked_fill_(~mask, 0)
