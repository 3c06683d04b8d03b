"""The cells that tables are made of."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def table(head: list[str], body: list[list[str]]) -> str:
    """A markdown table."""
    if any(len(row) != len(head) for row in body):
        raise ValueError(f"every row must have {len(head)} cells, got {[len(row) for row in body]}")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body]) + "\n"


def entry(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What a comparison says of one candidate."""
    return next((each for each in [*row["rows"], row["control"]] if each["name"] == name), None)


def ratio(row: dict[str, Any], name: str) -> str:
    """Median and quartiles."""
    found = entry(row, name)
    if found is None:
        return "not run"
    return f"{found['ratio']:.2f}x ({found['ratio_q1']:.2f} to {found['ratio_q3']:.2f})"


def short(row: dict[str, Any], name: str) -> str:
    """A ratio without its quartiles, for wide tables."""
    found = entry(row, name)
    return "" if found is None else f"{found['ratio']:.2f}x"


def milliseconds(row: dict[str, Any], name: str) -> str:
    """The median time."""
    found = entry(row, name)
    return "" if found is None else f"{found['median'] * 1e3:.2f}"
