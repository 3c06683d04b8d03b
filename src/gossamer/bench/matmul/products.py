"""Products with a block-sparse matrix over size, width, tile and density (PopSparse's grid), beside every library here.

The pattern is known before the call, as in a sparse layer; `detection`, `row_axis` and `column_axis` time what it costs
to find one. GFLOP/s count the products with present tiles only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from torch import Tensor

import gossamer as gs
from gossamer.bench.cells import CONTROL, milliseconds, short, table, tile, value
from gossamer.bench.dense import over_dense
from gossamer.bench.matmul import fit
from gossamer.bench.matmul.fit import DYNAMIC, STATIC
from gossamer.bench.matmul.operands import DENSE, Tile, draw, normal, scipy_csr, torch_bsr, torch_csr
from gossamer.bench.section import Row, Rows, Section, Settings, Table

Cell = tuple[int, int, Tile, float]  # size (m = k), n, tile, density

BSR, CSR, SCIPY = "torch BSR", "torch CSR", "scipy CSR"
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
        DENSE: lambda: dense @ b,
        DYNAMIC: lambda: gs.ops.dsd(values, pattern, b),
        STATIC: lambda: gs.ops.dsd(values, pattern, b, work=work),
    }
    on_cpu = b.device.type == "cpu"
    (bm, bn), (rows, cols) = pattern.tile, pattern.shape
    if bm == bn > 1 and rows % bm == 0 == cols % bn and (on_cpu or bm >= 16):
        bsr = torch_bsr(dense, pattern.tile)
        calls[BSR] = lambda: bsr @ b
    if on_cpu:
        csr, other, b_numpy = torch_csr(dense), scipy_csr(dense), b.numpy()
        calls[CSR] = lambda: csr @ b
        if other is not None:
            calls[SCIPY] = lambda: other @ b_numpy
    return calls


def rows(settings: Settings) -> Iterator[Row]:
    """One row per cell of the grid, then one with the power law fitted to our better mode."""
    out = []
    for size, n, shape, density in _cells(settings):
        dense, pattern = draw(size, size, shape, density, settings)
        b = normal(size, n, settings)
        found = over_dense(_candidates(dense, pattern, b), settings, dense, b, "a", seconds=6)
        seconds = {each["name"]: each["median"] for each in found["rows"]}
        out.append(
            {
                "size": size, "n": n, "tile": list(shape), "density": density,
                "gflops": 2 * pattern.nnz_elements * n / seconds[DYNAMIC] / 1e9,
                "dense_gflops": 2 * size * size * n / seconds[DENSE] / 1e9, **found,
            }
        )  # fmt: skip
        yield out[-1]
    yield {"fit": fit.power_law(out), "popsparse": fit.POPSPARSE}


def products(rows: Rows) -> str:
    *cells, law = rows
    grid = table(
        cells,
        [
            ("m = k", value("size")), ("n", value("n")), ("tile", tile), ("density", value("density", ".3g")),
            ("dense ms", milliseconds()),
            *((name, short(name)) for name in (DYNAMIC, STATIC, BSR, CSR, SCIPY)), CONTROL,
            ("GFLOP/s dense", value("dense_gflops", ".0f")), ("on present tiles", value("gflops", ".0f")),
        ],
    )  # fmt: skip
    ours, theirs = (
        f"{found['c']:.2g} · size^{found['size']:.2f} · density^{found['density']:.2f} · block^{found['block']:.2f}"
        for found in (law["fit"], law["popsparse"])
    )
    within = f"every point within {law['fit']['within']:.1f}x of the law"
    return (
        f"{grid}\nLeast squares over these cells: {ours} ({within}). "
        f"PopSparse on an IPU, FP16: {theirs}; only the shapes compare.\n"
    )


SECTION = Section(rows, Table(products))
