"""What a suite is made of: a module of its package for each section, with the rows it measures and their tables.

A module that defines `SECTION` is a section and gives it its name; nothing else names it. One that defines `SUMMARY`
computes a table from the rows of all sections. What sections share lies in modules beside them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from gossamer.bench.cells import Column, Row, Rows, table


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a suite may vary; the words behind the fields are the help of the flags."""

    device: str = "cpu"
    """cpu or cuda."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    reps: int = 15
    """Rounds of the interleaved runs."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the accuracy sections."""
    only: tuple[str, ...] = ()
    """Run only these sections of the suite."""
    quick: bool = False
    """Toy sizes: shows that the suite runs, says nothing about speed."""
    full: bool = False
    """The full grid where a suite has a small one too: hours rather than minutes."""

    def wants(self, section: str) -> bool:
        return not self.only or section in self.only


QUARTILES = "Ratios are medians of interleaved rounds with their quartiles."
MEDIANS = "Ratios are medians of interleaved rounds."


@dataclass(frozen=True)
class Table:
    """Rows -> text of the docs, by columns or by a function of all rows; and what is said below it."""

    of: Sequence[Column] | Callable[[Rows], str]
    note: str = QUARTILES

    def text(self, rows: Rows) -> str:
        return self.of(rows) if callable(self.of) else table(rows, self.of)


@dataclass(frozen=True)
class Section:
    """Rows, their table, further tables by name (README's: "brief"); `on_gpu=False` where only a CPU is measured."""

    rows: Callable[[Settings], Iterable[Row]]
    table: Table
    further: Mapping[str, Table] = field(default_factory=dict)
    on_gpu: bool = True

    def named(self, name: str) -> Table | None:
        """A further table; the main one for ''."""
        return self.further.get(name) if name else self.table


@dataclass(frozen=True)
class Summary:
    """A table whose rows are computed from those of the suite's sections, by name; `table.note` says what they mean."""

    rows: Callable[[Mapping[str, Rows]], Rows]
    table: Table

    def text(self, measured: Mapping[str, Rows]) -> str:
        return self.table.text(self.rows(measured))


def sections(suite: str) -> dict[str, Section]:
    """All sections of a suite, by name.

    >>> from gossamer.bench.section import sections
    >>> list(sections("detect"))
    ['tiles']
    """
    return {name: module.SECTION for name, module in _modules(suite).items() if hasattr(module, "SECTION")}


def summaries(suite: str) -> dict[str, Summary]:
    """All summaries of a suite, by name: modules that define `SUMMARY`.

    >>> from gossamer.bench.section import summaries
    >>> list(summaries("compile")), list(summaries("detect"))
    (['overall'], [])
    """
    return {name: module.SUMMARY for name, module in _modules(suite).items() if hasattr(module, "SUMMARY")}


def _modules(suite: str) -> dict[str, ModuleType]:
    package = importlib.import_module(f"gossamer.bench.{suite}")
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
