"""Summaries of a sweep: the power law of the speed-ups, and where a curve crosses 1."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

DYNAMIC, STATIC = "dynamic", "static"  # a product whose work partition is made in the call, or before it
AXES = ("size", "density", "block")
POPSPARSE = {"c": 0.0013, "size": 0.59, "density": -0.54, "block": 0.50}
"""PopSparse's fit on an IPU in FP16, static (arXiv 2303.16999). Only the shape may be compared."""


def power_law(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Least squares of log speed-up = log c + a log size + d log density + g log block, at the best n of each cell.

    Square tiles only. An axis that the sweep does not vary gets no exponent. `within` is the largest factor between
    the law and a point.
    """
    best: dict[tuple[float, ...], float] = {}
    for row in rows:
        if row["tile"][0] == row["tile"][1]:
            speed = max(entry["ratio"] for entry in row["rows"] if entry["name"] in (DYNAMIC, STATIC))
            key = (row["size"], row["density"], row["tile"][0])
            best[key] = max(best.get(key, 0.0), speed)
    x, y = np.log(np.array(list(best))), np.log(np.array(list(best.values())))
    varied = [i for i in range(len(AXES)) if np.ptp(x[:, i]) > 0]
    design = np.column_stack([np.ones(len(y)), x[:, varied]])
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    law = {AXES[i]: float(exponent) for i, exponent in zip(varied, solution[1:], strict=True)}
    return {"c": math.exp(solution[0]), **law, "within": float(np.exp(np.abs(y - design @ solution).max()))}


def crossing(points: list[dict[str, Any]]) -> float | None:
    """The density where the speed-up falls below 1, between neighbours on a line; 1.0 if never, None if at once."""
    curve = [(p["density"], next(e["ratio"] for e in p["rows"] if e["name"] == DYNAMIC)) for p in points]
    if curve[0][1] < 1:
        return None
    for (low, above), (high, below) in itertools.pairwise(curve):
        if below < 1:
            return low + (high - low) * (above - 1) / (above - below)
    return 1.0
