"""What it costs to find the pattern of a matrix, beside the dense product that the pattern is for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch

import gossamer as gs
from gossamer.bench.cells import CONTROL, Column, table, tile, value
from gossamer.bench.dense import use_fastest
from gossamer.bench.matmul.operands import Tile, draw, normal, square, torch_bsr, torch_csr
from gossamer.bench.section import Row, Rows, Section, Settings, Table

PRODUCT, DETECT = "dense product", "gs.detect"
GATHER, CONVERSION = f"{DETECT} and gather", "torch conversion"


def _candidates(tile: Tile, density: float, settings: Settings) -> tuple[dict[str, Callable[[], Any]], Row]:
    size, n = square(settings)
    dense, pattern = draw(size, size, tile, density, settings)
    b, capacity = normal(size, n, settings), round(1.1 * pattern.nnz) + 1
    blocks = tile[0] == tile[1] > 1
    calls: dict[str, Callable[[], Any]] = {
        PRODUCT: lambda: dense @ b,
        DETECT: lambda: gs.detect(dense, tile=tile, capacity=capacity),
        GATHER: lambda: gs.ops.gather(dense, gs.detect(dense, tile=tile, capacity=capacity)),
        CONVERSION: (lambda: torch_bsr(dense, tile)) if blocks else (lambda: torch_csr(dense)),
    }
    return calls, use_fastest(calls, PRODUCT, settings, dense, b, "b")


def rows(settings: Settings) -> Rows:
    """One row per tile and density; `share` is each time over that of the dense product."""
    size, _ = square(settings)
    out = []
    for shape, density in product(((1, 1), (1, 32), (32, 1), (16, 16), (32, 32), (1, size)), (1 / 2, 1 / 16)):
        with torch.inference_mode():
            calls, facts = _candidates(shape, density, settings)
            run = gs.measure.interleave(calls, baseline=PRODUCT, reps=settings.reps, seconds=4)
        share = {row.name: 1 / row.ratio for row in run.rows}
        out.append({"tile": list(shape), "density": density, "share": share, **facts, **run.to_dict()})
    return out


def detection(rows: Rows) -> str:
    def share(head: str, name: str) -> Column:
        return head, lambda row: f"{row['share'][name]:.1%}"

    shares = (share(f"`{DETECT}`", DETECT), share("and gather", GATHER), share(CONVERSION, CONVERSION))
    return table(rows, [("tile", tile), ("density", value("density", ".3g")), *shares, CONTROL])


SECTION = Section(rows, Table(detection))
