"""What it costs to find the pattern of a matrix, beside the dense product that the pattern is for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import gossamer as gs
from gossamer.bench.cells import CONTROL, Column, tile, value
from gossamer.bench.dense import Call, over_dense
from gossamer.bench.matmul.operands import Tile, draw, normal, square, torch_bsr, torch_csr
from gossamer.bench.section import Row, Section, Settings, Table

PRODUCT, DETECT = "dense product", "gs.detect"
GATHER, CONVERSION = f"{DETECT} and gather", "torch conversion"


def _measured(tile: Tile, density: float, settings: Settings) -> Row:
    size, n = square(settings)
    dense, pattern = draw(size, size, tile, density, settings)
    b, capacity = normal(size, n, settings), round(1.1 * pattern.nnz) + 1
    calls: dict[str, Call] = {
        PRODUCT: lambda: dense @ b,
        DETECT: lambda: gs.detect(dense, tile=tile, capacity=capacity),
        GATHER: lambda: gs.ops.gather(dense, gs.detect(dense, tile=tile, capacity=capacity)),
        CONVERSION: partial(torch_bsr, dense, tile) if tile[0] == tile[1] > 1 else partial(torch_csr, dense),
    }
    return over_dense(calls, settings, dense, b, "b", name=PRODUCT, seconds=4)


def rows(settings: Settings) -> Iterator[Row]:
    """One row per tile and density; `share` is each time over that of the dense product."""
    size, _ = square(settings)
    for shape, density in product(((1, 1), (1, 32), (32, 1), (16, 16), (32, 32), (1, size)), (1 / 2, 1 / 16)):
        row = _measured(shape, density, settings)
        share = {each["name"]: 1 / each["ratio"] for each in row["rows"]}
        yield {"tile": list(shape), "density": density, "share": share, **row}


def _share(head: str, name: str) -> Column:
    return head, lambda row: f"{row['share'][name]:.1%}"


SHARES = (_share(f"`{DETECT}`", DETECT), _share("and gather", GATHER), _share(CONVERSION, CONVERSION))


SECTION = Section(rows, Table([("tile", tile), ("density", value("density", ".3g")), *SHARES, CONTROL]))
