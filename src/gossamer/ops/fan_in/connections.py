"""First values of rows with constant fan-in; their first connections are `rewire.fan_in_indices`.

Every number is a function of (seed, row, slot), so what is built in parts, or sharded, is the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.kernels.counter import row_keys, slot_bits

BLOCK = 1 << 18  # numbers drawn at once
VALUES = -2  # in place of the number of a step


def draw_values(values: Tensor, *, seed: int, first: int = 0, bound: float | None = None) -> None:
    """Fill values[rows, k] uniformly in +-bound (None: 1 / sqrt(k)), in place."""
    rows, k = values.shape
    bound = 1 / math.sqrt(max(k, 1)) if bound is None else bound
    block = max(BLOCK // max(k, 1), 1)
    for begin in range(0, rows, block):
        names = torch.arange(begin, min(begin + block, rows), device="cpu") + first
        unit = slot_bits(row_keys(seed, VALUES, names), k).double() * 2.0**-32
        values[begin : begin + block] = ((2 * unit - 1) * bound).to(values.dtype)
