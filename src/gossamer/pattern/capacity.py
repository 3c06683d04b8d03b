"""The same tiles in another number of slots, and other tiles in the same buffers."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from gossamer.pattern.check import Overflow, require, room_for, sized


def resized(
    offsets: Tensor, indices: Tensor, capacity: int, overflow: Overflow, every_tile: int
) -> tuple[Tensor, Tensor] | None:
    """New (offsets, indices) with `capacity` slots, or None where overflow="dense" asks for every tile."""
    if capacity is None:
        raise TypeError("capacity must be an int, got None")
    room, dense = room_for(offsets[-1], capacity, overflow, every_tile)
    if dense:
        return None
    kept = indices.reshape(-1)[:room]
    return offsets.clone(), pad(kept, (0, room - kept.numel()))


def take_over(offsets: Tensor | None, indices: Tensor, new_offsets: Tensor, new_indices: Tensor) -> None:
    """Write another index into these buffers, or raise RuntimeError, having changed nothing, if it has no room."""
    if offsets is None:  # fan-in, whose rows have their places
        indices.copy_(new_indices)
        return
    capacity = indices.numel()
    require(
        new_offsets[-1] <= capacity,
        lambda: f"other has {int(new_offsets[-1])} tiles, this pattern has a capacity of {capacity}",
        f"other has more tiles than this pattern has room for, {sized('capacity', capacity)}",
        RuntimeError,
    )
    kept = new_indices.reshape(-1)[:capacity]
    offsets.copy_(new_offsets)
    indices[: kept.numel()].copy_(kept)
