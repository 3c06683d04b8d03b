"""Geometric means over all that the suite measures, each over the fastest dense way of its row."""

from __future__ import annotations

from collections.abc import Mapping

from gossamer.bench.cells import Row, Rows, entry, value
from gossamer.bench.compile.ways import OURS, geometric_mean
from gossamer.bench.section import Summary, Table

ALL = "all sections"


def rows(measured: Mapping[str, Rows]) -> Rows:
    """A row for each section that was measured, and one for all: every section counts as much as any other."""
    found = [_row(name, some) for name, some in measured.items() if any(entry(row, OURS) for row in some)]
    if not found:
        return []
    means = [row["mean"] for row in found]
    total = {key: sum(row[key] for row in found) for key in ("count", "faster", "slower")}
    ends = {"best": max(row["best"] for row in found), "worst": min(row["worst"] for row in found)}
    return [*found, {"section": ALL, "mean": geometric_mean(means), **total, **ends}]


def _row(name: str, measured: Rows) -> Row:
    ours = [each for row in measured if (each := entry(row, OURS)) is not None]
    ratios, verdicts = [each["ratio"] for each in ours], [each["verdict"] for each in ours]
    return {
        "section": name, "count": len(ours), "mean": geometric_mean(ratios), "best": max(ratios), "worst": min(ratios),
        "faster": verdicts.count("faster"), "slower": verdicts.count("slower"),
    }  # fmt: skip


COLUMNS = (
    ("section", value("section")), ("rows", value("count")), ("geometric mean", value("mean", ".2f")),
    ("best", value("best", ".2f")), ("worst", value("worst", ".2f")), ("faster in", value("faster")),
    ("slower in", value("slower")),
)  # fmt: skip

NOTE = (
    f"Unit: the time of the fastest dense way of each row over that of `{OURS}`; above 1 is faster. Over {ALL} it is "
    "the geometric mean of the sections' means. Faster and slower are rows outside the spread of the A/A control."
)

SUMMARY = Summary(rows, Table(COLUMNS, NOTE))
