"""Products of groups of rows, each group with a matrix of its own: mixture of experts. Reads `offsets` on the host."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import accumulator, check_offsets, check_places


def _check(offsets: Tensor, *lists: tuple[str, Tensor | None, int]) -> None:
    """Every position of a group names a row of each of the lists' (name, places, rows)."""
    for name, places, rows in lists:
        check_offsets(offsets, rows if places is None else places.numel(), None)
        if places is not None:
            slot = torch.arange(places.numel(), device=places.device)
            check_places(places, (slot >= offsets[0]) & (slot < offsets[-1]), rows, name)


def _at(x: Tensor, place: Tensor | None, start: int, end: int) -> Tensor:
    return x[start:end] if place is None else x[place[start:end].long()]


def grouped_mm(
    x: Tensor,
    source: Tensor | None,
    target: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    transposed: bool,
    out_rows: int,
) -> Tensor:
    """x[t, k], weights[groups, k, n] -> y[out_rows, n]: y[target[p]] = x[source[p]] @ weights[g].

    Group g owns the positions p in [offsets[g], offsets[g + 1]); `transposed`: weights are stored as [groups, n, k];
    source or target None stand for p; rows of y that are not named are zero.
    """
    _check(offsets, ("source", source, x.shape[0]), ("target", target, out_rows))
    kind = accumulator(x.dtype)
    matrices = (weights.transpose(1, 2) if transposed else weights).to(kind)
    y = x.new_zeros(out_rows, matrices.shape[2])
    for matrix, (start, end) in zip(matrices, pairwise(offsets.tolist()), strict=True):
        product = (_at(x, source, start, end).to(kind) @ matrix).to(x.dtype)
        if target is None:
            y[start:end] = product
        else:
            y[target[start:end].long()] = product
    return y


def grouped_outer(x: Tensor, dy: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor) -> Tensor:
    """x[t, k], dy[r, n] -> dw[groups, k, n]: dw[g] = sum over p of x[source[p]]^T dy[target[p]]."""
    _check(offsets, ("source", source, x.shape[0]), ("target", target, dy.shape[0]))
    kind = accumulator(x.dtype)
    dw = x.new_zeros(offsets.numel() - 1, x.shape[1], dy.shape[1])
    for out, (start, end) in zip(dw, pairwise(offsets.tolist()), strict=True):
        out.copy_(_at(x, source, start, end).to(kind).t() @ _at(dy, target, start, end).to(kind))
    return dw
