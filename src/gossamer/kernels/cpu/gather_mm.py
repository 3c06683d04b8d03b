"""PIT's product: a dense matrix that holds zeros times another, read in place, only at the tiles of a pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call

PRODUCT = (torch.float32, torch.float64)


def gather_mm(a: Tensor, offsets: Tensor, indices: Tensor, bm: int, bk: int, b: Tensor, column_major: bool) -> Tensor:
    """Return `c[rows, n]`; see `gossamer.kernels.reference.gather_mm`. float32 and float64.

    A row of `b` that no tile names is never read into a sum, so Inf and NaN in it do not reach `c`.
    """
    _call.tensor(a, "a", ndim=2, dtypes=PRODUCT)
    _call.tensor(b, "b", ndim=3, dtypes=(a.dtype,), contiguous=False)
    rows, k = a.shape
    batch, inner, n = b.shape
    if inner != k:
        raise ValueError(f"b must have {k} rows like a has columns, got shape {tuple(b.shape)}")
    if batch < 1 or rows % batch != 0 or (batch > 1 and rows // batch % bm != 0):
        raise ValueError(
            f"a must be {batch} matrices of whole tiles one below the other, got {rows} rows in tiles of {bm}"
        )
    _call.check_pattern(offsets, indices, rows, k, bm, bk)
    bm, bk = min(bm, max(rows, 1)), min(bk, max(k, 1))
    tile_rows, tile_cols = _call.tiles(rows, k, bm, bk)
    _call.check_no_repeats(
        offsets, indices, tile_cols
    )  # it would be multiplied once or twice, as the tile happens to be
    if tile_rows > 2**31:
        raise ValueError(f"a must have at most 2**31 rows of tiles, got {tile_rows}: take higher tiles")
    stride, columns = _call.matrix(b[0], "each matrix of b")
    down, along = (1, stride) if columns else (stride, 1)
    c = torch.empty((rows, n), dtype=a.dtype)
    transposed = torch.empty((n, rows), dtype=a.dtype) if column_major else None
    threads = torch.get_num_threads()
    room = _call.native.gather_mm_scratch(a.itemsize, rows, k, indices.numel(), bk, batch, n, threads)
    scratch = torch.empty(room, dtype=torch.uint8)
    _call.native.gather_mm(
        a.data_ptr(), a.itemsize, rows, k, offsets.data_ptr(), indices.data_ptr(), indices.itemsize, bm, bk,
        indices.numel(), b.data_ptr(), batch, b.stride(0), down, along, n, c.data_ptr(),
        transposed.data_ptr() if transposed is not None else 0, scratch.data_ptr(), threads,
    )  # fmt: skip
    return c if transposed is None else transposed.t()
