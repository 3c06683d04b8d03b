"""The relu with one bit for each element, and its backward: one stream each."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def relu_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (relu of `x[..., C]`, bits[..., ceil(C / 32)]); see `gossamer.kernels.reference.relu_bits`."""
    _call.tensor(x, "x", dtypes=(torch.float32,))
    if x.ndim == 0:
        raise ValueError("x must have at least 1 dimension, got a scalar")
    y = memory.empty(tuple(x.shape), torch.float32)
    bits = torch.empty((*x.shape[:-1], -(-x.shape[-1] // 32)), dtype=torch.int32, device="cpu")
    _call.native.relu_bits(x.data_ptr(), _rows(x), x.shape[-1], y.data_ptr(), bits.data_ptr(), torch.get_num_threads())
    return y, bits


def keep_bits(x: Tensor, bits: Tensor) -> Tensor:
    """Return `x[..., C]` with zeros where no bit is set; see `gossamer.kernels.reference.keep_bits`."""
    _call.tensor(x, "x", dtypes=(torch.float32,))
    if x.ndim == 0:
        raise ValueError("x must have at least 1 dimension, got a scalar")
    _call.bits(bits, x)
    y = memory.empty(tuple(x.shape), torch.float32)
    _call.native.keep_bits(x.data_ptr(), bits.data_ptr(), _rows(x), x.shape[-1], y.data_ptr(), torch.get_num_threads())
    return y


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1] if x.shape[-1] else 0
