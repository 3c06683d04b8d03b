"""Tables in markdown: a column is its head and what it says of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]
Rows = list[Row]
Cell = Callable[[Row], str]
Column = tuple[str, Cell]


def table(rows: Rows, columns: Iterable[Column]) -> str:
    """One line for each row.

    >>> from gossamer.bench import cells
    >>> print(cells.table([{"n": 4, "share": 0.5}], [("n", cells.value("n")), ("share", cells.value("share", ".0%"))]))
    | n | share |
    | --- | --- |
    | 4 | 50% |
    <BLANKLINE>
    """
    columns = list(columns)
    return lines([head for head, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def lines(head: list[str], body: list[list[str]]) -> str:
    """A table from its cells."""
    if any(len(row) != len(head) for row in body):
        raise ValueError(f"every row must have {len(head)} cells, got {[len(row) for row in body]}")
    found = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(found + ["| " + " | ".join(row) + " |" for row in body]) + "\n"


def entry(row: Row, name: str) -> Row | None:
    """What a comparison says of one candidate."""
    return next((each for each in [*row["rows"], row["control"]] if each["name"] == name), None)


def value(key: str, form: str = "") -> Cell:
    """What the row holds under `key`."""
    return lambda row: f"{row[key]:{form}}"


def tile(row: Row) -> str:
    return f"{row['tile'][0]} x {row['tile'][1]}"


def of(name: str | None, show: Callable[[Row], str], absent: str = "") -> Cell:
    """What `show` says of a candidate, of the baseline without a name; `absent` where it was not run."""

    def cell(row: Row) -> str:
        found = entry(row, row["baseline"] if name is None else name)
        return show(found) if found else absent

    return cell


def ratio(name: str) -> Cell:
    """Median and quartiles."""
    return of(name, lambda e: f"{e['ratio']:.2f}x ({e['ratio_q1']:.2f} to {e['ratio_q3']:.2f})", "not run")


def short(name: str) -> Cell:
    """A ratio without its quartiles, for wide tables."""
    return of(name, lambda e: f"{e['ratio']:.2f}x")


def milliseconds(name: str | None = None, digits: int = 2) -> Cell:
    """A candidate's median time; the baseline's without a name."""
    return of(name, lambda e: f"{e['median'] * 1e3:.{digits}f}")


def _control(row: Row) -> str:
    return f"{row['control']['ratio']:.2f}x"


CONTROL: Column = ("A/A", _control)  # the baseline against itself
