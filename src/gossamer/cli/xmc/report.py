"""The report of `gossamer xmc train`: how good, for which labels, and in how much memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossamer import files
from gossamer.report.curves import Line, chart
from gossamer.report.document import document, heading
from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import percent, short

_WIDTH, _ROW = 420, 34


def write(folder: Path, report: dict[str, Any]) -> Path:
    """Write `report.json` and `report.html`; returns the path of the page."""
    files.write_json(folder / "report.json", report)
    with files.replacing(folder / "report.html") as file:
        file.write(page(report).encode())
    return folder / "report.html"


def page(report: dict[str, Any]) -> str:
    """The whole document, without outside resources."""
    sizes = report["data"]
    body = tag(
        "main",
        tag("p", "Gossamer report on a classifier", class_="eyebrow"),
        heading(report["title"]),
        tag("p", f"{sizes['train']:,} training examples, {sizes['test']:,} test examples. The epoch that was best on "
            "the validation part was kept, and measured once on the test part.", class_="lede"),
        tag("h2", "Test part"),
        _scores(report["scores"]),
        tag("h2", "Training"),
        tag("div", _curves(report["curve"]), class_="pair"),
        tag("h2", "Rare and frequent labels"),
        tag("p", "Tenths of the labels, from the rarest to the most frequent in the training part: the share of their "
            "positives that is among the best five.", class_="quiet"),
        _deciles(report["deciles"]),
        tag("h2", "Memory"),
        _memory(report["bytes"]),
        tag("h2", "How to get this again"),
        tag("div", tag("p", tag("code", report["command"]))),
        _environment({**report["config"], **report["environment"]}),
        tag("footer", "Written by Gossamer. The same numbers are in report.json."),
    )  # fmt: skip
    return document(report["title"], body)


def _scores(scores: dict[str, list[float]]) -> Markup:
    most = len(next(iter(scores.values())))
    ranks = [rank for rank in (1, 3, 5) if rank <= most]
    head = tag("tr", tag("th", ""), [tag("th", f"@{rank}", scope="col") for rank in ranks])
    rows = [
        tag("tr", tag("th", name, scope="row"), [tag("td", percent(values[rank - 1], 2)) for rank in ranks])
        for name, values in scores.items()
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")


def _curves(curve: list[dict[str, float]]) -> list[Markup]:
    out = []
    for key, title, show in (("P@1", "P@1 of the validation part", percent), ("loss", "Training loss", short)):
        points = [(point["step"], point[key]) for point in curve if key in point]
        if points:
            drawn = chart(
                [Line(title, "sparse", points)], title=f"{title} against training steps", x_label="training steps",
                show=show, mark=show, floor=0.0,
            )  # fmt: skip
            out.append(tag("figure", tag("h3", title), drawn))
    return out


def bars(entries: list[tuple[str, float, str, str]], title: str) -> Markup:
    """Horizontal bars: (label, value, its text, class)."""
    longest = max((value for _, value, _, _ in entries), default=0) or 1
    marks: list[Markup] = []
    for i, (label, value, shown, style) in enumerate(entries):
        y = _ROW * i
        marks.append(tag("text", label, x=1, y=y + 12, class_="name"))
        marks.append(tag("text", shown, x=_WIDTH - 4, y=y + 12, text_anchor="end", class_="value"))
        length = round(value / longest * (_WIDTH - 8), 1)
        marks.append(tag("rect", x=1, y=y + 17, width=length, height=10, rx=2, class_=f"bar {style}"))
    box = f"0 0 {_WIDTH} {_ROW * len(entries)}"
    return tag("svg", tag("title", title), marks, viewBox=box, role="img", class_="chart bars")


def _deciles(deciles: list[dict[str, Any]]) -> Markup:
    entries = []
    for record in deciles:
        found = next(value for key, value in record.items() if key.startswith("R@"))
        seen = " to ".join(f"{n:,}" for n in dict.fromkeys(record["frequency"])) or "none"
        entries.append((f"{record['labels']:,} labels in {seen} examples", found, percent(found), "sparse"))
    return _half(bars(entries, "Share of the positives found, by frequency of the label"))


def _memory(sizes: dict[str, int]) -> Markup:
    style = {"dense head": "dense", "head": "sparse"}
    label = {
        "dense head": "a dense head, its gradient and Adam",
        "head": "this head and its optimizer",
    }
    entries = [(label.get(k, f"the {k}"), float(n), short(n, "B"), style.get(k, "control")) for k, n in sizes.items()]
    return _half(bars(entries, "Bytes in memory"))


def _half(drawn: Markup) -> Markup:
    """A figure of the width of a column, so that its letters are those of the others."""
    return tag("div", tag("figure", drawn), class_="pair")


def _environment(settings: dict[str, Any]) -> Markup:
    entries = []
    for key, value in settings.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        if value not in (None, ""):
            entries.append((tag("dt", key.replace("_", " ")), tag("dd", str(value))))
    return tag("dl", entries, class_="environment")
