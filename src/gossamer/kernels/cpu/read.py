"""Read a tensor once: the yardstick that the time of every other op is divided by."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call


def read(x: Tensor) -> int:
    """Return the sum, modulo 2^64, of the bytes of `x` taken as 64-bit words (trailing bytes one by one).

    The value only proves that every byte was read; the time is how fast this machine streams.
    """
    _call.tensor(x, "x")
    return int(_call.native.read(x.data_ptr(), x.numel() * x.itemsize, torch.get_num_threads()))
