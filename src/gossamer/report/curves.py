"""Line charts: one value of several runs against training steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import brief, ticks

# One column of a phone is about this wide, so letters keep their size there; wider screens scale the drawing up.
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 34


@dataclass(frozen=True)
class Line:
    """`points` are (x, y); `style` names a colour of the style sheet; `steps` draws y as held between points."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]
    steps: bool = False


def _range(values: list[float], floor: float | None, ceiling: float | None) -> tuple[float, float]:
    """The vertical axis: all values and a little air, within floor and ceiling."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    return (low if floor is None else max(low, floor)), (high if ceiling is None else min(high, ceiling))


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    show: Callable[[float], str],
    mark: Callable[[float], str],
    floor: float | None = None,
    ceiling: float | None = None,
    settled: float = 0.0,
) -> Markup:
    """An SVG of all lines on shared axes with a legend below.

    Args:
        lines: what to draw; points that are not finite are left out.
        title: said to screen readers.
        x_label: name of the horizontal axis.
        show: text of a value in the legend.
        mark: text of a value on the vertical axis.
        floor, ceiling: the vertical axis never reaches beyond these.
        settled: share of the steps at the beginning that may run out of the picture, so that the climb from nothing
            does not flatten the differences of the end.
    """
    finite = [[p for p in line.points if all(map(math.isfinite, p))] for line in lines]
    points = [p for run in finite for p in run]
    if not points:
        return tag("p", "No points were recorded.", class_="quiet")
    x0, x1 = min(0.0, *(p[0] for p in points)), max(p[0] for p in points)
    y0, y1 = _range([p[1] for p in points if p[0] >= x0 + settled * (x1 - x0)], floor, ceiling)
    x1 = x1 if x1 > x0 else x0 + 1
    y1 = y1 if y1 > y0 else y0 + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    marks: list[Markup] = []
    for y in ticks(y0, y1):
        _, v = at(x0, y)
        marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=v, y2=v, class_="grid"))
        marks.append(tag("text", mark(y), x=LEFT - 7, y=v + 4, text_anchor="end"))
    for x in ticks(x0, x1):
        h, _ = at(x, y0)
        marks.append(tag("line", x1=h, x2=h, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis"))
        marks.append(tag("text", brief(x), x=h, y=HEIGHT - BOTTOM + 17, text_anchor="middle"))
    marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    marks.append(tag("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end", class_="quiet"))

    curves: list[Markup] = []
    ends: list[Markup] = []
    for line, run in zip(lines, finite, strict=True):
        if not run:
            continue
        path: list[str] = []
        for i, (x, y) in enumerate(run):
            h, v = at(x, y)
            if line.steps and i:
                path.append(f"H{h}V{v}")
            else:
                path.append(f"{'L' if i else 'M'}{h} {v}")
        curves.append(tag("path", d="".join(path), class_=f"curve {line.style}"))
        h, v = at(*run[-1])
        ends.append(tag("circle", cx=h, cy=v, r=3.2, class_=f"dot {line.style}"))
    # A nested svg cuts off what runs out of the axes.
    window = tag("svg", curves, y=0, width=WIDTH, height=HEIGHT - BOTTOM, viewBox=f"0 0 {WIDTH} {HEIGHT - BOTTOM}",
                 class_="window")  # fmt: skip
    legend = [
        tag("span", tag("i", class_=f"key {line.style}"), f"{line.label} ", tag("b", show(run[-1][1])))
        for line, run in zip(lines, finite, strict=True)
        if run
    ]
    svg = tag(
        "svg", tag("title", title), marks, window, ends, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="chart"
    )
    return Markup(svg + tag("p", legend, class_="legend"))
