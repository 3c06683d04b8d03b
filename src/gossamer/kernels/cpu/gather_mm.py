"""PIT's product: a dense matrix that holds zeros times another, read in place, only at the tiles of a pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory

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
    _call.tile(bm, bk)
    index = _call.check_pattern(offsets, indices, rows, k, min(bm, max(rows, 1)), min(bk, max(k, 1)))
    if offsets.numel() > 2**31:
        raise ValueError(f"a must have at most 2**31 rows of tiles, got {offsets.numel() - 1}: take higher tiles")
    right = _call.matrix(b[0], "each matrix of b")
    c = memory.empty((rows, n), a.dtype)
    transposed = memory.empty((n, rows), a.dtype) if column_major else None
    threads = torch.get_num_threads()
    size = _call.native.gather_mm_workspace(a.itemsize, index, batch, n, threads)
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    if not _call.native.gather_mm(
        a.data_ptr(), a.itemsize, index, right, batch, b.stride(0), n, c.data_ptr(),
        _call.address(transposed), workspace.data_ptr(), threads,
    ):  # fmt: skip
        _call.refuse_pattern(offsets, indices, index, once=True)  # a tile named twice has no one sum
    return c if transposed is None else transposed.t()
