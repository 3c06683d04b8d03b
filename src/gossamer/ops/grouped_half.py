"""Grouped products of half floats on a CPU, with sums in float32 that are rounded once.

A group of few rows reads its weight once, as it is (`few_rows`). For the others it is torch's own product where the CPU
multiplies half floats; elsewhere our float32 kernels take the operands widened, of weights only those that have rows.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gossamer.ops.few_rows import FEW, FewRows
from gossamer.ops.half import multiplies
from gossamer.ops.registration import HALF, in_float32

Kernel = Callable[..., Any]


def _groups(offsets: Tensor, *lists: tuple[str, Tensor | None, int]) -> list[tuple[int, int, int]]:
    """(group, first position, end) of the groups that have any, once all is checked that torch itself would not."""
    ends = offsets.tolist()
    room = min(rows if places is None else len(places) for _, places, rows in lists)
    if any(first > end for first, end in pairwise(ends)) or ends[0] < 0 or ends[-1] > room:
        raise ValueError(f"offsets must never decrease, from 0 or more to at most {room}, got {ends}")
    for name, places, rows in lists:
        if places is None or ends[0] == ends[-1]:
            continue
        used = places[ends[0] : ends[-1]]
        if not 0 <= int(used.min()) <= int(used.max()) < rows:
            raise ValueError(f"{name} must be at least 0 and below {rows}, got {int(used.min())} to {int(used.max())}")
    return [(group, first, end) for group, (first, end) in enumerate(pairwise(ends)) if first < end]


def _at(x: Tensor, places: Tensor | None, first: int, end: int) -> Tensor:
    return x[first:end] if places is None else x.index_select(0, places[first:end])


def _largest(offsets: Tensor) -> int:
    """Rows of the largest group."""
    return int(offsets.diff().max()) if len(offsets) > 1 else 0


def half_mm(kernel: Kernel) -> Kernel:
    """grouped_mm of floats -> the same of half floats too."""
    widened = in_float32(like=0)(kernel)

    def launch(
        x: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor, weights: Tensor, transposed: bool,
        out_rows: int,
    ) -> Tensor:  # fmt: skip
        if x.dtype in HALF and len(offsets) == len(weights) + 1:
            fits = x.shape[1] == weights.shape[2 if transposed else 1] and x.dtype == weights.dtype
            few = FEW[x.dtype] if transposed else 0
            if fits and (multiplies(x.dtype) or _largest(offsets) <= few):
                y = x.new_zeros(out_rows, weights.shape[1 if transposed else 2])
                for group, first, end in _groups(offsets, ("source", source, len(x)), ("target", target, out_rows)):
                    operand = _at(x, source, first, end)
                    if end - first <= few:
                        rows = FewRows.compute(operand, weights[group], None)
                    else:
                        rows = y.new_empty(end - first, y.shape[1])
                        matrix = weights[group].t() if transposed else weights[group]
                        torch.mm(operand, matrix, out=rows)  # with `out`, autocast leaves it alone
                    if target is None:
                        y[first:end] = rows
                    else:
                        y.index_copy_(0, target[first:end].long(), rows)
                return y
            used = offsets.diff() != 0
            if not bool(used.all()):
                offsets, weights = torch.cat([offsets[:1], offsets[1:][used]]), weights[used]
        found: Tensor = widened(x, source, target, offsets, weights, transposed, out_rows)
        return found

    return launch


def half_outer(kernel: Kernel) -> Kernel:
    """grouped_outer of floats -> the same of half floats too."""
    widened = in_float32(like=0)(kernel)

    def launch(x: Tensor, dy: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor) -> Tensor:
        if x.dtype not in HALF or not multiplies(x.dtype):
            found: Tensor = widened(x, dy, source, target, offsets)
            return found
        dw = x.new_zeros(len(offsets) - 1, x.shape[1], dy.shape[1])
        for group, first, end in _groups(offsets, ("source", source, len(x)), ("target", target, len(dy))):
            torch.mm(_at(x, source, first, end).t(), _at(dy, target, first, end), out=dw[group])
        return dw

    return launch
