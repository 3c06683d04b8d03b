"""First connections of rows with constant fan-in: k inputs for each, uniform among all sets of k, and uniform values.

Every number is a function of (seed, row, slot), so what is built in parts, or sharded, is the same.
Rows are drawn a block at a time: no mask, and nothing of the size labels x width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.kernels.counter import row_keys, slot_bits
from gossamer.pattern.build import index_dtype

BLOCK = 1 << 18  # numbers drawn at once
CONNECTIONS, VALUES = -1, -2  # what is drawn, in place of the number of a step


def draw_connections(rows: int, width: int, fan_in: int, *, seed: int, first: int = 0) -> Tensor:
    """uint16 or int32 [rows, fan_in]: sorted, none twice in a row, every set of `fan_in` inputs as likely as another.

    Args:
        first: number of the first of the rows.

    Floyd's algorithm: slot j takes one of the first width - fan_in + j + 1 inputs, or the last of those if the row has
    that one already (Bentley and Floyd, "A sample of brilliance", 1987).

    >>> draw_connections(2, 5, 5, seed=0).tolist()
    [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    """
    chosen = torch.empty(rows, fan_in, dtype=index_dtype(width))
    block = max(BLOCK // max(fan_in, 1), 1)
    for begin in range(0, rows, block):
        names = torch.arange(begin, min(begin + block, rows)) + first
        bits = slot_bits(row_keys(seed, CONNECTIONS, names), fan_in).t().contiguous()
        taken = torch.empty(fan_in, len(names), dtype=torch.int32)
        for j in range(fan_in):
            last = width - fan_in + j
            drawn = (bits[j] * (last + 1) >> 32).to(torch.int32)
            repeated = (taken[:j] == drawn).any(0)
            taken[j] = torch.where(repeated, last, drawn)
        chosen[begin : begin + block] = taken.t().sort(dim=1).values.to(chosen.dtype)
    return chosen


def draw_values(values: Tensor, *, seed: int, first: int = 0, bound: float | None = None) -> None:
    """Fill values[rows, k] uniformly in +-bound (None: 1 / sqrt(k)), in place."""
    rows, k = values.shape
    bound = 1 / math.sqrt(max(k, 1)) if bound is None else bound
    block = max(BLOCK // max(k, 1), 1)
    for begin in range(0, rows, block):
        names = torch.arange(begin, min(begin + block, rows)) + first
        unit = slot_bits(row_keys(seed, VALUES, names), k).double() * 2.0**-32
        values[begin : begin + block] = ((2 * unit - 1) * bound).to(values.dtype)
