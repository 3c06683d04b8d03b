"""What it costs to find the pattern of a matrix, beside the dense product that the pattern is for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch

import gossamer as gs
from gossamer.bench import Settings
from gossamer.bench.matmul.operands import Tile, draw, normal, square, torch_bsr, torch_csr


def _candidates(tile: Tile, density: float, settings: Settings) -> dict[str, Callable[[], Any]]:
    size, n = square(settings)
    dense, pattern = draw(size, size, tile, density, settings)
    b, capacity = normal(size, n, settings), round(1.1 * pattern.nnz) + 1
    blocks = tile[0] == tile[1] > 1
    return {
        "torch dense product": lambda: dense @ b,
        "gs.detect": lambda: gs.detect(dense, tile=tile, capacity=capacity),
        "gs.detect and gather": lambda: gs.ops.gather(dense, gs.detect(dense, tile=tile, capacity=capacity)),
        "torch conversion": (lambda: torch_bsr(dense, tile)) if blocks else (lambda: torch_csr(dense)),
    }


def rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per tile and density; `share` is each time over that of the dense product."""
    size, _ = square(settings)
    out = []
    for tile, density in product(((1, 1), (1, 32), (32, 1), (16, 16), (32, 32), (1, size)), (1 / 2, 1 / 16)):
        with torch.inference_mode():
            run = gs.measure.interleave(
                _candidates(tile, density, settings), baseline="torch dense product", reps=settings.reps, seconds=4
            )
        share = {row.name: 1 / row.ratio for row in run.rows}
        out.append({"tile": list(tile), "density": density, "share": share, **run.to_dict()})
    return out
