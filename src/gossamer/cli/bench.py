"""`gossamer bench SUITE --json FILE`: measure on this machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gossamer import bench
from gossamer.cli.flags import check_threads


@dataclass(frozen=True, kw_only=True)
class Bench(bench.Settings):
    """Time ours and every baseline interleaved in one process, with an A/A control."""

    suite: Annotated[
        Literal["attention", "compact", "compile", "conv", "detect", "matmul", "route", "serve", "xmc"],
        tyro.conf.Positional,
    ]
    """Which suite to run."""
    json: Path | None = None
    """Write the result here; with --only, the file's other sections are kept."""


def run(config: Bench) -> None:
    """Run the suite and print its rows."""
    check_threads(config.threads)
    settings = bench.Settings(**{each.name: getattr(config, each.name) for each in fields(bench.Settings)})
    result = bench.run(config.suite, settings, config.json)
    for name, section in result["sections"].items():
        if settings.wants(name):
            print(f"\n{config.suite}.{name}")
            for row in section["rows"]:
                print("  " + _line(row))
    measured = {name: section["rows"] for name, section in result["sections"].items()}
    for name, summary in bench.summaries(config.suite).items():
        print(f"\n{config.suite}.{name}\n{summary.text(measured)}{summary.table.note}")
    if config.json is not None:
        print(f"\nwritten: {config.json}")


def _line(row: dict[str, Any]) -> str:
    """One row for a terminal: its plain fields, then each candidate's ratio to the baseline."""
    parts = [f"{key}={_short(value)}" for key, value in row.items() if key not in ("rows", "baseline")
             and (isinstance(value, (str, int, float)) or _plain(value))]  # fmt: skip
    for entry in row.get("rows", []):
        parts.append(f"{entry['name']} {entry['median'] * 1e3:.2f} ms ({entry['ratio']:.2f}x)")
    if "control" in row and isinstance(row["control"], dict):
        parts.append(f"A/A {row['control']['ratio']:.2f}x")
    return "  ".join(parts)


def _plain(value: Any) -> bool:
    """A short list of numbers, such as a tile: not rows within a row."""
    return isinstance(value, list) and all(isinstance(each, (str, int, float)) for each in value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
