"""Products with a block-sparse matrix over size, width, tile and density (PopSparse's grid), beside every library here.

The pattern is known before the call, as in a sparse layer; `detection` and `runtime` time what it costs to find one.
GFLOP/s count the products with present tiles only.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench import Settings
from gossamer.bench.matmul import fit
from gossamer.bench.matmul.operands import Tile, draw, normal, scipy_csr, square, torch_bsr, torch_csr

Cell = tuple[int, int, Tile, float]  # size (m = k), n, tile, density

BLOCKS = ((1, 1), (4, 4), (8, 8), (16, 16))
SMALL: list[Cell] = [
    *((2048, 256, (b, b), d) for b, d in product((1, 4, 8, 16, 32, 64, 128), (1 / 2, 1 / 4, 1 / 16, 1 / 32))),
    *((2048, 256, tile, d) for tile, d in product(((32, 1), (1, 16), (4, 16), (16, 4)), (1 / 4, 1 / 16))),
    *((2048, n, (block, block), 1 / 16) for n, block in product((4, 16, 64, 1024), (1, 4, 16))),
    *((size, 256, (block, block), 1 / 16) for size, block in product((512, 1024), (1, 4, 16))),
]  # fmt: skip
FULL: list[Cell] = list(
    product((512, 1024, 2048), (4, 16, 64, 256, 1024), BLOCKS, (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32))
)
ON_GPU: list[Cell] = [
    (4096, n, (block, block), d) for n, block, d in product((256, 4096), (16, 32, 64, 128), (1 / 2, 1 / 4, 1 / 16))
]
QUICK: list[Cell] = [(size, 64, (block, block), d) for size, block, d in product((128, 256), (1, 16), (1 / 4, 1 / 16))]


def _cells(settings: Settings) -> list[Cell]:
    if settings.quick:
        return QUICK
    if settings.device == "cuda":
        return ON_GPU
    return FULL if settings.full else SMALL


def _candidates(dense: Tensor, pattern: gs.Pattern, b: Tensor) -> dict[str, Callable[[], Any]]:
    """Dense first; ours with a dynamic and with a static pattern; the libraries that can hold this matrix."""
    values = pattern.pack(dense)
    work = gs.planner.static_work(pattern)
    calls: dict[str, Callable[[], Any]] = {
        "torch dense": lambda: dense @ b,
        "dynamic": lambda: gs.ops.dsd(values, pattern, b),
        "static": lambda: gs.ops.dsd(values, pattern, b, work=work),
    }
    on_cpu = b.device.type == "cpu"
    (bm, bn), (rows, cols) = pattern.tile, pattern.shape
    if bm == bn > 1 and rows % bm == 0 == cols % bn and (on_cpu or bm >= 16):
        bsr = torch_bsr(dense, pattern.tile)
        calls["torch BSR"] = lambda: bsr @ b
    if on_cpu:
        csr, other, b_numpy = torch_csr(dense), scipy_csr(dense), b.numpy()
        calls["torch CSR"] = lambda: csr @ b
        if other is not None:
            calls["scipy CSR"] = lambda: other @ b_numpy
    return calls


def rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per cell of the grid, then one with the power law fitted to our better mode."""
    out: list[dict[str, Any]] = []
    for size, n, tile, density in _cells(settings):
        dense, pattern = draw(size, size, tile, density, settings)
        b = normal(size, n, settings)
        with torch.inference_mode():
            run = gs.measure.interleave(
                _candidates(dense, pattern, b), baseline="torch dense", reps=settings.reps, seconds=6
            )
        ours, theirs = run["dynamic"].median, run["torch dense"].median
        out.append(
            {
                "size": size, "n": n, "tile": list(tile), "density": density,
                "gflops": 2 * pattern.nnz_elements * n / ours / 1e9,
                "dense_gflops": 2 * size * size * n / theirs / 1e9, **run.to_dict(),
            }
        )  # fmt: skip
    return [*out, {"fit": fit.power_law(out), "popsparse": fit.POPSPARSE}]


def _curve_point(block: int, density: float, settings: Settings) -> dict[str, Any]:
    size, n = square(settings)
    dense, pattern = draw(size, size, (block, block), density, settings)
    values, b = pattern.pack(dense), normal(size, n, settings)
    calls = {"torch dense": lambda: dense @ b, "dynamic": lambda: gs.ops.dsd(values, pattern, b)}
    with torch.inference_mode():
        run = gs.measure.interleave(calls, baseline="torch dense", reps=settings.reps, seconds=3)
    return {"density": density, **run.to_dict()}


def break_even(settings: Settings) -> list[dict[str, Any]]:
    """For each block size the density at which the product takes as long as the dense one, and the curve around it."""
    blocks = (16, 32, 64, 128) if settings.device == "cuda" else (1, 4, 8, 16, 32, 64)
    densities = (0.1, 0.5, 1.0) if settings.quick else (0.15, 0.2, 0.27, 0.33, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    out = []
    for block in blocks:
        points = [_curve_point(block, density, settings) for density in densities]
        out.append({"block": block, "break_even": fit.crossing(points), "points": points})
    return out
