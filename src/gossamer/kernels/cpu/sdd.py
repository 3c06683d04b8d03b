"""Sampled product: of a dense product, only the tiles that a pattern names."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def sdd(a: Tensor, b: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    """Return `values[capacity, bm, bn]`; see `gossamer.kernels.reference.sdd`.

    Each of a [m, k] and b [k, n] is row-major or a transposed view of a row-major matrix. One whose elements do not
    follow one another along k is transposed into workspace first.
    """
    left = _call.matrix(a, "a", dtypes=(torch.float32, torch.float64))
    right = _call.matrix(b, "b", dtypes=(a.dtype,))
    (m, k), n = a.shape, b.shape[1]
    if b.shape[0] != k:
        raise ValueError(f"b must have {k} rows, as many as a has columns, got shape {tuple(b.shape)}")
    index = _call.check_pattern(offsets, indices, m, n, bm, bn)
    values = memory.empty((indices.numel(), bm, bn), a.dtype)
    threads = torch.get_num_threads()
    packed = torch.empty(k * (m * left[2] + n * (not right[2])), dtype=a.dtype, device="cpu")
    following = torch.empty(offsets.numel() + threads, dtype=torch.int64, device="cpu")
    if not _call.native.sdd(
        left, right, k, a.itemsize, index, values.data_ptr(), packed.data_ptr(), following.data_ptr(), threads
    ):
        _call.refuse_pattern(offsets, indices, index)
    return values
