"""Sparse times dense: tiles named by a pattern, each multiplied where it lies."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory

# The numbers are those of `Storage` in csrc/dsd.h.
STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.int8: 3}


def dsd(
    values: Tensor,
    offsets: Tensor,
    indices: Tensor,
    order: Tensor | None,
    scale: Tensor | None,
    b: Tensor,
    rows: int,
    transposed: bool,
    column_major: bool,
    work: Tensor | None,
) -> Tensor:
    """Return `c[rows, n] = S @ b`; see `gossamer.kernels.reference.dsd`.

    values float32, bfloat16 or int8 with b float32, or both float64; int8 needs a scale.
    """
    _call.tensor(values, "values", ndim=3, dtypes=tuple(STORAGE))
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    right = _call.matrix(b, "b", dtypes=(dtype,))
    k, n = b.shape
    capacity, bm, bk = values.shape
    if transposed:
        bm, bk = bk, bm
    _call.count(rows, "rows")
    index = _call.check_pattern(offsets, indices, rows, k, bm, bk)
    if indices.numel() != capacity:
        raise ValueError(f"values must hold one tile per index: {indices.numel()} indices, got {capacity} tiles")
    if values.dtype == torch.int8 and scale is None:
        raise ValueError("scale must be given for int8 values, got None")
    if scale is not None:
        _per_slot(scale, "scale", capacity, (torch.float32,))
    if order is not None:
        _per_slot(order, "order", capacity, (torch.int32, torch.int64))
    if work is not None:
        _call.tensor(work, "work", ndim=3, dtypes=(torch.int64,))
        if work.shape[2] != 3:
            raise ValueError(f"work must have shape [parts, segments, 3], got {tuple(work.shape)}")

    c = memory.empty((n, rows) if column_major else (rows, n), dtype)
    in_place = order is None and scale is None and values.dtype == dtype
    partition = (0, 0) if work is None else (work.data_ptr(), work.shape[0] * work.shape[1])
    storage, threads = STORAGE[values.dtype], torch.get_num_threads()
    size = _call.native.dsd_workspace(storage, in_place, index, n, *partition, False, threads)
    if size == -2 and work is not None:  # not the usual partition: look closer, at all that it may leave out
        _check_numbers(offsets, indices, order, index)
        _call.check_work(work, index, offsets, order, values)
        size = _call.native.dsd_workspace(storage, in_place, index, n, *partition, True, threads)
    workspace = torch.empty(max(size, 0), dtype=torch.uint8, device="cpu")
    if size < 0 or not _call.native.dsd(
        values.data_ptr(), storage, _call.address(scale), index, _call.address(order),
        0 if order is None else order.itemsize, transposed, right, n, c.data_ptr(), column_major, *partition,
        workspace.data_ptr(), threads,
    ):  # fmt: skip
        _check_numbers(offsets, indices, order, index)
        _call.refuse_changed("offsets, indices and order")
    return c.t() if column_major else c


def _check_numbers(offsets: Tensor, indices: Tensor, order: Tensor | None, index: _call.Index) -> None:
    _call.check_numbers(offsets, indices, _call.tile_columns(index))
    if order is not None:
        _call.check_list(order, "order", offsets, indices.numel(), "tile")


def _per_slot(value: Tensor, name: str, capacity: int, dtypes: tuple[torch.dtype, ...]) -> None:
    _call.tensor(value, name, ndim=1, dtypes=dtypes)
    if value.numel() != capacity:
        raise ValueError(f"{name} must have one entry per tile: {capacity} tiles, got {value.numel()} entries")
