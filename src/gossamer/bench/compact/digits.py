"""The main job, as a user types it: `gossamer train` on the bundled digits, once per seed, in its own process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gossamer.bench.cells import Cell, Column, entry, lines, ratio, value
from gossamer.bench.section import MEDIANS, Row, Rows, Section, Settings, Table

NETWORKS = ("dense", "sparse", "compact")
DENSE, SPARSE, COMPACT = NETWORKS
MEAN = "mean"


def rows(settings: Settings) -> Iterator[Row]:
    """One row per seed with what report.json says, and a last row with means and the largest gap."""
    out = []
    for seed in settings.seeds:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "run"
            command = [sys.executable, "-m", "gossamer.cli", "train", "--seed", str(seed), "--out", str(target)]
            command += ["--device", settings.device, *(["--epochs", "2"] if settings.quick else [])]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            report = json.loads((target / "report.json").read_text())
        out.append(
            {
                "seed": seed, "config": report["config"], "table": report["table"],
                "channels_left": report["curves"]["sparse"][-1]["channels"],
                "latency": report["latency"], "throughput": report["throughput"],
            }
        )  # fmt: skip
        yield out[-1]
    accuracy = {key: [row["table"][key]["accuracy"] for row in out] for key in NETWORKS}
    means = {key: statistics.mean(values) for key, values in accuracy.items()}
    yield {"seed": MEAN, "accuracy": means, "gap": means[DENSE] - means[COMPACT]}


def _within(part: str, cell: Cell) -> Cell:
    """A cell of a comparison that the row holds under `part`; empty in the row of means."""
    return lambda row: cell(row[part]) if part in row else ""


def _share(key: str) -> Cell:
    def cell(row: dict[str, Any]) -> str:
        return f"{row['table'][COMPACT][key] / row['table'][DENSE][key]:.2f} of dense" if "table" in row else ""

    return cell


def _accuracy(name: str) -> Column:
    def cell(row: dict[str, Any]) -> str:
        return f"{100 * (row['table'][name]['accuracy'] if 'table' in row else row['accuracy'][name]):.2f}"

    return f"{name} %", cell


COLUMNS = (
    ("seed", value("seed")), *map(_accuracy, NETWORKS),
    ("channels left", lambda row: f"{row['channels_left']:.0%}" if "channels_left" in row else ""),
    ("parameters", _share("parameters")), ("FLOPs", _share("flops")),
    ("throughput, batch 256", _within("throughput", ratio(COMPACT))),
    ("masked only", _within("throughput", ratio(SPARSE))),
    ("A/A", _within("throughput", ratio(f"{DENSE} (control)"))),
    ("latency, batch 1", _within("latency", ratio(COMPACT))),
)  # fmt: skip


def brief(rows: Rows) -> str:
    """The three networks over all seeds."""
    *runs, mean = rows

    def mean_share(name: str, key: str) -> str:
        return f"{statistics.mean(row['table'][name][key] / row['table'][DENSE][key] for row in runs):.2f} of dense"

    def speed(name: str) -> str:
        if name == DENSE:
            return "1x"
        found = [each["ratio"] for row in runs if (each := entry(row["throughput"], name))]
        return f"{min(found):.2f}x to {max(found):.2f}x"

    body = [
        [
            name, f"{100 * mean['accuracy'][name]:.2f}", mean_share(name, "parameters"), mean_share(name, "flops"),
            speed(name),
        ]
        for name in NETWORKS
    ]  # fmt: skip
    return lines(["network", "accuracy %", "parameters", "FLOPs", "throughput"], body)


SECTION = Section(rows, Table(COLUMNS), {"brief": Table(brief, note=MEDIANS)})
