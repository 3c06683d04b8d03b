"""Fill the tables of README.md and docs/ from the committed results; `--check` only says whether they are current.

A table stands between two comment lines and is replaced as a whole:

    <!-- table: cpu/compact throughput -->
    ...
    <!-- end -->

names the file benchmarks/results/cpu/compact.json and its section `throughput`. `training.zeros` is a further table
of the section `training`; a summary of a suite is named like a section. How rows become a table is said where they are
measured, in gossamer.bench. A single cell, in the middle of a sentence, is named by cells of its row and by the head of
its column:

    <!-- cell: cpu/compile padding.brief [MiniLM | 128] [`gossamer`] -->2.34x<!-- end -->

All tables of a file, each below a heading and the first paragraph of its section's docstring:

    <!-- tables: cpu/compact -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from gossamer import bench
from gossamer.bench.dense import named, shares
from gossamer.bench.results import text
from gossamer.bench.section import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
CELL = re.compile(r"(<!-- cell: (\S+) (\S+) \[(.*?)\] \[(.*?)\] -->)(.*?)(<!-- end -->)")
FIRST = re.compile(r"^[ -]*<!-- cell: .*$", re.MULTILINE)  # there a comment begins a block, which ends the paragraph
ALL = re.compile(r"(<!-- tables: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BRIEF = "brief"
MEASURED = ROOT / "docs" / "measured.md"


def _caption(where: dict[str, Any], rows: list[dict[str, Any]], note: str) -> str:
    versions = where["versions"]
    return (
        f"\n{where['cpu']}{', ' + where['gpu'] if where['gpu'] else ''}{named(where)}, {where['threads']} threads, "
        f"{where['isa']}, torch {versions['torch']}, commit {where['commit']}, {where['date']}.{shares(where, rows)}"
        f"{note and ' '}{note}\n"
    )


def _summed(file: str, name: str) -> str | None:
    """A table that is computed from all sections of a file; None where the suite has no summary of that name."""
    suite = Path(file).name
    summary = bench.summaries(suite).get(name)
    if summary is None:
        return None
    measured = {main: found["rows"] for main, found in _sections(RESULTS / f"{file}.json").items()}
    missing = [main for main in bench.sections(suite) if main not in measured]
    lacking = f" Not measured yet: {', '.join(missing)}." if missing else ""
    return f"{summary.text(measured)}\n{summary.table.note}{lacking}\n"


@cache
def _sections(path: Path) -> dict[str, Any]:
    """What a file of results holds; nothing where there is no file."""
    if not path.exists():
        return {}
    found = path.read_text()
    result = json.loads(found)
    if text(result) != found:
        raise SystemExit(f"{path.relative_to(ROOT)} is not as `gossamer bench` writes it: one row a line")
    return dict(result["sections"])


def _table(file: str, name: str) -> tuple[Table, dict[str, Any] | None, str]:
    """A table of a section, what was measured for it, and what measures it."""
    suite, (main, _, further) = Path(file).name, name.partition(".")
    section = bench.sections(suite).get(main)
    table = section.named(further) if section else None
    if table is None:
        raise SystemExit(f"a table names {name!r}; suite {suite!r} has {list(bench.sections(suite))}")
    command = f"gossamer bench {suite} --only {main} --json {(RESULTS / file).relative_to(ROOT)}.json"
    return table, _sections(RESULTS / f"{file}.json").get(main), command


def _shown(file: str, name: str) -> str:
    if (summed := _summed(file, name)) is not None:
        return summed
    table, found, command = _table(file, name)
    if found is None:  # said in the page itself: a table must not stand there without its rows
        return f"*Not measured yet: `{command}`.*\n"
    stopped = f"\n*Unfinished: the run was stopped. `{command}`.*\n" if found.get("unfinished") else ""
    return table.text(found["rows"]) + stopped + _caption(found["environment"], found["rows"], table.note)


def _fill(match: re.Match[str]) -> str:
    start, file, name, _, end = match.groups()
    return start + _shown(file, name) + end


def _fill_cell(match: re.Match[str]) -> str:
    start, file, name, row, column, _, end = match.groups()
    table, found, command = _table(file, name)
    if found is None:
        raise SystemExit(f"a cell names {name!r} of {file}, which is not measured: {command}")
    head, _, *body = (
        [each.strip() for each in line[1:-1].split("|")] for line in table.text(found["rows"]).splitlines()
    )
    of = {each.strip() for each in row.split("|")}
    rows = [cells for cells in body if of <= set(cells)]
    if len(rows) != 1 or column not in head:
        raise SystemExit(f"a cell names {row!r} and {column!r} of {file} {name}: {len(rows)} rows, columns {head}")
    value = rows[0][head.index(column)].partition(" (")[0]
    return start + value + end


def _fill_all(match: re.Match[str]) -> str:
    start, file, _, end = match.groups()
    suite, shown = Path(file).name, []
    for name, summary in bench.summaries(suite).items():
        shown.append(f"### {suite}: {name}\n\n{_about(summary.rows)}\n\n{_shown(file, name)}")
    for main, section in bench.sections(suite).items():
        shown.append(f"### {suite}: {main}\n\n{_about(section.rows)}\n\n{_shown(file, main)}")
        further = [each for each in section.further if each != BRIEF]
        if _table(file, main)[1] is not None:
            shown += [_shown(file, f"{main}.{each}") for each in further]
    return start + "\n" + "\n".join(shown) + end


def _about(rows: Callable[..., Any]) -> str:
    """The first paragraph of the docstring of the module that makes rows."""
    about = inspect.getdoc(inspect.getmodule(rows)) or ""
    return " ".join(about.partition("\n\n")[0].split())


def main() -> None:
    missing = {f"{path.parent.name}/{path.stem}" for path in RESULTS.glob("*/*.json")} - {
        file for _, file, _, _ in ALL.findall(MEASURED.read_text())
    }
    if missing:
        raise SystemExit(f"{MEASURED.relative_to(ROOT)} must show all results; it lacks `tables: {sorted(missing)}`")
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = page.read_text()
        if first := FIRST.search(before):
            raise SystemExit(
                f"{page.relative_to(ROOT)} begins a line with a cell; expected words before it: {first[0]}"
            )
        after = ALL.sub(_fill_all, CELL.sub(_fill_cell, MARK.sub(_fill, before)))
        if after != before:
            stale.append(page.relative_to(ROOT))
            if "--check" not in sys.argv:
                page.write_text(after)
    if stale and "--check" in sys.argv:
        raise SystemExit(f"tables differ from benchmarks/results: {', '.join(map(str, stale))}; run `make docs`")


if __name__ == "__main__":
    main()
