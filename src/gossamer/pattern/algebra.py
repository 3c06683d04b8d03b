"""Patterns as sets of tile numbers: union, intersection, difference, transpose.

The number of a tile is `key = row * tile_cols + col`; slack entries get the number after the last tile, so that a
sort moves them to the end. Every operation is a sort, a binary search or a running sum over `capacity` numbers:
nothing of the size of the grid is allocated, no shape depends on the data, and the host never waits for a device.

    a = {0, 2, 7}, b = {2, 3}      sorted together: 0 2 2 3 7
    union: blank every repeat -> 0 2 3 7       intersection: keep only the repeats -> 2
"""

from __future__ import annotations

import torch
from torch import Tensor


def slot_rows(offsets: Tensor, capacity: int) -> Tensor:
    """The tile row that owns each slot: int64[capacity], `tile_rows` in slack slots."""
    ends = offsets[1:].clamp(max=capacity)  # those of rows that overflowed fall on the entry that is cut off
    steps = offsets.new_zeros(capacity + 1).index_add_(0, ends, torch.ones_like(ends))
    return steps[:capacity].cumsum(0)


def keys_of(offsets: Tensor, indices: Tensor, tile_cols: int) -> Tensor:
    """int64[capacity] tile numbers in slot order; `tile_rows * tile_cols` in slack slots.

    Raises ValueError, on a CPU, for an index that would name a tile of another row.
    """
    tile_rows = offsets.shape[0] - 1
    if tile_rows * tile_cols >= 2**63:
        raise ValueError(f"shape must have fewer than 2**63 tiles, got {tile_rows} x {tile_cols}")
    row = slot_rows(offsets, indices.numel())
    column = indices.reshape(-1).to(torch.int64)
    if column.device.type == "cpu" and not torch.compiler.is_compiling() and column.numel():
        low, high = column.aminmax()
        if low < 0 or high >= tile_cols:  # perhaps only in the slack
            outside = column[(row < tile_rows) & ((column < 0) | (column >= tile_cols))]
            if outside.numel():
                raise ValueError(f"indices must be below the {tile_cols} tile columns, got {int(outside[0])}")
    return torch.where(row < tile_rows, row * tile_cols + column, tile_rows * tile_cols)


def union(a: Tensor, b: Tensor, slack: int) -> Tensor:
    """Sorted keys in either of two key lists; `slack` is the number that stands for no tile."""
    both = torch.cat([a, b]).sort().values
    repeat = torch.zeros_like(both, dtype=torch.bool)
    repeat[1:] = both[1:] == both[:-1]
    return both.masked_fill(repeat, slack).sort().values


def intersection(a: Tensor, b: Tensor, slack: int) -> Tensor:
    """Sorted keys in both lists, as many entries as the shorter list has."""
    return a.masked_fill(~_contains(b, a), slack).sort().values[: min(a.numel(), b.numel())]


def difference(a: Tensor, b: Tensor, slack: int) -> Tensor:
    """Sorted keys of the first list that are not in the second."""
    return a.masked_fill(_contains(b, a), slack).sort().values


def _contains(keys: Tensor, wanted: Tensor) -> Tensor:
    if keys.numel() == 0:
        return torch.zeros_like(wanted, dtype=torch.bool)
    ordered = keys.sort().values
    place = torch.searchsorted(ordered, wanted).clamp(max=keys.numel() - 1)
    return ordered[place] == wanted


def transposed(keys: Tensor, tile_rows: int, tile_cols: int) -> tuple[Tensor, Tensor]:
    """Keys in slot order -> sorted keys of the transposed grid, and the slot each came from."""
    slack = tile_rows * tile_cols
    row, column = keys // max(tile_cols, 1), keys % max(tile_cols, 1)
    return torch.where(keys < slack, column * tile_rows + row, slack).sort()
