"""The three passes of a layer's step, the candidates that skip in them, and the table of ratios by zeros."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from gossamer.bench.cells import Column, entry, milliseconds, table, value
from gossamer.bench.conv.compare import crossover
from gossamer.bench.section import Row, Rows

PASSES = ("forward", "input", "weight")
KEPT, PACKING = "ours", "ours, packing"  # of the forward pass and of the gradient by the input
OF_X, OF_DY = "ours, zeros of x", "ours, zeros of dy"  # of the gradient by the weight, which packs nothing


def in_training(which: str) -> str:
    """The candidate that a training step uses."""
    return OF_X if which == "weight" else PACKING


def crossing(rows: Iterable[Row], which: str) -> float | None:
    """The share of zeros from which on skipping wins in a training step, of rows of one pass with random masks."""
    found = ((row["zeros"], entry(row, in_training(which))) for row in rows)
    return crossover([(zeros, each["ratio"]) for zeros, each in found if each])


def _pair(row: dict[str, Any]) -> str:
    """In training, and (in parentheses) with what only inference or the other operand's zeros allow."""
    names = (PACKING, KEPT) if entry(row, KEPT) else (OF_X, OF_DY)
    one, other = (entry(row, name) for name in names)
    assert one is not None and other is not None
    return f"{one['ratio']:.2f} ({other['ratio']:.2f})"


def curves(rows: Rows) -> str:
    """One line per layer, pass and kind of masks, one column per share of zeros."""
    crossings = {_key(row): row["crossover"] for row in rows if "crossover" in row}
    measured = [row for row in rows if "zeros" in row]
    found = []
    for (*_, masks), group in groupby(measured, lambda row: (*_key(row), row["masks"])):
        line = {row["zeros"]: row for row in group}
        first = next(iter(line.values()))
        wins = crossings[_key(first)]
        found.append(
            {
                **first, "batch": first.get("batch") or "", "line": line,
                "wins": "" if masks != "random" else "never" if wins is None else f"{wins:.0%}",
                "spread": statistics.median(row["control"]["ratio"] for row in line.values()),
            }
        )  # fmt: skip

    def share(zeros: float) -> Column:
        return f"{zeros:.0%}", lambda row: _pair(row["line"][zeros]) if zeros in row["line"] else ""

    return table(
        found,
        [
            ("layer", value("layer")), ("batch", value("batch")), ("pass", value("pass")), ("zeros", value("masks")),
            ("dense ms", milliseconds()), *map(share, sorted({row["zeros"] for row in measured})),
            ("wins from", value("wins")), ("A/A", value("spread", ".2f")),
        ],
    )  # fmt: skip


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["layer"], row.get("batch"), row["pass"]
