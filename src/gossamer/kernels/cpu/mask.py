"""Zero, in place, what a mask leaves out: one stream over the tensor and its mask."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call


def mask_(x: Tensor, mask: Tensor) -> Tensor:
    """Zero every element of `x` where `mask` is false, in place; see `gossamer.kernels.reference.mask_`."""
    _call.tensor(x, "x")
    _call.tensor(mask, "mask", dtypes=(torch.bool,))
    if mask.shape != x.shape:
        raise ValueError(f"mask must have the shape of x, {tuple(x.shape)}, got {tuple(mask.shape)}")
    _call.native.mask(x.data_ptr(), mask.data_ptr(), x.numel(), x.itemsize, torch.get_num_threads())
    torch.autograd.graph.increment_version(x)
    return x
