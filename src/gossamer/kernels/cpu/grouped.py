"""Products of groups of rows, each group with a matrix of its own: mixture of experts, forward and backward."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory

PRODUCT = (torch.float32, torch.float64)
PLACES = (torch.int32, torch.int64)


def grouped_mm(
    x: Tensor,
    source: Tensor | None,
    target: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    transposed: bool,
    out_rows: int,
) -> Tensor:
    """Return `y[out_rows, n]`; see `gossamer.kernels.reference.grouped_mm`. float32 and float64."""
    _call.tensor(x, "x", ndim=2, dtypes=PRODUCT)
    _call.tensor(weights, "weights", ndim=3, dtypes=(x.dtype,))
    _call.count(out_rows, "out_rows")
    positions = _positions(offsets, source, x.shape[0], target, out_rows)
    groups, inner, n = (weights.shape[0], *(weights.shape[:0:-1] if transposed else weights.shape[1:]))
    if groups != offsets.numel() - 1 or inner != x.shape[1]:
        raise ValueError(
            f"weights must be {offsets.numel() - 1} matrices with {x.shape[1]} {'columns' if transposed else 'rows'}, "
            f"got shape {tuple(weights.shape)}"
        )
    y = memory.empty((out_rows, n), x.dtype)
    threads = torch.get_num_threads()
    size = _call.native.grouped_workspace(x.itemsize, 0 if target is None else out_rows, threads)
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    if not _call.native.grouped_mm(
        x.data_ptr(), x.itemsize, x.shape[0], inner, *_list(source), *_list(target), positions, offsets.data_ptr(),
        groups, weights.data_ptr(), transposed, n, y.data_ptr(), out_rows, workspace.data_ptr(), threads,
    ):  # fmt: skip
        _refuse(offsets, source, x.shape[0], target, out_rows, once=True)
    return y


def grouped_outer(x: Tensor, dy: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor) -> Tensor:
    """Return `dw[groups, k, n]`; see `gossamer.kernels.reference.grouped_outer`. float32 and float64."""
    _call.tensor(x, "x", ndim=2, dtypes=PRODUCT)
    _call.tensor(dy, "dy", ndim=2, dtypes=(x.dtype,))
    positions = _positions(offsets, source, x.shape[0], target, dy.shape[0])
    groups, k, n = offsets.numel() - 1, x.shape[1], dy.shape[1]
    dw = memory.empty((groups, k, n), x.dtype)
    threads = torch.get_num_threads()
    workspace = torch.empty(_call.native.grouped_workspace(x.itemsize, 0, threads), dtype=torch.uint8, device="cpu")
    if not _call.native.grouped_outer(
        x.data_ptr(), x.itemsize, x.shape[0], k, dy.data_ptr(), dy.shape[0], n, *_list(source), *_list(target),
        positions, offsets.data_ptr(), groups, dw.data_ptr(), workspace.data_ptr(), threads,
    ):  # fmt: skip
        _refuse(offsets, source, x.shape[0], target, dy.shape[0], once=False)
    return dw


def _list(places: Tensor | None) -> tuple[int, int]:
    return (0, 0) if places is None else (places.data_ptr(), places.itemsize)


def _positions(offsets: Tensor, source: Tensor | None, sources: int, target: Tensor | None, targets: int) -> int:
    """How many positions have a row of the source and one of the target: groups end there at the latest."""
    _call.tensor(offsets, "offsets", ndim=1, dtypes=(torch.int64,))
    if offsets.numel() < 1:
        raise ValueError("offsets must have an entry more than there are groups, got none")
    for places, name in ((source, "source"), (target, "target")):
        if places is not None:
            _call.tensor(places, name, ndim=1, dtypes=PLACES)
    return min(sources if source is None else source.numel(), targets if target is None else target.numel())


def _refuse(
    offsets: Tensor, source: Tensor | None, sources: int, target: Tensor | None, targets: int, *, once: bool
) -> NoReturn:
    """Say what a kernel found wrong with the groups; `once`: no two positions may name the same row of the target."""
    _call.check_list(source, "source", offsets, sources)
    _call.check_list(target, "target", offsets, targets, once=once)
    _call.refuse_changed("offsets, source and target")
