"""Distributions beside one another: a dot at the median, a bar over the quartiles, a line over nine tenths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import marks

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 34


class Box(NamedTuple):
    """Five numbers of a distribution, ascending."""

    low: float
    q1: float
    median: float
    q3: float
    high: float


def boxes(
    entries: Sequence[Box], *, title: str, x_label: str, mark: Callable[[float], str], style: str = "compact"
) -> Markup:
    """An SVG with a box for each entry, numbered from 0.

    Args:
        entries: what to draw; what is not finite is drawn at the upper edge.
        title: said to screen readers. x_label: name of the horizontal axis. mark: text of a value on the vertical axis.
        style: a colour of the style sheet.
    """
    highest = 1.04 * max((value for box in entries for value in box if math.isfinite(value)), default=1.0) or 1.0
    step = (WIDTH - LEFT - RIGHT) / max(len(entries), 1)
    floor = HEIGHT - BOTTOM

    def y(value: float) -> float:
        return round(TOP + (1 - min(value, highest) / highest) * (floor - TOP), 1)

    drawn: list[Markup] = []
    for value, text in marks(0.0, highest, mark):
        drawn.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid"))
        drawn.append(tag("text", text, x=LEFT - 7, y=y(value) + 4, text_anchor="end"))
    for value, text in marks(0, len(entries) - 1, lambda v: str(int(v)), whole=True):
        x = round(LEFT + (value + 0.5) * step, 1)
        drawn.append(tag("text", text, x=x, y=floor + 17, text_anchor="middle"))
    drawn.append(tag("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end", class_="quiet"))
    wide = round(min(12.0, 0.62 * step), 1)
    for at, box in enumerate(entries):
        x = round(LEFT + (at + 0.5) * step, 1)
        drawn.append(tag("line", x1=x, x2=x, y1=y(box.low), y2=y(box.high), class_="whisker"))
        height = round(max(y(box.q1) - y(box.q3), 1.0), 1)
        drawn.append(
            tag("rect", x=round(x - wide / 2, 1), y=y(box.q3), width=wide, height=height, rx=1.5, class_=f"bar {style}")
        )
        half = wide / 2 + 1
        drawn.append(tag("path", d=f"M{x - half:g} {y(box.median)}h{2 * half:g}", class_="whisker"))
    return tag("svg", tag("title", title), drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="chart boxes")
