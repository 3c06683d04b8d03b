"""Fill the tables of README.md and docs/ from the committed results; `--check` only says whether they are current.

A table stands between two comment lines and is replaced as a whole:

    <!-- table: cpu/compact throughput -->
    ...
    <!-- end -->

names the file benchmarks/results/cpu/compact.json and its section `throughput`. `training.zeros` is a further table
of the section `training`. How rows become a table is said where they are measured, in gossamer.bench.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from gossamer import bench
from gossamer.bench.dense import named, shares
from gossamer.bench.results import text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def _caption(where: dict[str, Any], rows: list[dict[str, Any]], note: str) -> str:
    versions = where["versions"]
    return (
        f"\n{where['cpu']}{', ' + where['gpu'] if where['gpu'] else ''}{named(where)}, {where['threads']} threads, "
        f"{where['isa']}, torch {versions['torch']}, commit {where['commit']}, {where['date']}.{shares(where, rows)}"
        f"{note and ' '}{note}\n"
    )


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


def _fill(match: re.Match[str]) -> str:
    start, file, name, _, end = match.groups()
    path = RESULTS / f"{file}.json"
    main, _, further = name.partition(".")
    section = bench.sections(path.stem).get(main)
    table = section.named(further) if section else None
    if table is None:
        raise SystemExit(f"a table names {name!r}; suite {path.stem!r} has {list(bench.sections(path.stem))}")
    found = _sections(path).get(main)
    if found is None:  # said in the page itself: a table must not stand there without its rows
        command = f"gossamer bench {path.stem} --only {main} --json {path.relative_to(ROOT)}"
        return f"{start}*Not measured yet: `{command}`.*\n{end}"
    return start + table.text(found["rows"]) + _caption(found["environment"], found["rows"], table.note) + end


def main() -> None:
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = page.read_text()
        after = MARK.sub(_fill, before)
        if after != before:
            stale.append(page.relative_to(ROOT))
            if "--check" not in sys.argv:
                page.write_text(after)
    if stale and "--check" in sys.argv:
        raise SystemExit(f"tables differ from benchmarks/results: {', '.join(map(str, stale))}; run `make docs`")


if __name__ == "__main__":
    main()
