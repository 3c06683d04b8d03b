"""Horizontal bars of measured times: the bar ends at the median, the whisker spans the quartiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import brief, marks, short, times

WIDTH, ROW, TOP, AXIS = 420, 46, 4, 26


def bars(comparison: Mapping[str, Any], *, title: str, ours: str = "compact") -> Markup:
    """Draw the rows and the A/A control of a `gossamer.measure.Comparison.to_dict()`.

    Args:
        ours: the row in the colour of "compact"; dense and sparse networks have theirs, and all others that of dense.
    """
    rows = [*comparison["rows"], {**comparison["control"], "is_control": True}]
    longest = 1.04 * max(max(row["q3"], row["median"]) for row in rows)
    height = TOP + ROW * len(rows) + AXIS
    scale = (WIDTH - 8) / longest

    drawn: list[Markup] = []
    for value, text in marks(0.0, longest, lambda v: brief(v, "s")):
        x = round(value * scale + 1, 1)
        drawn.append(tag("line", x1=x, x2=x, y1=TOP, y2=height - AXIS, class_="grid"))
        anchor = "middle" if value else "start"
        drawn.append(tag("text", text, x=x, y=height - 8, text_anchor=anchor, class_="quiet"))
    for i, row in enumerate(rows):
        y = TOP + ROW * i
        control = row.get("is_control", False)
        style = "control" if control else _style(row["name"], ours)
        label = f"{comparison['baseline']} again (A/A control)" if control else row["name"]
        drawn.append(tag("text", label, x=1, y=y + 14, class_="name"))
        drawn.append(tag("text", short(row["median"], "s"), x=WIDTH - 60, y=y + 14, text_anchor="end"))
        drawn.append(tag("text", times(row["ratio"]), x=WIDTH - 4, y=y + 14, text_anchor="end", class_="value"))
        length = round(row["median"] * scale, 1)
        drawn.append(tag("rect", x=1, y=y + 20, width=length, height=12, rx=2, class_=f"bar {style}"))
        low, high = round(row["q1"] * scale + 1, 1), round(row["q3"] * scale + 1, 1)
        drawn.append(tag("path", d=f"M{low} {y + 26}H{high}M{low} {y + 22.5}v7M{high} {y + 22.5}v7", class_="whisker"))
    return tag("svg", tag("title", title), drawn, viewBox=f"0 0 {WIDTH} {height}", role="img", class_="chart bars")


def _style(name: str, ours: str) -> str:
    return "sparse" if name == "sparse" else "compact" if name == ours else "dense"
