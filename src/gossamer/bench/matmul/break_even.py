"""The density up to which a block-sparse product is faster than the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gossamer as gs
from gossamer.bench.cells import Column, short, table, value
from gossamer.bench.dense import Call, over_dense
from gossamer.bench.matmul import fit
from gossamer.bench.matmul.fit import DYNAMIC
from gossamer.bench.matmul.operands import DENSE, blocks, draw, normal, square
from gossamer.bench.section import MEDIANS, Row, Rows, Section, Settings, Table


def _curve_point(block: int, density: float, settings: Settings) -> Row:
    size, n = square(settings)
    dense, pattern = draw(size, size, (block, block), density, settings)
    values, b = pattern.pack(dense), normal(size, n, settings)
    calls: dict[str, Call] = {DENSE: lambda: dense @ b, DYNAMIC: lambda: gs.ops.dsd(values, pattern, b)}
    return {"density": density, **over_dense(calls, settings, dense, b, "a", seconds=3)}


def rows(settings: Settings) -> Iterator[Row]:
    """For each block size the density at which the product takes as long as the dense one, and the curve around it."""
    densities = (0.1, 0.5, 1.0) if settings.quick else (0.15, 0.2, 0.27, 0.33, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    for block in blocks(settings):
        points = [_curve_point(block, density, settings) for density in densities]
        yield {"block": block, "break_even": fit.crossing(points), "points": points}


def _where(row: Row) -> str:
    at = row["break_even"]
    return "below the first" if at is None else "none: faster at 1" if at == 1.0 else f"{at:.2f}"


def _at(rows: Rows, form: str) -> Callable[[int], Column]:
    """A column of ratios for a number of a point; its head says the density."""

    def column(number: int) -> Column:
        head = form.format(rows[0]["points"][number]["density"])
        return head, lambda row: short(DYNAMIC)(row["points"][number])

    return column


def break_even(rows: Rows) -> str:
    points = map(_at(rows, "at {:.2g}"), range(len(rows[0]["points"])))
    return table(rows, [("block", value("block")), ("break-even density", _where), *points])


def brief(rows: Rows) -> str:
    """A few blocks at the lowest density, at half, and at the highest."""
    densities = [point["density"] for point in rows[0]["points"]]
    half = min(range(len(densities)), key=lambda number: abs(densities[number] - 0.5))
    block = ("tile", lambda row: f"{row['block']} x {row['block']}")
    points = map(_at(rows, "{:.0%} of the tiles present"), (0, half, -1))
    return table([row for row in rows if row["block"] in (1, 4, 16)], [block, *points])


SECTION = Section(rows, Table(break_even), {"brief": Table(brief, note=MEDIANS)})
