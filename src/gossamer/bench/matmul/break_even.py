"""The density up to which a block-sparse product is faster than the dense one."""

from __future__ import annotations

from typing import Any

import torch

import gossamer as gs
from gossamer.bench.cells import Column, short, table, value
from gossamer.bench.dense import Call, use_fastest
from gossamer.bench.matmul import fit
from gossamer.bench.matmul.fit import DYNAMIC
from gossamer.bench.matmul.operands import DENSE, draw, normal, square
from gossamer.bench.section import MEDIANS, Rows, Section, Settings, Table


def _curve_point(block: int, density: float, settings: Settings) -> dict[str, Any]:
    size, n = square(settings)
    dense, pattern = draw(size, size, (block, block), density, settings)
    values, b = pattern.pack(dense), normal(size, n, settings)
    calls: dict[str, Call] = {DENSE: lambda: dense @ b, DYNAMIC: lambda: gs.ops.dsd(values, pattern, b)}
    with torch.inference_mode():
        facts = use_fastest(calls, DENSE, settings, dense, b, "a")
        run = gs.measure.interleave(calls, baseline=DENSE, reps=settings.reps, seconds=3)
    return {"density": density, **facts, **run.to_dict()}


def rows(settings: Settings) -> Rows:
    """For each block size the density at which the product takes as long as the dense one, and the curve around it."""
    blocks = (16, 32, 64, 128) if settings.device == "cuda" else (1, 4, 8, 16, 32, 64)
    densities = (0.1, 0.5, 1.0) if settings.quick else (0.15, 0.2, 0.27, 0.33, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    out = []
    for block in blocks:
        points = [_curve_point(block, density, settings) for density in densities]
        out.append({"block": block, "break_even": fit.crossing(points), "points": points})
    return out


def _where(row: dict[str, Any]) -> str:
    at = row["break_even"]
    return "below the first" if at is None else "none: faster at 1" if at == 1.0 else f"{at:.2f}"


def break_even(rows: Rows) -> str:
    def at(number: int) -> Column:
        density = rows[0]["points"][number]["density"]
        return f"at {density:.2g}", lambda row: short(DYNAMIC)(row["points"][number])

    points = range(len(rows[0]["points"]))
    return table(rows, [("block", value("block")), ("break-even density", _where), *map(at, points)])


def brief(rows: Rows) -> str:
    """A few blocks at the lowest density, at half, and at the highest."""

    def at(number: int) -> Column:
        density = rows[0]["points"][number]["density"]
        return f"{density:.0%} of the tiles present", lambda row: short(DYNAMIC)(row["points"][number])

    densities = [point["density"] for point in rows[0]["points"]]
    half = min(range(len(densities)), key=lambda number: abs(densities[number] - 0.5))
    block = ("tile", lambda row: f"{row['block']} x {row['block']}")
    return table([row for row in rows if row["block"] in (1, 4, 16)], [block, *map(at, (0, half, -1))])


SECTION = Section(rows, Table(break_even), {"brief": Table(brief, note=MEDIANS)})
