"""Line charts: one value of several runs against training steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import brief, marks

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


@dataclass(frozen=True)
class Level:
    """A value that a line is drawn at all along, to compare the others with."""

    label: str
    value: float


def _range(values: list[float], floor: float | None, ceiling: float | None, span: float) -> tuple[float, float]:
    """The vertical axis: all values and a little air, `span` at least, within floor and ceiling."""
    low, high = min(values), max(values)
    low, high = low - max(0.0, span - high + low) / 2, high + max(0.0, span - high + low) / 2
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
    span: float = 0.0,
    level: Level | None = None,
) -> Markup:
    """An SVG of all lines on shared axes with a legend below.

    Args:
        lines: what to draw; points that are not finite are left out.
        title: said to screen readers.
        x_label: name of the horizontal axis.
        show: text of a value in the legend.
        mark: text of a value on the vertical axis.
        floor, ceiling: the vertical axis never reaches beyond these.
        span: what the vertical axis covers at least, so that noise does not fill it.
        level: a value to compare the lines with, drawn dashed.
    """
    finite = [[p for p in line.points if all(map(math.isfinite, p))] for line in lines]
    points = [p for run in finite for p in run]
    if not points:
        return tag("p", "No points were recorded.", class_="quiet")
    x0, x1 = min(0.0, *(p[0] for p in points)), max(p[0] for p in points)
    y0, y1 = _range([p[1] for p in points] + ([] if level is None else [level.value]), floor, ceiling, span)
    x1 = x1 if x1 > x0 else x0 + 1
    y1 = y1 if y1 > y0 else y0 + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    axes: list[Markup] = []
    for y, text in marks(y0, y1, mark):
        _, v = at(x0, y)
        axes.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=v, y2=v, class_="grid"))
        axes.append(tag("text", text, x=LEFT - 7, y=v + 4, text_anchor="end"))
    for x, text in marks(x0, x1, brief, whole=all(p[0] == int(p[0]) for p in points)):
        h, _ = at(x, y0)
        axes.append(tag("line", x1=h, x2=h, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis"))
        axes.append(tag("text", text, x=h, y=HEIGHT - BOTTOM + 17, text_anchor="middle"))
    axes.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    axes.append(tag("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end", class_="quiet"))

    if level is not None:
        _, v = at(x0, level.value)
        axes.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=v, y2=v, class_="level"))
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
    legend = [
        tag("span", tag("i", class_=f"key {line.style}"), f"{line.label} ", tag("b", show(run[-1][1])))
        for line, run in zip(lines, finite, strict=True)
        if run
    ]
    if level is not None:
        legend.append(tag("span", tag("i", class_="key level"), f"{level.label} ", tag("b", show(level.value))))
    box = f"0 0 {WIDTH} {HEIGHT}"
    svg = tag("svg", tag("title", title), axes, curves, ends, viewBox=box, role="img", class_="chart")
    return Markup(svg + tag("p", legend, class_="legend"))
