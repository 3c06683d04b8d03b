"""Which tiles hold a nonzero: reads the matrix once into one bit a tile, then turns bits into indices."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def _room(capacity: int, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Room for indices, and whether it is zero. Slack in new memory is left as it came: touching it costs far more
    than clearing memory in use."""
    room = memory.untouched(capacity, dtype)
    return (torch.empty(capacity, dtype=dtype), False) if room is None else (room, True)


def detect(x: Tensor, bm: int, bn: int, capacity: int, ordered: bool) -> tuple[Tensor, Tensor]:
    """Return `(offsets int64[tile_rows + 1], indices[capacity])`; see `gossamer.kernels.reference.detect`.

    Rows come out ordered whatever `ordered` says: on a CPU order costs nothing.
    """
    _call.tensor(x, "x", ndim=2, dtypes=_call.FLOATS + _call.INTEGERS)
    _call.tile(bm, bn)
    if capacity < 0:
        raise ValueError(f"capacity must be at least 0, got {capacity}")
    rows, cols = x.shape
    tile_rows, tile_cols = _call.tiles(rows, cols, bm, bn)
    offsets = torch.empty(tile_rows + 1, dtype=torch.int64)
    indices, cleared = _room(capacity, _call.index_dtype(tile_cols))
    flags = torch.empty(tile_rows * (-(-tile_cols // 64) + 1), dtype=torch.int64)
    _call.native.detect(
        x.data_ptr(), rows, cols, x.itemsize, x.dtype in _call.FLOATS, bm, bn, capacity,
        flags.data_ptr(), offsets.data_ptr(), indices.data_ptr(), indices.itemsize, cleared, torch.get_num_threads(),
    )  # fmt: skip
    return offsets, indices
