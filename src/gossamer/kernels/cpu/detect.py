"""Which tiles hold a nonzero: reads the matrix once into one bit a tile, then turns bits into indices."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def detect(x: Tensor, bm: int, bn: int, capacity: int, ordered: bool) -> tuple[Tensor, Tensor]:
    """Return `(offsets int64[tile_rows + 1], indices[capacity])`; see `gossamer.kernels.reference.detect`.

    Rows come out ordered whatever `ordered` says: on a CPU order costs nothing.
    """
    _call.tensor(x, "x", ndim=2, dtypes=_call.FLOATS + _call.INTEGERS)
    _call.tile(bm, bn)
    _call.count(capacity, "capacity")
    rows, cols = x.shape
    bm, bn = min(bm, max(rows, 1)), min(bn, max(cols, 1))
    tile_rows, tile_cols = _call.tiles(rows, cols, bm, bn)
    offsets = torch.empty(tile_rows + 1, dtype=torch.int64, device="cpu")
    dtype = _call.index_dtype(tile_cols)
    room = memory.with_slack(capacity, dtype)
    indices = torch.empty(capacity, dtype=dtype, device="cpu") if room is None else room[0]
    flags = memory.empty((tile_rows * (-(-tile_cols // 64) + 1),), torch.int64, least=memory.PAGE // 2)
    _call.native.detect(
        x.data_ptr(), rows, cols, x.itemsize, x.dtype in _call.FLOATS, bm, bn, capacity,
        flags.data_ptr(), offsets.data_ptr(), indices.data_ptr(), indices.itemsize, room is not None,
        torch.get_num_threads(),
    )  # fmt: skip
    if room is not None:  # slack there is left untouched: a new page costs far more than clearing a used one
        room[1](min(int(offsets[-1]), capacity))
    return offsets, indices
