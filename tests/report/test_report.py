"""The report: whole files, plain JSON, nothing from outside, nothing from the user unescaped, and true pictures."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import gossamer as gs
from gossamer.report.channels import channel_map
from gossamer.report.curves import Level, Line, chart
from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import marks, percent, short, ticks

HOSTILE = "</title></style><script>alert(1)</script>\"'&"


def _comparison(dense: float, compact: float) -> dict:
    def row(name: str, t: float) -> dict:
        verdict = "faster" if dense / t > 1.5 else "slower" if dense / t < 0.7 else "inconclusive"
        return {"name": name, "median": t, "q1": 0.9 * t, "q3": 1.2 * t, "ratio": dense / t, "verdict": verdict}

    rows = [row("dense", dense), row("sparse", dense), row("compact", compact)]
    return {"baseline": "dense", "rows": rows, "control": row("dense (control)", dense)}


def _report(text: str = "words") -> dict:
    density = {text: [0.5, None, 0.0, 0.25]}
    return {
        "title": text,
        "summary": text,
        "table": {"dense": {"accuracy": 0.99, "parameters": 300}, "compact": {"accuracy": 0.98, "parameters": 100}},
        "facts": [{"value": text, "label": text}],
        "curves": {"dense": [{"step": 1, "accuracy": 0.5}, {"step": 2, "accuracy": 0.9}],
                   "sparse": [{"step": 2, "accuracy": 0.8, "density": 0.1, "channels": 0.6}]},
        "channels": {"groups": [text], "snapshots": [{"step": 0, "density": {text: [1.0] * 4}},
                                                     {"step": 9, "density": density}]},
        "latency": {"batch": 1, **_comparison(2e-3, 1e-3)},
        "notes": [text],
        "config": {text: text},
        "environment": {"versions": {text: text}},
        "command": text,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("compact", "cell"),
    [
        (1e-3, '<td class="ratio">÷ 2.00</td>'),
        (1.7e-3, '<td class="quiet">÷ 1.18, within the noise</td>'),
        (4e-3, '<td class="quiet">÷ 0.50, slower</td>'),
    ],
)
def test_a_gain_that_is_none_is_not_green(compact: float, cell: str, tmp_path: Path) -> None:
    report = _report() | {"latency": {"batch": 1, **_comparison(2e-3, compact)}}
    report["table"]["dense"]["latency"], report["table"]["compact"]["latency"] = 2e-3, compact
    text = gs.report.write(tmp_path, report).read_text(encoding="utf-8")
    assert cell in text and (
        '<td class="ratio">÷ 3.00</td>' in text
    )  # what was counted, the parameters, needs no clock


class Page(HTMLParser):
    """Collects tags and refuses a page whose tags do not close in order."""

    VOID = ("meta", "input", "br", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.said: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.seen.append((name, dict(attributes)))
        if name not in self.VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.seen.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.said.append(data)


def test_two_files_and_the_json_is_the_report(tmp_path: Path) -> None:
    assert gs.report.write(tmp_path / "new", _report()) == tmp_path / "new" / "report.html"
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == _report()


def test_the_page_is_well_formed_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = gs.report.write(tmp_path, _report()).read_text()
    page = Page(text)
    assert not [a for _, a in page.seen if "src" in a or "href" in a]
    assert "http" not in text and "url(" not in text and "@import" not in text


def test_what_users_name_is_escaped(tmp_path: Path) -> None:
    page = Page(gs.report.write(tmp_path, _report(HOSTILE)).read_text())
    assert [name for name, _ in page.seen].count("script") == 1
    assert "".join(page.said).count("alert(1)") >= 10


@pytest.mark.parametrize("missing", ["summary", "facts", "curves", "channels", "latency", "notes", "config",
                                     "environment", "command"])  # fmt: skip
def test_every_part_but_title_and_table_may_be_missing(tmp_path: Path, missing: str) -> None:
    report = _report()
    del report[missing]
    Page(gs.report.write(tmp_path, report).read_text())


@pytest.mark.parametrize(
    ("change", "error"),
    [({"title": ""}, ValueError), ({"table": {}}, ValueError), ({"extra": object()}, TypeError),
     ({"extra": {"a": [1, {2}]}}, TypeError)],
)  # fmt: skip
def test_a_bad_report_leaves_the_old_one(tmp_path: Path, change: dict, error: type[Exception]) -> None:
    gs.report.write(tmp_path, _report("old"))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(error):
        gs.report.write(tmp_path, _report("new") | change)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    gs.report.write(tmp_path, _report() | {"loss": [float("nan"), float("inf"), 1.5]})
    assert json.loads((tmp_path / "report.json").read_text())["loss"] == [None, None, 1.5]


def test_the_map_shows_each_channel_once_and_counts_the_living() -> None:
    values = [0.5, None, 0.0, 0.25] * 20
    drawn = channel_map({"groups": ["a"], "snapshots": [{"step": 7, "density": {"a": values}}]})
    paths = dict.fromkeys(("shade s0", "shade s6", "shade s8", "removed"), 0)
    for name, attributes in Page(drawn).seen:
        if name == "path":
            paths[attributes["class"]] += attributes["d"].count("M")
    # 0.5 is the highest density and gets the darkest shade; half of it gets shade 1 + int(8 * sqrt(1 / 2)).
    assert paths == {"shade s0": 20, "shade s6": 20, "shade s8": 20, "removed": 20}
    assert "60 of 80" in drawn


def _places(svg: str, style: str) -> list[tuple[float, float]]:
    (path,) = re.findall(rf'<path d="([^"]*)" class="curve {style}"', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_a_curve_is_where_its_points_are() -> None:
    lines = [Line("a", "dense", [(0, 0.0), (50, 0.5), (100, 1.0)]), Line("b", "sparse", [(100, 0.5)])]
    svg = chart(lines, title="t", x_label="x", show=str, mark=str, floor=0.0, ceiling=1.0)
    (x0, y0), (x1, y1), (x2, y2) = _places(svg, "dense")
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1), abs=0.2)  # places are rounded to 0.1
    assert x0 < x2 and y0 > y2
    assert _places(svg, "sparse") == [(x2, y1)]


@pytest.mark.parametrize("values", [(0.1, 0.97, 0.99), (0.1003, 0.1009, 0.1015), (0.5, 0.5, 0.5)])
def test_every_point_is_in_the_picture_and_every_mark_is_another(values: tuple[float, ...]) -> None:
    """The climb of the first epochs as well, and noise does not fill the axis."""
    line = Line("a", "dense", list(zip((0, 50, 100), values, strict=True)))
    svg = chart([line], title="t", x_label="x", show=str, mark=lambda v: percent(v, 0), floor=0.0, ceiling=1.0,
                span=0.1, level=Level("guessing", 0.1))  # fmt: skip
    heights = [y for _, y in _places(svg, "dense")]
    assert all(12 <= y <= 216 for y in heights)
    assert max(heights) - min(heights) < 204 * (max(values) - min(values)) / 0.1 + 1
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    across, up = ([t for t in texts if ("%" in t) == percents and t != "x"] for percents in (False, True))
    assert len(set(across)) == len(across) >= 2 and len(set(up)) == len(up) >= 2
    assert 'class="level"' in svg and "guessing" in svg


@pytest.mark.parametrize("points", [[], [(0, float("nan"))], [(3, 1.0)], [(0, 2.0), (1, 2.0)]])
def test_curves_of_few_points(points: list) -> None:
    Page(chart([Line("a", "dense", points)], title="t", x_label="x", show=str, mark=str))


def test_text_is_escaped_unless_it_is_markup() -> None:
    assert tag("b", "<", Markup("<i/>"), [1, None, ">"], title='"') == '<b title="&quot;">&lt;<i/>1&gt;</b>'


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(0, "", "0"), (999, "", "999"), (999.9, "", "1.00 k"), (1e6, "", "1.00 M"), (12_345, "B", "12.3 kB"),
     (1.0, "s", "1 s"), (0.0123, "s", "12.3 ms"), (9.999e-4, "s", "1.00 ms"), (4.5e-7, "s", "0.450 µs"),
     (float("nan"), "s", "\N{EN DASH}")],
)  # fmt: skip
def test_short(value: float, unit: str, shown: str) -> None:
    assert short(value, unit) == shown


def test_percent_rounds_once() -> None:
    assert percent(0.9996) == "100.0 %" and percent(0.99949) == "99.9 %"


@pytest.mark.parametrize("write", [percent, short, lambda v: percent(v, 0), lambda v: f"{v:.2g}"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1003, 0.1015), (0.97, 0.99), (1e6, 1.001e6), (5, 5)])
def test_no_two_marks_say_the_same(low: float, high: float, write) -> None:
    found = marks(low, high, write)
    texts = [text for _, text in found]
    assert len(set(texts)) == len(texts) and all(low <= value <= high for value, _ in found)
    assert all(value == int(value) for value, _ in marks(0, 2, write, whole=True))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.013), (-3, 7), (0.97, 0.99), (0, 123456)])
def test_ticks_lie_inside_and_are_evenly_spaced(low: float, high: float) -> None:
    marks = ticks(low, high)
    gaps = [b - a for a, b in itertools.pairwise(marks)]
    assert 3 <= len(marks) <= 8 and low <= marks[0] and marks[-1] <= high * (1 + 1e-9)
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)


def test_long_counts_and_titles_fit_a_phone(tmp_path: Path) -> None:
    report = _report() | {"title": "module." * 20}
    report["table"]["dense"] |= {"parameters": 103_421_376}
    text = gs.report.write(tmp_path, report).read_text(encoding="utf-8")
    assert '<span class="exact">103,421,376</span><span class="brief">103 M</span>' in text
    assert '<h1 class="long">module.<wbr>module.' in text and '<td class="compact">100</td>' in text


def test_what_did_not_shrink_is_the_same(tmp_path: Path) -> None:
    report = _report()
    report["table"]["compact"]["parameters"] = 300
    report["table"]["dense"]["latency"], report["table"]["compact"]["latency"] = 2e-3, 1e-3
    text = gs.report.write(tmp_path, report).read_text(encoding="utf-8")
    table = text.split("<table>")[1].split("</table>")[0]
    assert '<td class="quiet">÷ 2.00, of the same size</td>' in table
    assert '<td class="quiet">the same</td>' in table and "\N{DIVISION SIGN} 1.00" not in table.split("Latency")[0]
