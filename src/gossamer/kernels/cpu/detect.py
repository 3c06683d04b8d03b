"""Which tiles hold a nonzero: reads the matrix once into one bit a tile, then turns bits into indices."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call

# From here on every block of the C library is new memory of the operating system, which is zero when first touched.
# Touching it costs far more than clearing memory in use, so the slack is left as it came.
NEW_MEMORY_BYTES = 32 << 20


def _room(capacity: int, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """An uninitialised tensor, or zeros that cost nothing until they are touched; and which of the two."""
    size = capacity * dtype.itemsize
    if size < NEW_MEMORY_BYTES:
        return torch.empty(capacity, dtype=dtype), False
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype), True


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
