"""What a suite is made of: a module of its package for each section, with the rows it measures and their tables.

A module that defines `SECTION` is a section and gives it its name; nothing else names it. What sections share lies in
modules beside them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Rows = list[Row]


@dataclass(frozen=True)
class Settings:
    """What a suite may vary. `reps` rounds of interleaved runs; `only` limits the run to these sections."""

    device: str = "cpu"
    threads: int | None = None
    reps: int = 15
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    only: tuple[str, ...] = ()
    quick: bool = False
    full: bool = False

    def wants(self, section: str) -> bool:
        return not self.only or section in self.only


QUARTILES = "Ratios are medians of interleaved rounds with their quartiles."
MEDIANS = "Ratios are medians of interleaved rounds."


@dataclass(frozen=True)
class Table:
    """Rows -> text of the docs, and what is said below it."""

    text: Callable[[Rows], str]
    note: str = QUARTILES


@dataclass(frozen=True)
class Section:
    """Rows, their table, further tables by name (README's: "brief"); `on_gpu=False` where only a CPU is measured."""

    rows: Callable[[Settings], Rows]
    table: Table
    further: Mapping[str, Table] = field(default_factory=dict)
    on_gpu: bool = True

    def named(self, name: str) -> Table | None:
        """A further table; the main one for ''."""
        return self.further.get(name) if name else self.table


def sections(suite: str) -> dict[str, Section]:
    """All sections of a suite, by name.

    >>> from gossamer.bench.section import sections
    >>> list(sections("detect"))
    ['tiles']
    """
    package = importlib.import_module(f"gossamer.bench.{suite}")
    modules = {info.name: importlib.import_module(f"{package.__name__}.{info.name}")
               for info in pkgutil.iter_modules(package.__path__)}  # fmt: skip
    return {name: module.SECTION for name, module in modules.items() if hasattr(module, "SECTION")}
