"""A batch of patterns as one: heads of an attention, or requests, whose products are then one call.

a = [1 0]   b = [0 1]      [1 0 . .]     the tile rows of a batch of n are n * tile_rows; what the batch shares
    [0 1]       [1 1]      [0 1 . .]     (a matrix of queries, of values) is laid below each other likewise
                           [. . 0 1]
                           [. . 1 1]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.pattern.build import index_dtype
from gossamer.pattern.check import room_for
from gossamer.pattern.pattern import Pattern


def block_diagonal(patterns: Sequence[Pattern], *, copies: int = 1, capacity: int | None = None) -> Pattern:
    """Patterns of one shape and tile along the diagonal of one matrix of whole tiles.

    Args:
        patterns: n of them. Ragged tiles are padded: pattern i has the tile rows from `i * tile_rows` on.
        copies: lay all of them so many times, one after the other.
        capacity: number of index entries. None for exactly the tiles present: their count, of all patterns together, is
            read in one device sync. With a capacity there is none; too small a one is an error, as in
            `Pattern.from_mask`.

    Raises:
        ValueError: no patterns, or such of different shapes, tiles or devices. RuntimeError: too small a capacity.

    >>> one = Pattern.from_mask(torch.tensor([[True, False]]))
    >>> block_diagonal([one], copies=2).to_mask().int().tolist()
    [[1, 0, 0, 0], [0, 0, 1, 0]]
    """
    if len({(tuple(p.shape), tuple(p.tile), p.device) for p in patterns}) != 1:
        raise ValueError(f"patterns must be one or more, and agree in shape, tile and device, got {list(patterns)}")
    n, (rows, cols), tile = len(patterns) * copies, patterns[0].grid, patterns[0].tile
    widest = max(p.capacity for p in patterns)
    offsets = torch.stack([p.row_offsets() for p in patterns])
    indices = torch.stack([pad(p.indices.reshape(-1).to(torch.int64), (0, widest - p.capacity)) for p in patterns])
    room, _ = room_for(offsets[:, -1].sum() * copies, capacity, "error", n * rows * cols)
    index = _joined(offsets.repeat(copies, 1), indices.repeat(copies, 1), cols, room)
    return Pattern(*index, (n * rows * tile[0], n * cols * tile[1]), tile)


def _joined(offsets: Tensor, indices: Tensor, tile_cols: int, room: int) -> tuple[Tensor, Tensor]:
    """offsets[n, tile_rows + 1], indices[n, capacity] -> an index of `room` slots whose slack is all at the end."""
    n, capacity = indices.shape
    count = offsets[:, -1:]
    start = pad(count.cumsum(0), (0, 0, 1, 0))  # [n + 1, 1]: the first slot of each pattern
    slot = torch.arange(capacity, device=indices.device)
    place = torch.where(slot < count, start[:-1] + slot, room).clamp(max=room)
    column = indices + torch.arange(n, device=indices.device).unsqueeze(1) * tile_cols
    found = indices.new_zeros(room + 1).scatter_(0, place.reshape(-1), column.reshape(-1))
    row_starts = (offsets[:, :-1] + start[:-1]).reshape(-1)
    return torch.cat([row_starts, start[-1]]), found[:room].to(index_dtype(n * tile_cols))
