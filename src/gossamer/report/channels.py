"""The channel map: a row of cells for every layer, a cell for every channel, darker the more of its weights are used.

Snapshots taken during training lie on top of one another; a slider shows one at a time, the last one at first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from gossamer.report.markup import Markup, tag

CELL, GAP = 10, 2
LEVELS = 8


def _level(density: float, highest: float) -> int:
    """0 for an empty channel, else 1..LEVELS by the square root of its share of the highest density.

    Layers differ tenfold in density; the root keeps the differences inside the sparse ones visible.
    """
    if density <= 0 or highest <= 0:
        return 0
    return min(LEVELS, 1 + int(LEVELS * math.sqrt(density / highest)))


def _strip(density: Sequence[float | None], highest: float) -> list[Markup]:
    """A line of cells, one path per shade, so that thousands of channels stay a small drawing. None was removed."""
    places: dict[int, list[str]] = defaultdict(list)
    removed: list[str] = []
    side = CELL - GAP
    for i, value in enumerate(density):
        x = i * CELL
        if value is None:
            middle = side / 2
            removed.append(f"M{x + middle - 1.2:g} {middle:g}h2.4")
        else:
            places[_level(value, highest)].append(f"M{x} 0h{side}v{side}h-{side}z")
    drawn = [tag("path", d="".join(places[level]), class_=f"shade s{level}") for level in sorted(places)]
    if removed:
        drawn.append(tag("path", d="".join(removed), class_="removed"))
    return drawn


def channel_map(channels: dict[str, Any]) -> Markup:
    """Draw `{"groups": [names], "snapshots": [{"step": n, "density": {name: [share or None, ...]}}, ...]}`.

    A share is the part of a channel's incoming weights that is in use; None is a channel that was removed.
    """
    snapshots = channels["snapshots"]
    widest = max(len(values) for values in snapshots[-1]["density"].values())
    # A wide screen sets two strips side by side, a phone one.
    columns = 32 if widest <= 256 else 64
    highest = max(
        (value for shot in snapshots for values in shot["density"].values() for value in values if value is not None),
        default=0.0,
    )

    def frame(i: int) -> dict[str, str | int]:
        return {"class_": "frame now" if i == len(snapshots) - 1 else "frame", "data_frame": i}

    rows: list[Markup] = []
    for name in channels["groups"]:
        width = len(snapshots[-1]["density"][name])
        strips = []
        for start in range(0, width, columns):
            frames = [
                tag("g", _strip(shot["density"][name][start : start + columns], highest), **frame(i))
                for i, shot in enumerate(snapshots)
            ]
            strips.append(tag("svg", frames, viewBox=f"0 0 {columns * CELL - GAP} {CELL - GAP}"))
        alive = [sum(value is not None for value in shot["density"][name]) for shot in snapshots]
        counts = [tag("span", f"{count} of {width}", **frame(i)) for i, count in enumerate(alive)]
        rows.append(
            tag(
                "div",
                tag("p", tag("b", name), tag("span", counts, class_="count"), class_="layer"),
                tag("div", strips, class_="cells"),
                class_="row",
            )
        )
    slider = None
    if len(snapshots) > 1:
        last = len(snapshots) - 1
        steps = [tag("span", f"step {shot['step']:,}", **frame(i)) for i, shot in enumerate(snapshots)]
        slider = tag(
            "label",
            tag("span", "Training", class_="quiet"),
            tag("input", type="range", min=0, max=last, value=last, class_="time"),
            tag("output", steps),
            class_="slider",
        )
    key = tag(
        "p",
        tag("span", tag("i", class_="swatch s0"), "no weights left"),
        tag("span", tag("i", class_="swatch ramp"), f"up to {100 * highest:.0f} % of the weights in use"),
        tag("span", tag("i", class_="swatch gone"), "removed"),
        class_="legend",
    )
    return tag("div", slider, rows, key, class_="map")
