"""A product whose left operand has columns of zeros over bands of rows: the k axis."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from gossamer.bench.cells import tile
from gossamer.bench.matmul.operands import draw, normal
from gossamer.bench.matmul.runtime import candidates, columns, compare
from gossamer.bench.section import Row, Section, Settings, Table


def rows(settings: Settings) -> Iterator[Row]:
    """One row per tile and share of zeros. The row without zeros is the price of looking for them."""
    m, k, n = (256, 256, 64) if settings.quick else (4096,) * 3 if settings.device == "cuda" else (2048, 2048, 256)
    for shape, zeros in product(((32, 1), (16, 1), (1, 64), (32, 64)), (0.0, 0.5, 0.7, 0.9, 0.95, 0.99)):
        a, _ = draw(m, k, shape, 1 - zeros, settings)
        calls = candidates(a, b := normal(k, n, settings), shape)
        yield compare(settings, a, b, calls, tile=list(shape), zeros=zeros, shape=[m, k, n])


SECTION = Section(rows, Table([("tile", tile), *columns()]))
