"""Products with a dense matrix that holds zeros, found inside the timed call (PIT)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench import Settings
from gossamer.bench.matmul.operands import Tile, draw, normal


def _torch_rows(a: Tensor, b: Tensor) -> Tensor:
    """What a user writes in torch when whole rows may be zero."""
    rows = a.ne(0).any(1).nonzero().squeeze(1)
    return a.new_zeros(a.shape[0], b.shape[1]).index_copy_(0, rows, a.index_select(0, rows) @ b)


def _candidates(a: Tensor, b: Tensor, tile: Tile) -> dict[str, Callable[[], Any]]:
    index = gs.detect(a, tile=tile)
    return {
        "torch dense": lambda: a @ b,
        "detected": lambda: gs.ops.matmul(a, b, tile=tile),
        "tile='auto'": lambda: gs.ops.matmul(a, b),
        "index given": lambda: gs.ops.matmul(a, b, index=index),
    }


def _compare(settings: Settings, calls: dict[str, Callable[[], Any]], **facts: Any) -> dict[str, Any]:
    with torch.inference_mode():
        run = gs.measure.interleave(calls, baseline="torch dense", reps=settings.reps, seconds=8)
    return {**facts, **run.to_dict()}


def row_axis(settings: Settings) -> list[dict[str, Any]]:
    """Whole rows are zero: the m axis."""
    m, k, n = (256, 128, 128) if settings.quick else (4096,) * 3 if settings.device == "cuda" else (2048, 1024, 1024)
    out = []
    for zeros in (0.0, 0.25, 0.5, 0.75, 0.94):
        a, _ = draw(m, k, (1, k), 1 - zeros, settings)
        calls = _candidates(a, b := normal(k, n, settings), (1, k))
        calls["torch, rows selected"] = lambda a=a, b=b: _torch_rows(a, b)  # type: ignore[misc]  # bound now, not later
        out.append(_compare(settings, calls, zeros=zeros, shape=[m, k, n]))
    return out


def column_axis(settings: Settings) -> list[dict[str, Any]]:
    """Columns are zero over bands of rows: the k axis. The row without zeros is the price of looking for them."""
    m, k, n = (256, 256, 64) if settings.quick else (4096,) * 3 if settings.device == "cuda" else (2048, 2048, 256)
    out = []
    for tile in ((32, 1), (16, 1), (1, 64), (32, 64)):
        for zeros in (0.0, 0.5, 0.7, 0.9, 0.95, 0.99):
            a, _ = draw(m, k, tile, 1 - zeros, settings)
            calls = _candidates(a, normal(k, n, settings), tile)
            out.append(_compare(settings, calls, tile=list(tile), zeros=zeros, shape=[m, k, n]))
    return out
