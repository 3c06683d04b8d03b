"""Lay a report out as one HTML page: what was gained, how training went, where channels went, how time was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gossamer.report.bars import bars
from gossamer.report.channels import channel_map
from gossamer.report.curves import Level, Line, chart
from gossamer.report.document import document, heading
from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import MISSING, count, percent, short

_SLIDER = """
for (const input of document.querySelectorAll("input.time")) {
  const frames = input.closest(".map").querySelectorAll("[data-frame]");
  const show = () => frames.forEach(f => f.classList.toggle("now", f.dataset.frame === input.value));
  input.addEventListener("input", show);
  show();
}
"""

# (key in the table, what it is called, how it is written, whether less is better)
_ROWS = (
    ("accuracy", "Test accuracy", lambda v: percent(v, 2), None),
    ("parameters", "Parameters", count, True),
    ("nonzeros", "Nonzero parameters", count, True),
    ("bytes", "Bytes in memory", lambda v: short(v, "B"), True),
    ("flops", "FLOPs of one image", lambda v: short(v), True),
    ("latency", "Latency", lambda v: short(v, "s"), True),
    ("throughput", "Throughput", lambda v: f"{short(v)}/s", False),
)


_LONG = 10**7
_TOLD = {"slower": ", slower", "inconclusive": ", within the noise"}


def _measured(comparison: dict[str, Any], less: bool | None, same: bool) -> tuple[str, str] | None:
    """How compact differs from dense, taken round by round, and the cell's class; green is for real gains only.

    Networks of the `same` size and work gain nothing from compaction, whatever the clock says.
    """
    row = next((row for row in comparison.get("rows", ()) if row["name"] == "compact"), None)
    if row is None:
        return None
    sign = "\N{DIVISION SIGN}" if less else "\N{MULTIPLICATION SIGN}"
    verdict = row.get("verdict")
    if same:
        return f"{sign} {row['ratio']:.2f}, of the same size", "quiet"
    return f"{sign} {row['ratio']:.2f}{_TOLD.get(verdict, '')}", "ratio" if verdict == "faster" else "quiet"


def _cell(value: float | None, show: Callable[[Any], str], name: str) -> Markup:
    """A number of the table; a count too long for a phone is told there by its first digits."""
    if value is None:
        return tag("td", MISSING, class_=name)
    if show is count and value >= _LONG:
        return tag(
            "td", tag("span", count(int(value)), class_="exact"), tag("span", short(value), class_="brief"), class_=name
        )
    return tag("td", show(value), class_=name)


def _ratio(dense: float | None, compact: float | None, less: bool | None) -> str:
    """How compact differs from dense by what was counted."""
    if dense is None or compact is None or (less is not None and 0 in (dense, compact)):
        return ""
    if less is None:
        return f"{100 * (compact - dense):+.2f} pt".replace("-", "\N{MINUS SIGN}")
    sign = "\N{DIVISION SIGN}" if less else "\N{MULTIPLICATION SIGN}"
    return f"{sign} {dense / compact if less else compact / dense:.2f}"


def _table(report: dict[str, Any]) -> Markup:
    table = report["table"]
    compared = "dense" in table and "compact" in table
    head = [tag("th", "")] + [tag("th", name, scope="col") for name in table]
    if compared:
        head.append(tag("th", "change", scope="col"))
    sizes = [[table[name].get(key) for key in ("parameters", "flops")] for name in ("dense", "compact") if compared]
    unchanged = compared and sizes[0] == sizes[1] and sizes[0][0] is not None
    body = []
    for key, label, show, less in _ROWS:
        if all(entry.get(key) is None for entry in table.values()):
            continue
        label = f"{label}, batch of {report[key]['batch']}" if key in report else label
        cells = [_cell(entry.get(key), show, name) for name, entry in table.items()]
        if compared:
            dense, compact = table["dense"].get(key), table["compact"].get(key)
            same = less is not None and dense is not None and dense == compact
            lost = less is None and None not in (dense, compact) and compact < dense
            counted = ("the same", "quiet") if same else (_ratio(dense, compact, less), "quiet" if lost else "ratio")
            ratio, kind = _measured(report.get(key, {}), less, unchanged) or counted
            cells.append(tag("td", ratio, class_=kind))
        body.append(tag("tr", tag("th", label, scope="row"), cells))
    return tag("div", tag("table", tag("thead", tag("tr", head)), tag("tbody", body)), class_="scroll")


def _facts(report: dict[str, Any]) -> Markup:
    facts = [tag("div", tag("dd", fact["value"]), tag("dt", fact["label"])) for fact in report.get("facts", [])]
    return tag("dl", facts, class_="facts") if facts else Markup("")


def _training(report: dict[str, Any]) -> list[Markup]:
    curves = {name: points for name, points in report.get("curves", {}).items() if points}
    if not curves:
        return []

    def line(name: str, key: str, **options: Any) -> Line:
        return Line(name, name, [(p["step"], p[key]) for p in curves[name] if p.get(key) is not None], **options)

    accuracy = chart(
        [line(name, "accuracy") for name in curves],
        title="Test accuracy against training steps",
        x_label="training steps",
        show=lambda v: percent(v, 2),
        mark=lambda v: percent(v, 0),
        floor=0.0,
        ceiling=1.0,
        span=0.1,
        level=None if report.get("chance") is None else Level("guessing", report["chance"]),
    )
    figures = [tag("figure", tag("h3", "Test accuracy"), accuracy)]
    sparse = curves.get("sparse", [])
    if sparse:
        share = [Line("weights", "sparse", [(p["step"], p["density"]) for p in sparse], steps=True)]
        if any(p.get("channels") is not None for p in sparse):
            channels = [(p["step"], p["channels"]) for p in sparse if p.get("channels") is not None]
            share.append(Line("channels", "compact", channels, steps=True))
        density = chart(
            share,
            title="Share of weights and channels in use against training steps",
            x_label="training steps",
            show=percent,
            mark=lambda v: percent(v, 0),
            floor=0.0,
            ceiling=1.0,
            span=0.1,
        )
        figures.append(tag("figure", tag("h3", "In use: share of all weights and channels"), density))
    return [
        tag("h2", "Training"),
        tag("p", report.get("training", ""), class_="quiet") if report.get("training") else Markup(""),
        tag("div", figures, class_="pair"),
    ]


def _channels(report: dict[str, Any]) -> list[Markup]:
    channels = report.get("channels")
    if not channels or not channels.get("groups") or not channels.get("snapshots"):
        return []
    return [
        tag("h2", "Channels"),
        tag(
            "p",
            "Every cell is a channel, every row a layer. Colour is the share of the channel's incoming weights that "
            "are in use. Training moves them, and removed channels never return.",
            class_="quiet",
        ),
        tag("figure", channel_map(channels), class_="wide"),
        tag("details", tag("summary", "What was cut out of each layer"), tag("pre", report["compaction"]))
        if report.get("compaction")
        else Markup(""),
    ]


def _timing(report: dict[str, Any]) -> list[Markup]:
    figures = []
    for key in ("latency", "throughput"):
        if key in report:
            batch = report[key]["batch"]
            title = "Time of one example" if batch == 1 else f"Time of {batch} examples at once"
            figures.append(tag("figure", tag("h3", title), bars(report[key], title=title)))
    if not figures:
        return []
    return [
        tag("h2", "Time"),
        tag(
            "p",
            "Medians with quartiles of runs taken in turns in one process. The control is the dense network timed "
            "a second time: a difference no larger than its own is noise.",
            class_="quiet",
        ),
        tag("div", figures, class_="pair"),
    ]


def _notes(report: dict[str, Any]) -> list[Markup]:
    notes = report.get("notes", [])
    if not notes:
        return []
    return [tag("h2", "What to keep in mind"), tag("ul", [tag("li", note) for note in notes], class_="notes")]


def _environment(report: dict[str, Any]) -> list[Markup]:
    entries = []
    for key, value in {**report.get("config", {}), **report.get("environment", {})}.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        if value not in (None, ""):
            entries.append((tag("dt", key.replace("_", " ")), tag("dd", value)))
    command = tag("p", tag("code", report["command"])) if report.get("command") else None
    return [tag("h2", "How to get this again"), tag("div", command), tag("dl", entries, class_="environment")]


def page(report: dict[str, Any]) -> str:
    """The whole document."""
    body = tag(
        "main",
        tag("p", "Gossamer training report", class_="eyebrow"),
        heading(report["title"]),
        tag("p", report.get("summary", ""), class_="lede"),
        _facts(report),
        tag("h2", ", ".join(report["table"]).capitalize()),
        _table(report),
        _training(report),
        _channels(report),
        _timing(report),
        _notes(report),
        _environment(report),
        tag("footer", "Written by Gossamer. The same numbers are in report.json."),
    )
    return document(report["title"], body, script=_SLIDER)
