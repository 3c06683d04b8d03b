"""Profiles of several models laid over each other: what layers contribute by depth, and what could be left out."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gossamer import files
from gossamer.report.curves import Line, chart
from gossamer.report.document import document
from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import percent
from gossamer.routing.profiling.profiled import NAMES, THRESHOLDS, Profile
from gossamer.routing.stack import Kind

_STYLES = ("compact", "sparse", "dense", "compact dashed", "sparse dashed", "dense dashed")
MOST = len(_STYLES)
IDLE = 0.2
"""A layer that contributes no more of a token's state counts as one that the token could skip."""
_SHARES = (0.05, 0.1, IDLE)


def overlay(profiles: Sequence[Profile], path: str | os.PathLike[str], *, source: str = "") -> None:
    """Write one page without outside resources, whole or not at all, with a line for each model in every plot.

    Depth is relative, from the first layer to the last, so that models of any depth are compared: Radial Networks shows
    by such plots that large models have sparser layers, early ones aside.

    Args:
        profiles: two to six, which `profile` made; `Profile.model` is the name of each.
        path: of the page. source: says what was read by what.

    Raises:
        ValueError: another number of profiles.

    Source: Dotzel et al., Radial Networks, 2024 (arXiv 2404.04900), section 3.
    """
    if not 2 <= len(profiles) <= MOST:
        raise ValueError(f"profiles must be 2 to {MOST}, whose lines can be told apart, got {len(profiles)}")
    content = document("Layers of several models", _page(profiles, source)).encode()
    with files.replacing(path) as file:
        file.write(content)


def summary(profiles: Sequence[Profile]) -> str:
    """A line for each model: its layers, the median of a typical one, and pairs of token and layer that are idle.

    >>> summary([])
    'layers  typical   <= 5 %  <= 10 %  <= 20 %  model'
    """
    lines = [f"{'layers':>6}  {'typical':>7}" + "".join(f"  {'<= ' + percent(at, 0):>7}" for at in _SHARES) + "  model"]
    for each in profiles:
        shares = "".join(f"  {percent(each.sparsity(at)):>7}" for at in _SHARES)
        lines.append(f"{each.layers:>6}  {percent(each.typical()):>7}{shares}  {each.model}")
    return "\n".join(lines)


def _page(profiles: Sequence[Profile], source: str) -> Markup:
    kinds: list[Kind] = [kind for kind in profiles[0].kinds if all(kind in each.kinds for each in profiles)]
    medians = []
    for kind in kinds:
        values = [[spread.median for spread in each.contribution[kind]] for each in profiles]
        name = NAMES[kind][0].upper() + NAMES[kind][1:]
        medians.append(tag("figure", tag("h3", name), _by_depth(profiles, values)))
    idle = f"Tokens to which a layer contributes at most {percent(IDLE, 0)}"
    return tag(
        "main",
        tag("p", "Gossamer profiles of models", class_="eyebrow"),
        tag("h1", f"What the layers of {len(profiles)} models contribute"),
        tag("p", source, class_="lede") if source else "",
        tag("h2", "Contribution by depth"),
        tag("p", "The median over tokens of ‖f(h)‖ / ‖h + f(h)‖, the share that a layer's work has in the state after "
            "it. 0 is the first layer, 100 the last.", class_="quiet"),
        tag("div", medians, class_="pair"),
        tag("h2", "Sparsity"),
        tag("div",
            tag("figure", tag("h3", idle), _by_depth(profiles, [each.below(IDLE) for each in profiles])),
            tag("figure", tag("h3", "Pairs of token and layer that contribute no more"), _by_threshold(profiles)),
            class_="pair"),
        tag("h2", "All models"),
        _table(profiles),
        tag("footer", "Written by Gossamer."),
    )  # fmt: skip


def _by_depth(profiles: Sequence[Profile], values: Sequence[Sequence[float]]) -> Markup:
    lines = []
    for each, some, style in zip(profiles, values, _STYLES, strict=False):
        last = max(each.layers - 1, 1)
        lines.append(Line(each.model, style, [(100 * at / last, value) for at, value in enumerate(some)]))
    return chart(
        lines, title="By depth", x_label="depth, in %", show=percent, mark=lambda v: percent(v, 0), floor=0.0,
        ceiling=1.0,
    )  # fmt: skip


def _by_threshold(profiles: Sequence[Profile]) -> Markup:
    lines = [
        Line(each.model, style, [(100 * at, each.sparsity(at)) for at in THRESHOLDS])
        for each, style in zip(profiles, _STYLES, strict=False)
    ]
    return chart(
        lines, title="Share of pairs of token and layer by threshold", x_label="contribution up to, in %",
        show=percent, mark=lambda v: percent(v, 0), floor=0.0, ceiling=1.0,
    )  # fmt: skip


def _table(profiles: Sequence[Profile]) -> Markup:
    names = ("Model", "Layers", "Tokens", "Typical layer", *(f"Pairs up to {percent(at, 0)}" for at in _SHARES))
    head = tag("tr", [tag("th", each, scope="col") for each in (*names, "Least influence first")])
    rows = []
    for each in profiles:
        cells = [f"{each.layers}", f"{each.tokens:,}", percent(each.typical())]
        cells += [percent(each.sparsity(at)) for at in _SHARES]
        cells.append(", ".join(map(str, each.order()[:6])))
        rows.append(tag("tr", tag("th", each.model, scope="row"), [tag("td", cell) for cell in cells]))
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")
